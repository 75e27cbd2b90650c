"""What each quantizer costs a tensor and what it loses, from the histogram of its magnitudes alone.

Cost is entropy, in bits. Distortion (here `harm`) is what is added to the task vector once its scale is unbiased (see
`solo`): the variance of the noise, and κ times the square of what is the same for equal magnitudes (bias). Of several
hard levels that is what lies below the first one: what is rounded to one of them is off by as much in either direction.
At κ = 1 harm is the squared error, ‖τ‖²·‖w‖²/⟨τ,w⟩² − 1, and dither is never worth its bits. Nothing is coded to know
it.

Logarithms are made of the four operations, so that the same choices come of the same weights on every machine, with
native kernels and without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from tallstore.kernels.logarithm import log2
from tallstore.kernels.native import choices as native
from tallstore.kernels.registry import kernel
from tallstore.recipes.histogram import Floats, Magnitudes, added
from tallstore.recipes.quantizers import (
    ALL,
    CODER,
    CODERS,
    DITHERS,
    FEWEST,
    HARD,
    HARD_BOUNDS,
    LEVEL_BITS,
    LEVELS,
    LOW,
    OFFERED,
    RATE,
    SLOPE,
    TABLES,
    is_mask,
)

__all__ = ["Choices", "PrecisionChoice", "choices", "dithered", "fine", "hard", "hull_of", "prices"]


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

    def from_on(self, choice: PrecisionChoice) -> Choices:
        """A choice, and those of these that do less harm for more bits."""
        finer, first = (self.harm < choice.harm) & (self.bits > choice.bits), Choices.only(choice)
        pairs = (first.ladders, self.ladders), (first.bits, self.bits), (first.harm, self.harm)
        return Choices(*(np.concatenate([one, each[finer]]) for one, each in pairs))

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


@kernel
def choices(histogram: Magnitudes, kappa: float = 1.0) -> Choices:
    """The precisions on offer, with cost and harm: those that are the best for some price of a bit.

    `kappa`: how many times worse bias is than noise of the same energy.
    """
    if not histogram.energy:  # nothing moved, or by so little that it counts as nothing
        return Choices(OFFERED[:0], np.zeros(0), np.zeros(0))
    offered = hard(histogram, kappa)
    if kappa > 1:
        plain, random = offered, dithered(histogram, kappa)
        offered = np.concatenate([plain[0], random[0]]), np.concatenate([plain[1], random[1]])
    cost, harm = offered
    bits = _bits(cost, slice(len(cost)))
    best = hull_of(bits, harm)
    return Choices(OFFERED[best], bits[best], harm[best])


@choices.takes
def _(histogram: Magnitudes, kappa: float = 1.0) -> bool:  # noqa: ARG001 - the kernel's own arguments
    return bool(histogram.energy)


@choices.native
def _(histogram: Magnitudes, kappa: float = 1.0) -> Choices:
    order, bits, harm = native.offers(
        histogram.counts,
        histogram.middle,
        histogram.edges,
        histogram.among,
        histogram.energy,
        histogram.rms,
        kappa,
        ALL,
    )
    return Choices(OFFERED[order], bits[order], harm[order])


@kernel
def prices(histogram: Magnitudes, bounds: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Bits and harm of hard levels that begin at edges of bins, κ being 1; infinite harm where all are empty.

    `bounds`: of each choice, ascending, at most 127.
    """
    each = [_price(histogram, own) for own in bounds]
    return np.array([bits for bits, _ in each]), np.array([harm for _, harm in each])


@prices.takes
def _(histogram: Magnitudes, bounds: Sequence[Floats]) -> bool:  # noqa: ARG001 - likewise
    return bool(bounds)


@prices.native
def _(histogram: Magnitudes, bounds: Sequence[Floats]) -> tuple[Floats, Floats]:
    return native.price(
        histogram.counts,
        histogram.middle,
        histogram.edges,
        histogram.among,
        histogram.energy,
        bounds,
        CODER,
        LEVEL_BITS,
    )


def _price(histogram: Magnitudes, bounds: Floats) -> tuple[float, float]:
    at = np.concatenate([np.searchsorted(histogram.edges, bounds), [len(histogram.counts)]])
    upto = np.concatenate([[0.0], np.cumsum(histogram.counts)])
    total_upto = np.concatenate([[0.0], np.cumsum(histogram.counts * histogram.middle)])
    counts, totals = np.diff(upto[at]), np.diff(total_upto[at])
    kept = float(added(totals * totals / np.maximum(counts, 1e-300)))
    _, cost = _cost(counts[None], histogram.among)
    bits = float(cost[0]) * CODER + LEVEL_BITS * len(bounds)
    return bits, max(histogram.energy / kept - 1, 0.0) if kept > 0 else math.inf


def fine(histogram: Magnitudes, bound: float) -> PrecisionChoice | None:
    """Of the hard choices with several levels the one whose first begins nearest to `bound` root mean squares."""
    if not histogram.energy:
        return None
    nearest = _nearest(bound)
    row = slice(nearest, nearest + 1)
    cost, harm = hard(histogram, 1.0, row)
    if not math.isfinite(harm[0]):
        return None
    return PrecisionChoice(int(OFFERED[nearest]), float(_bits(cost, row)[0]), float(harm[0]))


@cache
def _nearest(bound: float) -> int:
    several = [row for row, i in enumerate(HARD) if not is_mask(i)]
    return min(several, key=lambda row: abs(float(HARD_BOUNDS[row, 0]) - bound))


def _bits(cost: Floats, rows: slice) -> Floats:
    """What choices take in all, in bits: those of `OFFERED` that `rows` says."""
    bits: Floats = cost * CODERS[rows] + TABLES[rows]
    return bits


Offered = tuple[Floats, Floats]
"""Of some choices: entropy and signs in bits, and harm, infinite where a choice is not offered. Shape (choices,)."""


@kernel
def hard(histogram: Magnitudes, kappa: float, rows: slice = slice(None)) -> Offered:
    """Cost and harm of choices without dither, those of `rows`."""
    bounds = HARD_BOUNDS[rows]
    counted, among, energy, rms = histogram.counts, histogram.among, histogram.energy, histogram.rms
    tail = np.concatenate([np.cumsum(counted[::-1])[::-1], [0.0]])
    tail_total = np.concatenate([np.cumsum((counted * histogram.middle)[::-1])[::-1], [0.0]])
    at = np.searchsorted(histogram.edges, bounds * rms)
    at = np.concatenate([at, np.full((len(at), 1), len(counted))], axis=1)
    counts = tail[at[:, :-1]] - tail[at[:, 1:]]
    totals = tail_total[at[:, :-1]] - tail_total[at[:, 1:]]
    several = np.isfinite(bounds[:, 1])
    kept = added(totals * totals / np.maximum(counts, 1e-300))
    marks, cost = _cost(counts, among)
    offered = (marks >= FEWEST) & (kept > 0) & (~several | ((counts > 0).sum(axis=1) > 1))
    spread = np.maximum(energy / np.where(kept > 0, kept, np.inf) - 1, 0.0)
    under = np.concatenate([[0.0], np.cumsum(counted * (histogram.middle * histogram.middle))])
    harm = np.where(several, spread + (kappa - 1) * (under[at[:, 0]] / energy), kappa * spread)
    return cost, np.where(offered, harm, np.inf)


@hard.native
def _(histogram: Magnitudes, kappa: float, rows: slice = slice(None)) -> Offered:
    counts, middle, edges, bounds = histogram.counts, histogram.middle, histogram.edges, HARD_BOUNDS[rows]
    return native.hard(counts, middle, edges, bounds, histogram.among, histogram.energy, histogram.rms, kappa, FEWEST)


@kernel
def dithered(histogram: Magnitudes, kappa: float) -> Offered:
    """Cost and harm of choices with dither: first those with one level."""
    c, x, among = histogram.counts, histogram.middle / histogram.rms, histogram.among
    cx, energy = c * x, float(added(c * x * x))
    c, x, cx = c[:, None], x[:, None], cx[:, None]
    mean = np.clip((x - LOW) * SLOPE, 0.0, 1.0)
    marks, along, biased = _rows_added(mean * c), _rows_added(mean * cx), _rows_added(mean * mean * c)
    known = _KnownDither(histogram)
    cost = marks + among * known.of_ramps()
    offered = (marks >= FEWEST) & (along > 0)
    harm = np.where(offered, _spoiled(energy, along, marks, biased, kappa), np.inf)
    ramped = cost, harm
    mean = np.minimum(x * RATE, LEVELS)
    along, biased = _rows_added(mean * cx), _rows_added(mean * mean * c)
    # A magnitude between two levels is at one or the other; a level's sum begins with what lies below it.
    level = np.floor(mean)
    cell = level.astype(np.intp) + (LEVELS + 2) * np.arange(len(RATE))
    shares = np.stack([(1.0 - np.abs(mean - (level + 1))) * c, (1.0 - (mean - level)) * c])
    shared = np.bincount(np.stack([cell + 1, cell]).reshape(-1), shares.reshape(-1), (LEVELS + 2) * len(RATE))
    counts = shared.astype(np.float64, copy=False).reshape(len(RATE), -1)[:, 1 : LEVELS + 1]
    marks = added(counts)
    cost = marks + among * known.of_evens()
    offered = (marks >= FEWEST) & ((counts > 0).sum(axis=1) > 1) & (along > 0)
    square = added(counts * np.square(np.arange(1.0, LEVELS + 1)))
    harm = np.where(offered, _spoiled(energy, along, square, biased, kappa), np.inf)
    return np.concatenate([ramped[0], cost]), np.concatenate([ramped[1], harm])


class _KnownDither:
    """Entropy of whether an element has a mark, or which level it has, given its dither: see `kernels.known_dither`.

    How many magnitudes are above a threshold changes at the middles of bins; all are in root mean squares.
    """

    def __init__(self, histogram: Magnitudes) -> None:
        self._x = histogram.middle / histogram.rms
        share = np.cumsum(histogram.counts[::-1])[::-1] / histogram.among
        self._share = np.concatenate([share, [0.0]])
        says = information(share) + information(1.0 - share)
        self._upto = np.concatenate([[0.0], np.cumsum(says * np.diff(self._x, prepend=0.0))])
        self._says, self._below = np.concatenate([says, [0.0]]), np.concatenate([[0.0], self._x])

    def of_ramps(self) -> Floats:
        """In bits an element, of each choice with one level.

        With dither u a mark says that |τ| ≥ t, t = low + u·width: the mean over u of what that says is one over t.
        """
        known: Floats = (self._integral(LOW + 1 / SLOPE) - self._integral(LOW)) * SLOPE
        return known

    def _integral(self, t: Floats) -> Floats:
        at = np.searchsorted(self._x, t)
        whole: Floats = self._upto[at] + self._says[at] * (t - self._below[at])
        return whole

    def of_evens(self) -> Floats:
        """The same of each choice with several levels: level j is |τ| ≥ (j − 1 + u)·step; the mean of some u."""
        at = (np.arange(LEVELS) + DITHERS[:, None]) / RATE[:, None, None]
        above = self._share[np.searchsorted(self._x, at)]
        ends = np.ones((len(RATE), len(DITHERS), 1))
        shares = np.concatenate([ends, above], axis=2) - np.concatenate([above, 0 * ends], axis=2)
        known: Floats = added(added(information(shares))) / len(DITHERS)
        return known


def information(share: Floats) -> Floats:
    """−p · log2 p, 0 of what is not above 0."""
    bits: Floats = -(share * log2(np.where(share > 0, share, 1.0)))
    return bits


@dithered.native
def _(histogram: Magnitudes, kappa: float) -> Offered:
    x = histogram.middle / histogram.rms
    return native.dithered(histogram.counts, x, LOW, SLOPE, RATE, DITHERS, LEVELS, histogram.among, kappa, FEWEST)


def _spoiled(energy: float, along: Floats, square: Floats, biased: Floats, kappa: float) -> Floats:
    """Noise and κ times bias, of choices with ⟨τ, w⟩, ‖w‖² and ‖the mean of w‖² as given, the scale being unbiased."""
    gain = energy / np.where(along > 0, along, np.inf)
    distortion: Floats = np.maximum(gain * gain * (square - biased + kappa * biased) / energy - kappa, 0.0)
    return distortion


def _cost(counts: Floats, among: float) -> tuple[Floats, Floats]:
    """Marks, and their entropy and signs in bits, from how many parameters there are at each level.

    `counts`: shape (choices, levels). What is returned: shape (choices,).
    """
    marks = added(counts)
    every = np.concatenate([counts, np.maximum(among - marks, 0.0)[:, None]], axis=1)
    return marks, marks - added(every * log2(np.where(every > 0, every / among, 1.0)))


@kernel
def hull_of(bits: Floats, harm: Floats) -> npt.NDArray[np.intp]:
    """Which choices are on the lower convex hull of harm over bits, by rising bits: the best one is, whatever λ is.

    Of choices with the same bits and harm the first; of those with infinite harm none.
    """
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


@hull_of.native
def _(bits: Floats, harm: Floats) -> npt.NDArray[np.intp]:
    return native.hull(np.ascontiguousarray(bits), np.ascontiguousarray(harm))


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether `middle`, bits and harm, lies on or above the line from `left` to `right`."""
    rise = (right[1] - left[1]) * (middle[0] - left[0])
    return (middle[1] - left[1]) * (right[0] - left[0]) >= rise


def _rows_added(values: Floats) -> Floats:
    """The sum of rows, row after row. numpy takes another order only along the axis that lies together in memory."""
    total: Floats = np.add.reduce(np.ascontiguousarray(values), axis=0)
    return total
