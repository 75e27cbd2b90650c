"""Which parameters the tasks share: the agreement profile and pairwise overlaps (the paper's mask statistics).

Parameters that no task uses are `catastrophic`, those that exactly one uses are `selfish`: consensus merging drops
the former at k = 1, both at k = 2. Counts of disjoint runs of parameters add up, so a model is counted chunk by
chunk, in any order and in as many threads as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from bitarray import bitarray
from bitarray.util import count_and

from tallstore.merging.counting import BLOCK, Bytes, Words, add_rows, as_words, count_on, histogram

__all__ = ["Agreement", "count_agreement"]

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Counts over some parameters of a zoo of T tasks. Add them with `+`."""

    size: Counts
    """Parameters that each task has: (T,)."""
    on: Counts
    """Parameters that each task uses: (T,)."""
    alone: Counts
    """Parameters that each task uses and no other does: (T,)."""
    both: Counts
    """Parameters that two tasks use: (T, T), symmetric, `on` on the diagonal."""
    used_by: Counts
    """Parameters that exactly n tasks use, n = 0 … T: (T + 1,)."""

    @classmethod
    def nothing(cls, n_tasks: int) -> Agreement:
        """The count of no parameters, to start a sum from."""
        shapes = {"size": n_tasks, "on": n_tasks, "alone": n_tasks, "both": (n_tasks, n_tasks), "used_by": n_tasks + 1}
        return cls(**{name: np.zeros(shape, np.int64) for name, shape in shapes.items()})

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            size=self.size + other.size,
            on=self.on + other.on,
            alone=self.alone + other.alone,
            both=self.both + other.both,
            used_by=self.used_by + other.used_by,
        )

    @property
    def parameters(self) -> int:
        """The parameters counted."""
        return int(self.used_by.sum())

    @property
    def profile(self) -> Shares:
        """The share of parameters that exactly n tasks use: (T + 1,)."""
        return _shares(self.used_by, self.used_by.sum())

    @property
    def catastrophic(self) -> float:
        """The share that no task uses."""
        return float(self.profile[0])

    @property
    def selfish(self) -> float:
        """The share that exactly one task uses."""
        return float(self.profile[1:2].sum())

    @property
    def density(self) -> Shares:
        """The share of its own parameters that each task uses: (T,)."""
        return _shares(self.on, self.size)

    @property
    def jaccard(self) -> Shares:
        """|A ∩ B| / |A ∪ B| of every two tasks: (T, T); 0 where both are empty."""
        return _shares(self.both, self.on[:, None] + self.on[None, :] - self.both)

    @property
    def containment(self) -> Shares:
        """|A ∩ B| / |A|, the share of row task A's parameters that column task B uses too: (T, T)."""
        return _shares(self.both, self.on[:, None])


def _shares(part: Counts, whole: Counts) -> Shares:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def count_agreement(rows: Sequence[Bytes], n: int, n_tasks: int, tasks: Sequence[int] | None = None) -> Agreement:
    """Count n parameters.

    Args:
        rows: each task's mask, one bit a parameter, packed little-endian into ceil(n / 8) bytes, zeros behind the last.
        n: the number of parameters.
        n_tasks: T, the tasks of the zoo.
        tasks: which tasks the rows are of (indices into the zoo's task list); all of them, in order, by default.
    """
    at = list(range(n_tasks) if tasks is None else tasks)
    total = Agreement.nothing(n_tasks)
    for start in range(0, -(-n // 8), BLOCK):
        size = min(BLOCK, -(-n // 8) - start)
        words = as_words([row[start : start + size] for row in rows], size)
        total += _count_block(words, min(n - 8 * start, 8 * size), n_tasks, at)
    return total


def _count_block(words: Words, n: int, n_tasks: int, at: list[int]) -> Agreement:
    block = Agreement.nothing(n_tasks)
    block.size[at] += n
    if not at:
        block.used_by[0] += n
        return block
    planes = add_rows(words)
    block.used_by[: len(at) + 1] += histogram(planes, n, len(at))
    once = _exactly_one(planes)
    bits = [bitarray(buffer=row.view(np.uint8), endian="little") for row in words]
    for i, (task, mine) in enumerate(zip(at, bits, strict=True)):
        block.on[task] = block.both[task, task] = mine.count()
        block.alone[task] = count_on(words[i] & once)
        for other, theirs in zip(at[:i], bits[:i], strict=True):
            block.both[task, other] = block.both[other, task] = count_and(mine, theirs)
    return block


def _exactly_one(planes: Sequence[Words]) -> Words:
    once = planes[0].copy()
    for plane in planes[1:]:
        once &= ~plane
    return once
