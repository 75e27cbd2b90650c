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
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tallstore.kernels import fast

__all__ = [
    "BINS",
    "ENTRY_BITS",
    "Choice",
    "Levels",
    "Magnitudes",
    "add_up",
    "allocate",
    "choices",
    "fine",
    "is_mask",
    "levels_of",
    "magnitudes",
]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

_SHIFT = 18
BINS = 1 << (31 - _SHIFT)
"""Bins of a histogram: the exponent of a float32 and the upper five bits of its mantissa, 32 to the octave."""
_K = TypeVar("_K", bound=Hashable)
_FINITE = 0x7F800000 >> _SHIFT
_EDGES = np.minimum(np.arange(BINS, dtype=np.uint32), _FINITE - 1) << np.uint32(_SHIFT)
_EDGES = _EDGES.view(np.float32).astype(np.float64)
_MIDDLE = (_EDGES * (1 + 2.0**-6)).astype(np.float64)
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
_HARD = [i for i, ladder in enumerate(_LADDERS) if not ladder.width]
_HARD_BOUNDS = np.array([(*_LADDERS[i].bounds, *([np.inf] * _LEVELS))[:_LEVELS] for i in _HARD])
"""Shape (hard choices, levels): infinite where a choice has fewer."""
_TABLES = np.array([0.0 if len(ladder.bounds) == 1 else 64.0 * len(ladder.bounds) for ladder in _LADDERS])
"""Bits that a choice's table takes."""
_RAMPED = [i for i, ladder in enumerate(_LADDERS) if ladder.width and len(ladder.bounds) == 1]
_EVEN = [i for i, ladder in enumerate(_LADDERS) if ladder.width and len(ladder.bounds) > 1]


@dataclass
class Magnitudes:
    """Histogram of |τ| of one tensor of one task, over the parameters that moved at all."""

    counts: Floats = field(default_factory=lambda: np.zeros(0))
    """Of the bins from `first` on. The rest, most of them by far, are empty."""
    first: int = 0
    base_energy: float = 0.0
    """Σ θ0² where τ ≠ 0."""

    def add(self, other: Magnitudes) -> None:
        """Add another run of the same tensor."""
        self.base_energy += other.base_energy
        if not len(self.counts):
            self.counts, self.first = other.counts.copy(), other.first
            return
        first = min(self.first, other.first)
        counts = np.zeros(max(self.first + len(self.counts), other.first + len(other.counts)) - first)
        for each in (self, other):
            counts[each.first - first : each.first - first + len(each.counts)] += each.counts
        self.counts, self.first = counts, first

    @property
    def middle(self) -> Floats:
        """The middle of each bin."""
        return _MIDDLE[self.first : self.first + len(self.counts)]

    def scale(self, weight: float) -> None:
        """Let every parameter that was counted stand for so many."""
        if weight != 1.0:
            self.counts *= weight
            self.base_energy *= weight

    @property
    def energy(self) -> float:
        """Σ τ²."""
        return float(self.counts @ self.middle**2)

    @property
    def moved(self) -> float:
        """Parameters that moved."""
        return float(self.counts.sum())

    @property
    def rms(self) -> float:
        """Root mean square of those."""
        moved = self.moved
        return math.sqrt(self.energy / moved) if moved else 0.0

    @property
    def weight(self) -> float:
        """How much a relative error in this tensor counts: parameters that moved, by how far for their size."""
        moved = self.moved
        relative = min(1.0, self.energy / self.base_energy) if self.base_energy else 1.0
        return moved * math.sqrt(relative)


def magnitudes(tau: Singles, base: Singles) -> Magnitudes:
    """Count |τ|, shape (N,), beside the base's values."""
    compiled = fast.encode_kernels()
    if compiled is not None:
        numbers = np.zeros(BINS, np.uint32)
        first, last, base_energy = compiled.magnitudes(numbers, tau, base, np.uint32(_SHIFT))
        return Magnitudes(numbers[first:last].astype(np.float64), first, float(base_energy))
    bins = (np.abs(tau).view(np.uint32) >> _SHIFT).astype(np.intp)
    counts = np.bincount(bins, minlength=BINS).astype(np.float64)
    moved, base_energy = np.count_nonzero(tau), add_up(np.square(base * (tau != 0), dtype=np.float64))
    counts[0] -= len(tau) - moved
    (used,) = np.nonzero(counts)
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    return Magnitudes(counts[first:last].copy(), first, float(base_energy))


def add_up(values: Floats) -> float:
    """Their sum in one order of additions: in blocks of 1024 half upon half, then so the blocks' sums."""
    blocks = -(-len(values) // _BLOCK)
    filled = np.zeros((1 << max(blocks - 1, 0).bit_length(), _BLOCK))
    filled.reshape(-1)[: len(values)] = values
    return float(_halve(_halve(filled)))


def _halve(values: Floats) -> Floats:
    while (half := values.shape[-1] // 2) > 0:
        values = values[..., :half] + values[..., half:]
    found: Floats = values[..., 0]
    return found


_BLOCK = 1024


class Choice(NamedTuple):
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
    offered = [_hard(found, kappa)]
    if kappa > 1:
        offered += _dithered(found, kappa)
    ladders, bits, harm = map(np.concatenate, zip(*offered, strict=True))
    return _hull(ladders, bits, harm)


def fine(found: Magnitudes, bound: float) -> Choice | None:
    """Of the hard choices with several levels the one whose first begins nearest to `bound` root mean squares."""
    nearest = _nearest(bound)
    ladders, bits, harm = _hard(found, 1.0, slice(nearest, nearest + 1))
    return Choice(int(ladders[0]), float(bits[0]), float(harm[0])) if len(ladders) else None


@cache
def _nearest(bound: float) -> int:
    several = [row for row, i in enumerate(_HARD) if not is_mask(i)]
    return min(several, key=lambda row: abs(float(_HARD_BOUNDS[row, 0]) - bound))


Offered = tuple[npt.NDArray[np.intp], Floats, Floats]
"""Ladders, bits and harm of some choices."""


def _hard(found: Magnitudes, kappa: float, rows: slice = slice(None)) -> Offered:
    bins, energy, moved = len(found.counts), found.energy, found.moved
    tail = np.concatenate([np.cumsum(found.counts[::-1])[::-1], [0.0]])
    tail_total = np.concatenate([np.cumsum((found.counts * found.middle)[::-1])[::-1], [0.0]])
    bounds = _HARD_BOUNDS[rows]
    at = np.clip(np.searchsorted(_EDGES, bounds * math.sqrt(energy / moved)) - found.first, 0, bins)
    at = np.concatenate([np.where(np.isinf(bounds), bins, at), np.full((len(at), 1), bins)], axis=1)
    counts = tail[at[:, :-1]] - tail[at[:, 1:]]
    totals = tail_total[at[:, :-1]] - tail_total[at[:, 1:]]
    several = np.isfinite(bounds[:, 1])
    kept = (totals**2 / np.maximum(counts, 1e-300)).sum(axis=1)
    offered = (counts.sum(axis=1) >= _FEWEST) & (kept > 0) & (~several | ((counts > 0).sum(axis=1) > 1))
    harm = kappa * np.maximum(energy / np.where(kept > 0, kept, np.inf) - 1, 0.0)
    return _priced(_HARD[rows], offered, moved, counts, harm)


def _dithered(found: Magnitudes, kappa: float) -> list[Offered]:
    """The same of choices with dither, over the bins that hold something."""
    (used,) = np.nonzero(found.counts)
    c, x = found.counts[used], found.middle[used] / found.rms
    energy, moved = float(c @ (x * x)), found.moved
    low = np.array([_LADDERS[i].bounds[0] for i in _RAMPED])[:, None]
    width = np.array([_LADDERS[i].width for i in _RAMPED])[:, None]
    mean = np.clip((x - low) / width, 0.0, 1.0)
    marks, along, biased = mean @ c, mean @ (c * x), np.square(mean) @ c
    harm = _spoiled(energy, along, marks, biased, kappa)
    ramped = _priced(_RAMPED, (marks >= _FEWEST) & (along > 0), moved, marks[:, None], harm)
    step = np.array([_LADDERS[i].width for i in _EVEN])[:, None, None]
    levels = np.arange(1.0, _LEVELS + 1)
    share = np.maximum(0.0, 1.0 - np.abs(np.minimum(x / step, _LEVELS) - levels[:, None]))
    counts = share @ c
    mean = np.einsum("sjb,j->sb", share, levels)
    along, biased = mean @ (c * x), np.square(mean) @ c
    harm = _spoiled(energy, along, counts @ levels**2, biased, kappa)
    there = (counts.sum(axis=1) >= _FEWEST) & ((counts > 0).sum(axis=1) > 1) & (along > 0)
    return [ramped, _priced(_EVEN, there, moved, counts, harm)]


def _spoiled(energy: float, along: Floats, square: Floats, biased: Floats, kappa: float) -> Floats:
    """Noise and κ times bias, of choices with ⟨τ, w⟩, ‖w‖² and ‖the mean of w‖² as given, the scale being unbiased."""
    gain = energy / np.where(along > 0, along, np.inf)
    found: Floats = np.maximum(gain**2 * (square - biased + kappa * biased) / energy - kappa, 0.0)
    return found


def _hull(ladders: npt.NDArray[np.intp], bits: Floats, harm: Floats) -> list[Choice]:
    """The lower convex hull of harm over bits, by rising bits. Whatever λ is, the best choice lies on it."""
    order = np.lexsort((harm, bits))
    less = harm[order][1:] < np.minimum.accumulate(harm[order])[:-1]  # than all that take fewer bits
    order = np.concatenate([order[:1], order[1:][less]])
    hull: list[Choice] = []
    for choice in map(Choice._make, zip(*(each[order].tolist() for each in (ladders, bits, harm)), strict=True)):
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
    keys = list(offers)
    most = max(map(len, offers.values()), default=0)
    bits, harm = np.zeros((len(keys), most)), np.full((len(keys), most), np.inf)
    for row, key in enumerate(keys):
        offered = offers[key]
        bits[row, : len(offered)] = [choice.bits for choice in offered]
        harm[row, : len(offered)] = weights[key] * np.array([choice.harm for choice in offered])
    rows = np.arange(len(keys))

    def at(multiplier: float) -> tuple[float, npt.NDArray[np.intp]]:
        picked = np.argmin(harm + multiplier * bits, axis=1) if most else np.zeros(0, np.intp)
        return math.fsum(bits[rows, picked]), picked

    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        spent, _ = at(2.0**middle)
        low, high = (middle, high) if spent > budget else (low, middle)
    _, picked = at(2.0**high)
    return {key: offers[key][i] for key, i in zip(keys, picked.tolist(), strict=True)}


def _priced(
    ladders: Sequence[int], offered: npt.NDArray[np.bool_], moved: float, counts: Floats, harm: Floats
) -> Offered:
    """Choices with their cost, from how many parameters they put at each level: shape (choices, levels)."""
    marks = counts.sum(axis=1)
    every = np.concatenate([counts, np.maximum(moved - marks, 0.0)[:, None]], axis=1)
    entropy = -(every * np.log2(np.maximum(every, 1e-300) / moved)).sum(axis=1)
    bits = (entropy + marks) * _CODER + _TABLES[ladders]
    return np.asarray(ladders)[offered], bits[offered], harm[offered]
