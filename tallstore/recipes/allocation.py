"""Where bits do the most good: a choice for every task and tensor that meets a budget and loses the least function.

Each task vector is coded by itself, at one of several precisions: signs above a threshold, or a few levels; hard, or
with dither (see `dither`), which makes more error that is all noise. From a histogram of magnitudes both cost (entropy,
in bits) and harm of each choice follow without coding anything. Harm is what is added to the task vector once its scale
is unbiased (see `solo`): the variance of the noise, and κ times the square of what is the same for equal magnitudes
(bias). At κ = 1 it is the squared error, ‖τ‖²·‖w‖²/⟨τ,w⟩² − 1, and dither is never worth its bits.

One multiplier λ trades the two off for all tensors alike (Shoham and Gersho 1988): the budget decides λ.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "BINS",
    "ENTRY_BITS",
    "Choice",
    "Levels",
    "Magnitudes",
    "allocate",
    "choices",
    "is_mask",
    "levels_of",
    "magnitudes",
]

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


_RAMPS = tuple(round(1.1**i, 3) for i in range(40))
"""Magnitudes that a ternary choice with dither takes for whole, likewise."""
_FEET = (0.0, 0.06, 0.15)
"""Where its marks begin, and how far below that magnitude they become certain: relative to it."""
_EVEN_STEPS = (*_STEPS, 0.2)
"""Of multi-level choices with dither."""


class Levels(NamedTuple):
    """Where magnitudes become levels: |τ| is at level i+1 from bounds[i] + u·width on, u uniform in [0, 1)."""

    bounds: tuple[float, ...]
    width: float = 0.0
    """0: hard. For several levels it is otherwise the step between them."""


_LADDERS: tuple[Levels, ...] = (
    *(Levels((threshold,)) for threshold in _THRESHOLDS),
    *(Levels(tuple(b for b in (step * (_DEAD_ZONE + i) for i in range(_LEVELS)) if b < _REACH)) for step in _STEPS),
    *(Levels((foot * top,), (1 - 2 * foot) * top) for top in _RAMPS for foot in _FEET),
    *(Levels(tuple(step * i for i in range(_LEVELS)), step) for step in _EVEN_STEPS),
)
"""Every precision on offer, in root mean squares. The first one marks all that moved."""
_HARD = [(i, np.array(ladder.bounds)) for i, ladder in enumerate(_LADDERS) if not ladder.width]
_RAMPED = [i for i, ladder in enumerate(_LADDERS) if ladder.width and len(ladder.bounds) == 1]
_EVEN = [i for i, ladder in enumerate(_LADDERS) if ladder.width and len(ladder.bounds) > 1]


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

    def scale(self, weight: float) -> None:
        """Let every parameter that was counted stand for so many."""
        if weight != 1.0:
            self.counts *= weight
            self.base_energy *= weight

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
    """Index into the precisions on offer: see `levels_of`."""
    bits: float
    harm: float


def levels_of(ladder: int, rms: float) -> Levels:
    """What a choice means for a tensor. One bound: a mask."""
    relative = _LADDERS[ladder]
    if relative.width:
        return Levels(
            tuple(float(np.float32(b * rms)) for b in relative.bounds), float(np.float32(relative.width * rms))
        )
    return Levels(tuple(float(_EDGES[int(np.searchsorted(_EDGES, bound * rms))]) for bound in relative.bounds))


def is_mask(ladder: int) -> bool:
    """Whether a choice is a mask, and not levels of one's own."""
    return len(_LADDERS[ladder].bounds) == 1


def choices(found: Magnitudes, kappa: float = 1.0) -> list[Choice]:
    """The precisions on offer, with cost and harm: those that are the best for some price of a bit.

    `kappa`: how many times worse bias is than noise of the same energy.
    """
    offered = _hard(found, kappa)
    if kappa > 1:
        offered += _dithered(found, kappa)
    return _hull(offered)


def _hard(found: Magnitudes, kappa: float) -> list[Choice]:
    tail = np.concatenate([np.cumsum(found.counts[::-1])[::-1], [0.0]])
    tail_total = np.concatenate([np.cumsum((found.counts * _MIDDLE)[::-1])[::-1], [0.0]])
    moved, energy, rms = found.moved, found.energy, found.rms
    offered = []
    for index, relative in _HARD:
        at = [*np.searchsorted(_EDGES, relative * rms), BINS]
        counts = tail[at[:-1]] - tail[at[1:]]
        totals = tail_total[at[:-1]] - tail_total[at[1:]]
        here = counts > 0
        if counts.sum() < _FEWEST or not totals.sum() ** 2 > 0 or (len(relative) > 1 and here.sum() < 2):
            continue
        kept = float((totals[here] ** 2 / counts[here]).sum())
        offered.append(_choice(index, moved, counts, kappa * max(energy / kept - 1, 0.0)))
    return offered


def _dithered(found: Magnitudes, kappa: float) -> list[Choice]:
    """The same of choices with dither, all of them at once, over the bins that hold something."""
    (used,) = np.nonzero(found.counts)
    c, x = found.counts[used], _MIDDLE[used] / found.rms
    energy, moved = float(c @ (x * x)), found.moved
    low = np.array([_LADDERS[i].bounds[0] for i in _RAMPED])[:, None]
    width = np.array([_LADDERS[i].width for i in _RAMPED])[:, None]
    mean = np.clip((x - low) / width, 0.0, 1.0)
    offered = []
    rows = zip(_RAMPED, mean @ c, mean @ (c * x), np.square(mean) @ c, strict=True)
    for index, marks, along, square in rows:
        if marks >= _FEWEST and along > 0:
            gain = energy / along
            harm = gain**2 * (marks - square + kappa * square) / energy - kappa
            offered.append(_choice(index, moved, np.array([marks]), max(harm, 0.0)))
    step = np.array([_LADDERS[i].width for i in _EVEN])[:, None, None]
    place = np.minimum(x / step, _LEVELS)
    share = np.maximum(0.0, 1.0 - np.abs(place - np.arange(1, _LEVELS + 1)[:, None]))
    levels = np.arange(1.0, _LEVELS + 1)
    counts = share @ c
    mean = np.einsum("sjb,j->sb", share, levels)
    square = np.einsum("sjb,j->sb", share, levels**2) @ c
    for index, here, along, biased, energetic in zip(
        _EVEN, counts, mean @ (c * x), np.square(mean) @ c, square, strict=True
    ):
        if here.sum() >= _FEWEST and (here > 0).sum() > 1 and along > 0:
            gain = energy / along
            harm = gain**2 * (energetic - biased + kappa * biased) / energy - kappa
            offered.append(_choice(index, moved, here, max(harm, 0.0)))
    return offered


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


def _choice(ladder: int, moved: float, counts: Floats, harm: float) -> Choice:
    marks = float(counts.sum())
    entropy = sum(float(-c * math.log2(c / moved)) for c in (*counts, moved - marks) if c > 0)
    table = 0 if is_mask(ladder) else 64 * len(counts)
    return Choice(ladder, (entropy + marks) * _CODER + table, harm)
