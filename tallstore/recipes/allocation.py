"""Where bits do the most good: a choice for every task and tensor that meets a budget and loses the least function.

Each task vector is coded by itself, at one of several precisions: signs above a threshold, or a few levels; hard, or
with dither (see `dither`), which makes more error that is all noise. From a histogram of magnitudes both cost (entropy,
in bits) and harm of each choice follow without coding anything. Harm is what is added to the task vector once its scale
is unbiased (see `solo`): the variance of the noise, and κ times the square of what is the same for equal magnitudes
(bias). At κ = 1 it is the squared error, ‖τ‖²·‖w‖²/⟨τ,w⟩² − 1, and dither is never worth its bits.

One multiplier λ trades the two off for all tensors alike (Shoham and Gersho 1988): the budget decides λ.

Everything is added up one after the other, and logarithms are made of the four operations, so that the same choices
come of the same weights on every machine, with compiled kernels and without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tallstore.kernels.logarithm import log2
from tallstore.kernels.native import choices as native
from tallstore.kernels.native import encode

__all__ = [
    "BINS",
    "EDGES",
    "ENTRY_BITS",
    "NARROW",
    "SHIFT",
    "Choices",
    "Floats",
    "Magnitudes",
    "PrecisionChoice",
    "Quantizer",
    "add_up",
    "allocate",
    "allocate_within",
    "choices",
    "fine",
    "hull_of",
    "is_mask",
    "ladders",
    "levels_of",
    "magnitudes",
    "prices",
]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

SHIFT = 18
"""Of |τ| as a word, to its bin."""
BINS = 1 << (31 - SHIFT)
"""Bins of a histogram: the exponent of a float32 and the upper five bits of its mantissa, 32 to the octave."""
_K = TypeVar("_K", bound=Hashable)
_FINITE = 0x7F800000 >> SHIFT
_WORDS = np.minimum(np.arange(BINS, dtype=np.uint32), _FINITE - 1) << SHIFT
EDGES = _WORDS.view(np.float32).astype(np.float64)
_MIDDLE = (EDGES * (1 + 2.0**-6)).astype(np.float64)
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
NARROW = 2
"""Bytes that types of few bits have at most."""
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


class Quantizer(NamedTuple):
    """Where magnitudes become levels: |τ| is at level i+1 from bounds[i] + u·width on, u uniform in [0, 1)."""

    bounds: tuple[float, ...]
    width: float = 0.0
    """0: hard. For several levels it is otherwise the step between them."""
    least: bool = False
    """Whether they stand for what leaves the least squared error, and not for what is unbiased."""


_LADDERS: tuple[Quantizer, ...] = (
    *(Quantizer((threshold,)) for threshold in _THRESHOLDS),
    *(Quantizer(tuple(b for b in (step * (_DEAD_ZONE + i) for i in range(_LEVELS)) if b < _REACH)) for step in _STEPS),
    *(Quantizer((foot * top,), (1 - 2 * foot) * top) for top in _RAMPS for foot in _FEET),
    *(Quantizer(tuple(step * i for i in range(_LEVELS)), step) for step in _EVEN_STEPS),
)
"""Every precision on offer, in root mean squares. The first one marks all that moved."""
_HARD = [i for i, ladder in enumerate(_LADDERS) if not ladder.width]
_RAMPED = [i for i, ladder in enumerate(_LADDERS) if ladder.width and len(ladder.bounds) == 1]
_RAMPED.sort(key=lambda i: _LADDERS[i].bounds[0])
_EVEN = [i for i, ladder in enumerate(_LADDERS) if ladder.width and len(ladder.bounds) > 1]
_OFFERED = np.array([*_HARD, *_RAMPED, *_EVEN])
"""The order in which choices are looked at; those with dither and one level by where their marks begin."""
_HARD_BOUNDS = np.array([(*_LADDERS[i].bounds, *([np.inf] * _LEVELS))[:_LEVELS] for i in _HARD])
"""Shape (hard choices, levels): infinite where a choice has fewer."""
_LOW = np.array([_LADDERS[i].bounds[0] for i in _RAMPED])
_SLOPE = 1 / np.array([_LADDERS[i].width for i in _RAMPED])
"""Of choices with dither and one level: where marks begin, ascending, and how much likelier they get from there on."""
_RATE = 1 / np.array([_LADDERS[i].width for i in _EVEN])
"""Of choices with dither and several levels: levels a root mean square."""
_LEVEL = 64.0
"""Bits that a level takes in a choice's table."""
_TABLES = np.array([0.0 if len(_LADDERS[i].bounds) == 1 else _LEVEL * len(_LADDERS[i].bounds) for i in _OFFERED])
"""Bits that a choice's table takes, in the order of `_OFFERED`."""
_ALL = native.Ladders(_HARD_BOUNDS, _LOW, _SLOPE, _RATE, _LEVELS, _TABLES, _CODER, _FEWEST)


@dataclass
class Magnitudes:
    """Histogram of |τ| of one tensor of one task, over the parameters that moved at all."""

    counts: Floats = field(default_factory=lambda: np.zeros(0))
    """Of the bins from `first` on. The rest, most of them by far, are empty."""
    first: int = 0
    base_energy: float = 0.0
    """Σ θ0² where τ ≠ 0."""
    still: float = 0.0
    """Parameters that did not move, in a type of few bits: they lie scattered, and marks tell which did."""
    _sums: tuple[float, float] | None = field(default=None, init=False, repr=False, compare=False)
    """`moved` and `energy`, once one of them was asked for, and until they change."""

    def of(self, n: int, *, narrow: bool) -> Magnitudes:
        """The same of n parameters, not scaled yet."""
        return replace(self, still=n - float(self.counts.sum())) if narrow else self

    def add(self, other: Magnitudes) -> None:
        """Add another run of the same tensor."""
        self._sums = None
        self.base_energy += other.base_energy
        self.still += other.still
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

    @property
    def edges(self) -> Floats:
        """The lower edge of each bin."""
        return EDGES[self.first : self.first + len(self.counts)]

    def scale(self, weight: float) -> None:
        """Let every parameter that was counted stand for so many."""
        if weight != 1.0:
            self._sums = None
            self.counts *= weight
            self.base_energy *= weight
            self.still *= weight

    def _moved_and_energy(self) -> tuple[float, float]:
        if self._sums is None:
            energy = self.counts * np.square(self.middle)
            self._sums = (float(_added(self.counts)), float(_added(energy))) if len(energy) else (0.0, 0.0)
        return self._sums

    @property
    def energy(self) -> float:
        """Σ τ²."""
        return self._moved_and_energy()[1]

    @property
    def moved(self) -> float:
        """Parameters that moved."""
        return self._moved_and_energy()[0]

    @property
    def among(self) -> float:
        """Parameters that marks are among."""
        return self.moved + self.still

    @property
    def rms(self) -> float:
        """Root mean square of those."""
        moved = self.moved
        return math.sqrt(self.energy / moved) if moved else 0.0

    @property
    def change(self) -> float:
        """‖τ‖² by ‖θ0‖², over the parameters that moved: at most 1."""
        return min(1.0, self.energy / self.base_energy) if self.base_energy else 1.0

    @property
    def weight(self) -> float:
        """How much a relative error in this tensor counts: parameters that moved, by how far for their size."""
        return self.moved * math.sqrt(self.change)


def magnitudes(tau: Singles, base: Singles, *, narrow: bool = False) -> Magnitudes:
    """Count |τ|, shape (N,), beside the base's values. `narrow`: of a type of few bits."""
    if encode.available():
        return Magnitudes(*encode.tally(tau, base, SHIFT, BINS)).of(len(tau), narrow=narrow)
    bins = (np.abs(tau).view(np.uint32) >> SHIFT).astype(np.intp)
    counts = np.bincount(bins, minlength=BINS).astype(np.float64)
    moved, base_energy = np.count_nonzero(tau), add_up(np.square(base * (tau != 0), dtype=np.float64))
    counts[0] -= len(tau) - moved
    (used,) = np.nonzero(counts)
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    return Magnitudes(counts[first:last].copy(), first, float(base_energy)).of(len(tau), narrow=narrow)


def _added(values: Floats) -> Floats:
    """Sums over the last axis, which are added up one after the other: `sum` leaves open in which order."""
    found: Floats = np.cumsum(values, axis=-1)[..., -1]
    return found


def _rows_added(values: Floats) -> Floats:
    """The sum of rows, row after row. numpy takes another order only along the axis that lies together in memory."""
    found: Floats = np.add.reduce(np.ascontiguousarray(values), axis=0)
    return found


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


class PrecisionChoice(NamedTuple):
    """One precision for one tensor."""

    ladder: int
    """Index into the precisions on offer: see `levels_of`."""
    bits: float
    harm: float


@dataclass(frozen=True, slots=True, eq=False)
class Choices(Sequence[PrecisionChoice]):
    """Those that one tensor is offered, by rising bits: one or more. There are thousands, hence arrays."""

    ladders: npt.NDArray[np.intp]
    bits: Floats
    harm: Floats
    """Each of shape (choices,)."""

    @classmethod
    def only(cls, choice: PrecisionChoice) -> Choices:
        """One, where there is nothing to choose."""
        return cls(np.array([choice.ladder], np.intp), np.array([choice.bits]), np.array([choice.harm]))

    def __len__(self) -> int:
        return len(self.ladders)

    @overload
    def __getitem__(self, at: int) -> PrecisionChoice: ...

    @overload
    def __getitem__(self, at: slice) -> Choices: ...

    def __getitem__(self, at: int | slice) -> PrecisionChoice | Choices:
        if isinstance(at, slice):
            return Choices(self.ladders[at], self.bits[at], self.harm[at])
        return PrecisionChoice(int(self.ladders[at]), float(self.bits[at]), float(self.harm[at]))


def levels_of(ladder: int, rms: float) -> Quantizer:
    """What a choice means for a tensor. One bound: a mask."""
    relative = _LADDERS[ladder]
    if relative.width:
        return Quantizer(
            tuple(float(np.float32(b * rms)) for b in relative.bounds), float(np.float32(relative.width * rms))
        )
    return Quantizer(tuple(EDGES[np.searchsorted(EDGES, np.array(relative.bounds) * rms)].tolist()))


def is_mask(ladder: int) -> bool:
    """Whether a choice is a mask, and not levels of one's own."""
    return len(_LADDERS[ladder].bounds) == 1


def choices(found: Magnitudes, kappa: float = 1.0) -> Choices:
    """The precisions on offer, with cost and harm: those that are the best for some price of a bit.

    `kappa`: how many times worse bias is than noise of the same energy.
    """
    if not found.energy:  # nothing moved, or by so little that it counts as nothing
        return Choices(_OFFERED[:0], np.zeros(0), np.zeros(0))
    if native.available():
        order, bits, harm = native.offers(
            found.counts, found.middle, found.edges, found.among, found.energy, found.rms, kappa, _ALL
        )
        return Choices(_OFFERED[order], bits[order], harm[order])
    offered = _hard(found, kappa)
    if kappa > 1:
        hard, dithered = offered, _dithered(found, kappa)
        offered = np.concatenate([hard[0], dithered[0]]), np.concatenate([hard[1], dithered[1]])
    cost, harm = offered
    bits = _bits(cost, slice(len(cost)))
    best = _hull(bits, harm)
    return Choices(_OFFERED[best], bits[best], harm[best])


def prices(found: Magnitudes, bounds: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Bits and harm of hard levels that begin at edges of bins, κ being 1; infinite harm where all are empty.

    `bounds`: of each choice, ascending, at most 127.
    """
    if native.available() and bounds:
        return native.price(found.counts, found.middle, found.edges, found.among, found.energy, bounds, _CODER, _LEVEL)
    each = [_price(found, own) for own in bounds]
    return np.array([bits for bits, _ in each]), np.array([harm for _, harm in each])


def _price(found: Magnitudes, bounds: Floats) -> tuple[float, float]:
    at = np.concatenate([np.searchsorted(found.edges, bounds), [len(found.counts)]])
    upto = np.concatenate([[0.0], np.cumsum(found.counts)])
    total_upto = np.concatenate([[0.0], np.cumsum(found.counts * found.middle)])
    counts, totals = np.diff(upto[at]), np.diff(total_upto[at])
    kept = float(_added(totals * totals / np.maximum(counts, 1e-300)))
    _, cost = _cost(counts[None], found.among)
    bits = float(cost[0]) * _CODER + _LEVEL * len(bounds)
    return bits, max(found.energy / kept - 1, 0.0) if kept > 0 else math.inf


def ladders() -> int:
    """How many precisions there are that `levels_of` knows."""
    return len(_LADDERS)


def hull_of(bits: Floats, harm: Floats) -> npt.NDArray[np.intp]:
    """Which of some choices are the best for some price of a bit, by rising bits."""
    return _hull(np.ascontiguousarray(bits), np.ascontiguousarray(harm))


def fine(found: Magnitudes, bound: float) -> PrecisionChoice | None:
    """Of the hard choices with several levels the one whose first begins nearest to `bound` root mean squares."""
    if not found.energy:
        return None
    nearest = _nearest(bound)
    row = slice(nearest, nearest + 1)
    cost, harm = _hard(found, 1.0, row)
    if not math.isfinite(harm[0]):
        return None
    return PrecisionChoice(int(_OFFERED[nearest]), float(_bits(cost, row)[0]), float(harm[0]))


@cache
def _nearest(bound: float) -> int:
    several = [row for row, i in enumerate(_HARD) if not is_mask(i)]
    return min(several, key=lambda row: abs(float(_HARD_BOUNDS[row, 0]) - bound))


def _bits(cost: Floats, rows: slice) -> Floats:
    """What choices take in all, in bits: those of `_OFFERED` that `rows` says."""
    found: Floats = cost * _CODER + _TABLES[rows]
    return found


Offered = tuple[Floats, Floats]
"""Of some choices: entropy and signs in bits, and harm, infinite where a choice is not offered. Shape (choices,)."""


def _hard(found: Magnitudes, kappa: float, rows: slice = slice(None)) -> Offered:
    bounds = _HARD_BOUNDS[rows]
    counted, among, energy, rms = found.counts, found.among, found.energy, found.rms
    if native.available():
        return native.hard(counted, found.middle, found.edges, bounds, among, energy, rms, kappa, _FEWEST)
    tail = np.concatenate([np.cumsum(counted[::-1])[::-1], [0.0]])
    tail_total = np.concatenate([np.cumsum((counted * found.middle)[::-1])[::-1], [0.0]])
    at = np.searchsorted(found.edges, bounds * rms)
    at = np.concatenate([at, np.full((len(at), 1), len(counted))], axis=1)
    counts = tail[at[:, :-1]] - tail[at[:, 1:]]
    totals = tail_total[at[:, :-1]] - tail_total[at[:, 1:]]
    several = np.isfinite(bounds[:, 1])
    kept = _added(totals * totals / np.maximum(counts, 1e-300))
    marks, cost = _cost(counts, among)
    offered = (marks >= _FEWEST) & (kept > 0) & (~several | ((counts > 0).sum(axis=1) > 1))
    harm = kappa * np.maximum(energy / np.where(kept > 0, kept, np.inf) - 1, 0.0)
    return cost, np.where(offered, harm, np.inf)


def _dithered(found: Magnitudes, kappa: float) -> Offered:
    """The same of choices with dither: first those with one level."""
    c, x, among = found.counts, found.middle / found.rms, found.among
    if native.available():
        return native.dithered(c, x, _LOW, _SLOPE, _RATE, _LEVELS, among, kappa, _FEWEST)
    cx, energy = c * x, float(_added(c * x * x))
    c, x, cx = c[:, None], x[:, None], cx[:, None]
    mean = np.clip((x - _LOW) * _SLOPE, 0.0, 1.0)
    marks, along, biased = _rows_added(mean * c), _rows_added(mean * cx), _rows_added(mean * mean * c)
    _, cost = _cost(marks[:, None], among)
    offered = (marks >= _FEWEST) & (along > 0)
    harm = np.where(offered, _spoiled(energy, along, marks, biased, kappa), np.inf)
    ramped = cost, harm
    mean = np.minimum(x * _RATE, _LEVELS)
    along, biased = _rows_added(mean * cx), _rows_added(mean * mean * c)
    # A magnitude between two levels is at one or the other; a level's sum begins with what lies below it.
    level = np.floor(mean)
    cell = level.astype(np.intp) + (_LEVELS + 2) * np.arange(len(_RATE))
    shares = np.stack([(1.0 - np.abs(mean - (level + 1))) * c, (1.0 - (mean - level)) * c])
    added = np.bincount(np.stack([cell + 1, cell]).reshape(-1), shares.reshape(-1), (_LEVELS + 2) * len(_RATE))
    counts = added.astype(np.float64, copy=False).reshape(len(_RATE), -1)[:, 1 : _LEVELS + 1]
    marks, cost = _cost(counts, among)
    offered = (marks >= _FEWEST) & ((counts > 0).sum(axis=1) > 1) & (along > 0)
    square = _added(counts * np.square(np.arange(1.0, _LEVELS + 1)))
    harm = np.where(offered, _spoiled(energy, along, square, biased, kappa), np.inf)
    return np.concatenate([ramped[0], cost]), np.concatenate([ramped[1], harm])


def _spoiled(energy: float, along: Floats, square: Floats, biased: Floats, kappa: float) -> Floats:
    """Noise and κ times bias, of choices with ⟨τ, w⟩, ‖w‖² and ‖the mean of w‖² as given, the scale being unbiased."""
    gain = energy / np.where(along > 0, along, np.inf)
    found: Floats = np.maximum(gain * gain * (square - biased + kappa * biased) / energy - kappa, 0.0)
    return found


def _cost(counts: Floats, among: float) -> tuple[Floats, Floats]:
    """Marks, and their entropy and signs in bits, from how many parameters there are at each level.

    `counts`: shape (choices, levels). What is returned: shape (choices,).
    """
    marks = _added(counts)
    every = np.concatenate([counts, np.maximum(among - marks, 0.0)[:, None]], axis=1)
    return marks, marks - _added(every * log2(np.where(every > 0, every / among, 1.0)))


def _hull(bits: Floats, harm: Floats) -> npt.NDArray[np.intp]:
    """Which choices are on the lower convex hull of harm over bits, by rising bits: the best one is, whatever λ is.

    Of choices with the same bits and harm the first; of those with infinite harm none.
    """
    if native.available():
        return native.hull(bits, harm)
    order = np.lexsort((harm, bits))
    order = order[np.isfinite(harm[order])]
    less = harm[order][1:] < np.minimum.accumulate(harm[order])[:-1]  # than all that take fewer bits
    order = np.concatenate([order[:1], order[1:][less]])
    hull: list[int] = []
    b, h = bits.tolist(), harm.tolist()
    for i in order.tolist():
        while len(hull) > 1 and _above(*((b[k], h[k]) for k in (*hull[-2:], i))):
            hull.pop()
        hull.append(i)
    return np.array(hull, np.intp)


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether `middle`, bits and harm, lies on or above the line from `left` to `right`."""
    rise = (right[1] - left[1]) * (middle[0] - left[0])
    return (middle[1] - left[1]) * (right[0] - left[0]) >= rise


def allocate(offers: Mapping[_K, Choices], weights: Mapping[_K, float], budget: float) -> dict[_K, PrecisionChoice]:
    """For every key one choice, all within `budget` bits if that can be, at the least weighted harm."""
    return _allocate(offers, weights, lambda bits, _: bits > budget)


def allocate_within(
    offers: Mapping[_K, Choices], weights: Mapping[_K, float], most: float
) -> dict[_K, PrecisionChoice]:
    """For every key one choice, their weighted harm at most `most` if that can be, at the fewest bits."""
    return _allocate(offers, weights, lambda _, harm: harm <= most, dearest=True)


def _allocate(
    offers: Mapping[_K, Choices],
    weights: Mapping[_K, float],
    lower: Callable[[float, float], bool],
    *,
    dearest: bool = False,
) -> dict[_K, PrecisionChoice]:
    """The choices at one price of a bit: the least from which on `lower` is not so, or the greatest where it still is.

    `lower` is asked with the bits and the weighted harm that a price makes; it is so for low prices, if for any.
    """
    if not offers:
        return {}
    lengths = [len(offered) for offered in offers.values()]
    starts = np.cumsum([0, *lengths[:-1]])
    bits = np.concatenate([offered.bits for offered in offers.values()])
    harm = np.concatenate([offered.harm for offered in offers.values()])
    harm *= np.repeat([weights[key] for key in offers], lengths)

    def at(multiplier: float) -> npt.NDArray[np.intp]:
        """The best choice of each key: the first, if several are."""
        price = harm + multiplier * bits
        (best,) = np.nonzero(price == np.repeat(np.minimum.reduceat(price, starts), lengths))
        found: npt.NDArray[np.intp] = best[np.searchsorted(best, starts)]
        return found

    low, high = _PRICES
    for _ in range(60):
        middle = (low + high) / 2
        picked = at(2.0**middle)
        low, high = (middle, high) if lower(math.fsum(bits[picked]), math.fsum(harm[picked])) else (low, middle)
    best = (at(2.0 ** (low if dearest else high)) - starts).tolist()
    return {key: offered[i] for (key, offered), i in zip(offers.items(), best, strict=True)}


_PRICES = (-60.0, 60.0)
"""Binary logarithms of the prices of a bit that are tried."""
