"""Where bits do the most good: a choice for every task and tensor that meets a budget and loses the least function.

Each task vector is coded by itself, at one of several precisions: signs above a threshold, or a few levels. From a
histogram of magnitudes both cost (entropy, in bits) and harm of each choice follow without coding anything. Harm is
the variance that is added to the task vector once its scale is unbiased (see `solo`): ‖τ‖²·‖w‖²/⟨τ,w⟩² − 1.

One multiplier λ trades the two off for all tensors alike (Shoham and Gersho 1988): the budget decides λ.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "ENTRY_BITS", "Choice", "Magnitudes", "allocate", "bounds", "choices", "is_mask", "magnitudes"]

Floats = npt.NDArray[np.float64]

_SHIFT = 18
BINS = 1 << (31 - _SHIFT)
"""Bins of a histogram: the exponent of a float32 and the upper five bits of its mantissa, 32 to the octave."""
_K = TypeVar("_K", bound=Hashable)
_FINITE = 0x7F800000 >> _SHIFT
_EDGES = np.minimum(np.arange(BINS, dtype=np.uint32), _FINITE - 1) << np.uint32(_SHIFT)
_EDGES = _EDGES.view(np.float32).astype(np.float64)
_MIDDLE = _EDGES * (1 + 2.0**-6)
"""Lower edge and middle of each bin."""

_THRESHOLDS = (0.0, 0.2, *(round(0.4 + 0.1 * i, 1) for i in range(25)), 3.0, 3.2, 3.5)
"""Of ternary choices, in units of the tensor's root mean square."""
_STEPS = (2.4, 2.2, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.65, 0.5, 0.4, 0.3)
"""Of multi-level choices, likewise."""
_DEAD_ZONE = 0.62
"""Where the first level begins, in steps."""
_LEVELS = 7
"""Levels of each sign, so that a table has at most 15 and an index four bits."""
_FEWEST = 8
"""Marks below which a choice is not offered."""
_REACH = 7.5
"""No level begins beyond so many root mean squares."""
ENTRY_BITS = 8 * 380
"""What the header spends on a tensor."""
_CODER = 1.035
"""What the coder needs above the entropy: measured 1.00 to 1.05, 1.03 on the whole."""


_LADDERS: tuple[tuple[float, ...], ...] = (
    *((threshold,) for threshold in _THRESHOLDS),
    *(tuple(b for b in (step * (_DEAD_ZONE + i) for i in range(_LEVELS)) if b < _REACH) for step in _STEPS),
)
"""Bounds of every precision on offer, in root mean squares. The first one marks all that moved."""


@dataclass
class Magnitudes:
    """Histogram of |τ| of one tensor of one task, over the parameters that moved at all."""

    counts: Floats = field(default_factory=lambda: np.zeros(BINS))
    base_energy: float = 0.0
    """Σ θ0² where τ ≠ 0."""

    def add(self, other: Magnitudes) -> None:
        """Add another run of the same tensor."""
        self.counts += other.counts
        self.base_energy += other.base_energy

    @property
    def energy(self) -> float:
        """Σ τ²."""
        return float(self.counts @ _MIDDLE**2)

    @property
    def moved(self) -> float:
        """Parameters that moved."""
        return float(self.counts.sum())

    @property
    def rms(self) -> float:
        """Root mean square of those."""
        return math.sqrt(self.energy / self.moved) if self.moved else 0.0

    @property
    def weight(self) -> float:
        """How much a relative error in this tensor counts: parameters that moved, by how far for their size."""
        if not self.moved:
            return 0.0
        relative = min(1.0, self.energy / self.base_energy) if self.base_energy else 1.0
        return self.moved * math.sqrt(relative)


def magnitudes(tau: npt.NDArray[np.float32], base: npt.NDArray[np.float32]) -> Magnitudes:
    """Count |τ|, shape (N,), beside the base's values."""
    bins = np.abs(tau).view(np.uint32)
    bins >>= _SHIFT
    counts = np.bincount(bins.astype(np.intp), minlength=BINS).astype(np.float64)
    moved = tau != 0
    counts[0] -= len(tau) - np.count_nonzero(moved)
    return Magnitudes(counts, float(np.square(base * moved, dtype=np.float64).sum()))


@dataclass(frozen=True, slots=True)
class Choice:
    """One precision for one tensor. There are thousands of these, so it says no more than it must."""

    ladder: int
    """Index into the precisions on offer: see `bounds`."""
    bits: float
    harm: float


def bounds(ladder: int, rms: float) -> tuple[float, ...]:
    """What a choice means for a tensor: magnitudes from bounds[i] up to bounds[i+1] are level i+1. One: a mask."""
    return tuple(float(_EDGES[int(np.searchsorted(_EDGES, bound * rms))]) for bound in _LADDERS[ladder])


def is_mask(ladder: int) -> bool:
    """Whether a choice is a mask, and not levels of one's own."""
    return len(_LADDERS[ladder]) == 1


def choices(found: Magnitudes) -> list[Choice]:
    """The precisions on offer, with cost and harm: those that are the best for some price of a bit."""
    tail = np.concatenate([np.cumsum(found.counts[::-1])[::-1], [0.0]])
    tail_total = np.concatenate([np.cumsum((found.counts * _MIDDLE)[::-1])[::-1], [0.0]])
    moved, energy, rms = found.moved, found.energy, found.rms
    offered = []
    for index, ladder in enumerate(_LADDERS):
        at = [int(np.searchsorted(_EDGES, bound * rms)) for bound in ladder] + [BINS]
        counts = tail[at[:-1]] - tail[at[1:]]
        totals = tail_total[at[:-1]] - tail_total[at[1:]]
        if counts.sum() < _FEWEST or not totals.sum() ** 2 > 0 or (len(ladder) > 1 and (counts > 0).sum() < 2):
            continue
        offered.append(_choice(moved, energy, index, counts, totals))
    return _hull(offered)


def _hull(offered: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull of harm over bits, by rising bits. Whatever λ is, the best choice lies on it."""
    hull: list[Choice] = []
    for choice in sorted(offered, key=lambda c: (c.bits, c.harm)):
        if hull and choice.harm >= hull[-1].harm:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _above(left: Choice, middle: Choice, right: Choice) -> bool:
    """Whether `middle` lies on or above the line from `left` to `right`."""
    rise = (right.harm - left.harm) * (middle.bits - left.bits)
    return (middle.harm - left.harm) * (right.bits - left.bits) >= rise


def allocate(offers: Mapping[_K, Sequence[Choice]], weights: Mapping[_K, float], budget: float) -> dict[_K, Choice]:
    """For every key one choice, all within `budget` bits if that can be, at the least weighted harm."""
    table = {
        key: (np.array([c.bits for c in offered]), weights[key] * np.array([c.harm for c in offered]))
        for key, offered in offers.items()
    }

    def at(multiplier: float) -> tuple[float, dict[_K, int]]:
        picked = {key: int(np.argmin(harm + multiplier * bits)) for key, (bits, harm) in table.items()}
        return sum(float(table[key][0][i]) for key, i in picked.items()), picked

    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        spent, _ = at(2.0**middle)
        low, high = (middle, high) if spent > budget else (low, middle)
    _, picked = at(2.0**high)
    return {key: offers[key][i] for key, i in picked.items()}


def _choice(moved: float, energy: float, ladder: int, counts: Floats, totals: Floats) -> Choice:
    marks = float(counts.sum())
    here = counts > 0
    kept = float((totals[here] ** 2 / counts[here]).sum())
    zeros = moved - marks
    entropy = sum(float(-c * math.log2(c / moved)) for c in (*counts[here], zeros) if c > 0)
    table = 0 if is_mask(ladder) else 64 * len(counts)
    return Choice(ladder, (entropy + marks) * _CODER + table, max(energy / kept - 1, 0.0))
