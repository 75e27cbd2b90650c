"""`solo`: every task vector coded by itself, at the precision that a budget of bits allows; nothing is shared.

Each tensor becomes a signed mask over v ≡ 1 (its parameters above a threshold, by sign), or a few levels of its own
where bits are plenty. One scale a chunk makes the result unbiased: with w the marks,

    s = ⟨τ, τ⟩ / ⟨τ, w⟩,   so that   ⟨s·w, τ⟩ = ⟨τ, τ⟩

The error is then larger than with the scale of least squares, s = ⟨τ, w⟩/⟨w, w⟩, which shrinks what it is unsure of;
but a layer adds up thousands of parameters, so that errors without bias cancel where shrinkage adds up to a task that
was tuned less. With few bits that holds one step further: where marks are drawn at random, more likely the larger |τ|
is, every parameter is right on the average, and not the tensor alone. `benchmarks/README.md` has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.kernels.rules import Rule
from tallstore.recipes.allocation import (
    ENTRY_BITS,
    Choice,
    Choices,
    Levels,
    Magnitudes,
    allocate,
    choices,
    fine,
    levels_of,
    magnitudes,
)
from tallstore.recipes.base import Recipe, Statistic, Tile, ZooFacts
from tallstore.recipes.dither import seed_of, uniform

__all__ = ["Solo"]

Key = tuple[int, str]
"""A task and a base tensor."""
RATE = 0.95
"""The default: see `benchmarks/README.md`."""
_KAPPA, _KAPPA_MOST, _FINE_RATE = 4.0, 19.0, 1.8
"""κ at the default rate and above; it rises as the square below, to a limit, and is 1 from the last rate on. That keeps
it near what diverges least: see `benchmarks/README.md`."""
_FINE = 8192
"""Tensors with fewer parameters that moved (norms, biases) get a fixed fine precision: cheap, and they matter much."""
_FINE_BOUND = 0.4
"""Where its first level begins, in root mean squares."""


class Solo(Recipe):
    """Signs above a threshold, or a few levels, by task and tensor, allocated within a budget.

    The budget is `rate` bits for every parameter that moved at all, whatever heads and headers take beside; or `bits`
    for every parameter, moved or not, with all but the base in it. `kappa` says how many times worse than noise it is
    to be wrong in the same way for equal |τ|: 1 makes the least squared error, more lets marks be drawn at random.
    """

    id = "solo"
    vector_codec = "ones"
    shared = False

    def __init__(self, bits: float | None = None, rate: float = RATE, kappa: float | None = None) -> None:
        for name, value in (("bits", bits), ("rate", rate)):
            if value is not None and not 0 < value <= 32:
                raise OptionError(f"{name} {value} is not a number of bits a parameter and task (above 0, at most 32)")
        if kappa is None:
            kappa = _kappa(bits or rate)
        if not 1 <= kappa < float("inf"):
            raise OptionError(f"kappa {kappa} is not a weight (1 or more)")
        self.bits, self.rate, self.kappa = bits, rate, kappa
        self.kind = "signed"
        self._zoo = ZooFacts(parameters=0, fixed_bits=0.0)
        self._chosen: dict[Key, Levels] = {}
        """Of each task's tensor; a single level is a mask's."""

    def prepare(self, zoo: ZooFacts) -> None:
        """Remember what the budget must cover."""
        self._zoo = zoo

    def statistics(self, n_tasks: int) -> Sequence[Statistic]:  # noqa: ARG002 - tiles say which tasks there are
        """One: a histogram of magnitudes for every task and tensor."""
        return (_Histograms(self),)

    def settle(self, found: Mapping[Key, _Tensor], moved: float) -> None:
        """Choose a precision for every task and tensor; `moved` is how many parameters did in all."""
        offers = {key: tensor.offers for key, tensor in found.items()}
        weights = {key: tensor.weight for key, tensor in found.items()}
        if self.bits is None:
            budget = self.rate * moved
        else:
            budget = self.bits * self._zoo.parameters - self._zoo.fixed_bits - ENTRY_BITS * len(offers)
        chosen = allocate(offers, weights, budget)
        self._chosen = {key: levels_of(choice.ladder, found[key].rms) for key, choice in chosen.items()}

    def vector(self, tile: Tile) -> Tensor:
        """v ≡ 1."""
        return torch.ones_like(tile.base)

    def masks(self, tile: Tile, vector: Tensor) -> Tensor:  # noqa: ARG002 - v is known
        """Signs above the task's threshold for this tensor."""
        out = torch.zeros(tile.tau.shape, dtype=torch.uint8, device=tile.tau.device)
        for row, task in enumerate(tile.tasks):
            found = self._chosen.get((task, tile.tensor))
            if found is None or len(found.bounds) > 1:
                continue
            tau = tile.tau[row]
            on = (tau.abs() >= self._threshold(found, task, tile)) & (tau != 0)
            out[row] = on.to(torch.uint8) << (tau < 0).to(torch.uint8)
        return out

    def rule(self, tasks: Sequence[int], tensor: str) -> Rule:
        """Thresholds; out of reach where a tensor is not masked."""
        found = [self._chosen.get((task, tensor)) for task in tasks]
        masked = [levels if levels is not None and len(levels.bounds) == 1 else Levels((math.inf,)) for levels in found]
        return Rule(
            vector="ones",
            mask="above",
            signed=True,
            limits=tuple(levels.bounds[0] for levels in masked),
            widths=tuple(levels.width for levels in masked),
            seeds=tuple(self.seed(task, tensor) for task in tasks),
        )

    def _threshold(self, found: Levels, task: int, tile: Tile) -> Tensor | float:
        (low,) = found.bounds
        if not found.width:
            return low
        u = uniform(tile.start, len(tile.base), self.seed(task, tile.tensor))
        u *= np.float32(found.width)
        u += np.float32(low)
        return torch.from_numpy(u).to(tile.tau.device)

    def seed(self, task: int, tensor: str) -> int:
        """By the task's place in the whole archive: errors of tasks that were added one by one cancel in a merge."""
        return seed_of(self._zoo.first + task, tensor)

    def levels(self, task: int, tensor: str) -> Levels | None:
        """Bounds of the levels where a tensor has several."""
        found = self._chosen.get((task, tensor))
        return found if found is not None and len(found.bounds) > 1 else None

    def scale(self, task: int, sums: Sequence[float]) -> float:  # noqa: ARG002 - sums suffice
        """The unbiased scale."""
        _, norm, _, dot, _ = sums
        return norm / dot if dot > 0 else 1.0


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor whose magnitudes are counted."""

    offers: Choices
    weight: float
    rms: float
    moved: float


class _Histograms(Statistic):
    """Magnitudes by task and tensor; of a whole tensor, only what can be chosen for it is kept."""

    one_in = 8
    by_tensor = True
    by_magnitude = True

    def __init__(self, recipe: Solo) -> None:
        self._recipe = recipe
        self._found: dict[Key, _Tensor] = {}

    def measure(self, tile: Tile) -> list[tuple[Key, Magnitudes]]:
        base = tile.base.to(torch.float32).cpu().numpy()
        rows = tile.tau.to(torch.float32).cpu().numpy()
        return [
            each
            for task, row in zip(tile.tasks, rows, strict=True)
            for each in self.measure_counted(task, tile.tensor, magnitudes(row, base), tile.weight)
        ]

    def measure_counted(
        self, task: int, tensor: str, counted: Magnitudes, weight: float
    ) -> list[tuple[Key, Magnitudes]]:
        counted.scale(weight)
        return [((task, tensor), counted)]

    def condense(self, measured: Iterable[list[tuple[Key, Magnitudes]]]) -> list[tuple[Key, _Tensor]]:
        found: dict[Key, Magnitudes] = {}
        for key, counted in chain.from_iterable(measured):
            if key in found:
                found[key].add(counted)
            else:
                found[key] = counted
        return [(key, self._tensor(counted)) for key, counted in found.items() if counted.moved]

    def _tensor(self, found: Magnitudes) -> _Tensor:
        return _Tensor(_offers(found, self._recipe.kappa), found.weight, found.rms, found.moved)

    def update(self, tile: tuple[Key, _Tensor]) -> None:
        key, tensor = tile
        self._found[key] = tensor

    def finish(self) -> None:
        self._recipe.settle(self._found, sum(tensor.moved for tensor in self._found.values()))


def _kappa(rate: float) -> float:
    """What diverges least, or nearly, at so many bits."""
    if rate >= _FINE_RATE:
        return 1.0
    return min(_KAPPA_MOST, _KAPPA * max(1.0, RATE / rate) ** 2)


def _offers(found: Magnitudes, kappa: float) -> Choices:
    if found.moved >= _FINE and (every := choices(found, kappa)):
        return every
    return Choices.only(fine(found, _FINE_BOUND) or _signs(found))


def _signs(found: Magnitudes) -> Choice:
    """The sign of everything that moved: for tensors with too few parameters to offer a choice."""
    return Choice(0, 2 * found.moved, 1.0)
