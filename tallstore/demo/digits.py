"""The demo's data: scikit-learn's handwritten digits, and eight different questions about them.

1,797 images of 8 × 8 pixels come with the package, so nothing is downloaded. One fixed part of them is the test set
of every task and is used for nothing else: it does not depend on the zoo's seed, so any two zoos compare.

A task either asks about the digit (its label follows from the digit alone) or about what was done to the picture
(its label is the number of the change). A new task is one row in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor

from tallstore.errors import MissingExtraError

SIDE = 8
"""Pixels a side."""
N_TEST = 597
_SPLIT_SEED = 20_240_712

Change = Callable[[Tensor], Tensor]


def _same(images: Tensor) -> Tensor:
    return images


def _mirror(images: Tensor) -> Tensor:
    return images.flip(-1)


def _swap_halves(images: Tensor) -> Tensor:
    return images.roll(SIDE // 2, dims=-1)


def _quarter_turns(n: int) -> Change:
    return lambda images: images.rot90(n, dims=(-2, -1))


@dataclass(frozen=True, kw_only=True)
class DigitsTask:
    """One question about an image. Has either `labels` or `changes`."""

    name: str
    question: str
    labels: tuple[int, ...] = ()
    """The answer for each of the digits 0 to 9."""
    changes: tuple[Change, ...] = ()
    """What may have been done to the image: the answer is which."""

    @property
    def classes(self) -> int:
        """How many answers there are."""
        return len(self.changes) or max(self.labels) + 1

    def examples(self, images: Tensor, digits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images as the model sees them, and the right answers."""
        if self.labels:
            return images, torch.tensor(self.labels)[digits]
        answers = torch.randint(self.classes, digits.shape, generator=generator)
        changed = torch.stack([change(images) for change in self.changes])
        return changed[answers, torch.arange(len(images))], answers


_ROWS = (
    DigitsTask(name="digit", question="which digit is it?", labels=tuple(range(10))),
    DigitsTask(name="odd", question="is the digit odd?", labels=(0, 1) * 5),
    DigitsTask(name="large", question="is it five or more?", labels=(0,) * 5 + (1,) * 5),
    DigitsTask(name="prime", question="is it a prime number?", labels=(0, 0, 1, 1, 0, 1, 0, 1, 0, 0)),
    DigitsTask(name="loops", question="how many loops has it?", labels=(1, 0, 0, 0, 1, 0, 1, 0, 2, 1)),
    DigitsTask(name="mirrored", question="is it a mirror image?", changes=(_same, _mirror)),
    DigitsTask(name="rotated", question="how was it rotated?", changes=tuple(_quarter_turns(n) for n in range(4))),
    DigitsTask(name="swapped", question="are its halves swapped?", changes=(_same, _swap_halves)),
)
TASKS: Mapping[str, DigitsTask] = MappingProxyType({task.name: task for task in _ROWS})
"""Every task of the demo, by name."""


@dataclass(frozen=True)
class Split:
    """Images, shape (N, 8, 8), float32 between −1 and 1, and their digits, shape (N,), int64."""

    images: Tensor
    digits: Tensor


@cache
def load_digits() -> tuple[Split, Split]:
    """The training and the test images. Needs scikit-learn."""
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        raise MissingExtraError(
            'the demo uses scikit-learn\'s handwritten digits: pip install "tallstore[demo]"'
        ) from error
    data = sklearn_digits()
    images = torch.from_numpy(data.images).float() / 8 - 1
    digits = torch.from_numpy(data.target).long()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    test, train = order[:N_TEST], order[N_TEST:]
    return Split(images[train], digits[train]), Split(images[test], digits[test])


def held_out(task: DigitsTask) -> tuple[Tensor, Tensor]:
    """The held-out images of a task and the right answers: the same at every call."""
    _, test = load_digits()
    return task.examples(test.images, test.digits, torch.Generator().manual_seed(_SPLIT_SEED))
