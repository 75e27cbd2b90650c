"""What keeping a share of the changes costs and spoils: `solo`'s choices in float types beside marks.

Of the elements whose base has an exponent e, a share p of the changes x is kept, and rounded at random to multiples
of a step σ; a multiple stands for the width W = σ/p: see `kernels.dare`. With n elements, q = E[x²] and r the
fraction of |x|/σ,

    bits = n · p · H(σ),     noise = q · (1/p − 1) + p · W² · E[r(1 − r)]

where H is the entropy of a multiple, given the number u in [0, 1) by which it is rounded, up where r > u. Where changes
of a step and more are rounded to the nearest multiple, min(r, 1 − r)² is in the place of their r(1 − r). At a price λ
of a bit, a step's best share is

    p = √((q + σ² · E[r(1 − r)]) / (λ · H(σ)))

or 1, and each exponent has the step and the width that are the best for the price. There is no bias, so that κ does
not matter. A tensor's harm is Σ n · noise / Σ n · q. Everything is counted in whole numbers, or added up one after
the other, so that the same is chosen on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.kernels.conversion import to_bf16
from tallstore.kernels.dare import SHARES, Sampling
from tallstore.kernels.lattice import LEVELS, Bytes
from tallstore.kernels.logarithm import log2
from tallstore.kernels.native import sampled as native
from tallstore.kernels.registry import kernel
from tallstore.recipes.histogram import added
from tallstore.recipes.rate_distortion import hull_of

__all__ = ["LevelCosts", "SampledPrecision", "changes_by_bin", "costs_of_steps", "counted", "offers"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_SLOPES = np.ldexp(np.where(np.arange(41) % 2, math.sqrt(2), 1.0), 16 - (np.arange(41) + 1) // 2)
"""Prices of a bit, by what a bit of the dearest level's saves if all is kept: by quarters of an octave of shares, from
about 2^(−8) on."""
_LEAST_BITS = 1e-6
"""Levels whose elements take less on the average are not asked for prices."""
_UNEVEN = 1.5
"""How many times as bad noise is behind a product, at least, and for each time that it has the changes' energy: what is
left is smaller, so that fewer elements are kept and each stands for more; rows that the product does not tell of have
more of the noise. On real tunes the KL on the task was 1.3 to 1.8 times what it is without at the same noise; and where
few elements were kept, up to ten times, by what was drawn."""
_MOST_WIDTH = 3.3e38
"""That a bfloat16 holds."""
_HEAD = 8 * 300
"""Bits that a tensor takes beside what is kept, about: heads, tables, lanes."""

_LEAST, _OCTAVES = -16, 34
"""Changes are counted from units of 2^_LEAST on."""
_BINS = 32
"""To the octave: sixteenths, and what lies between them, by turns. So small whole numbers have bins of their own."""
_MIDDLE = 1 + np.arange(_BINS) / _BINS
_VALUES = (2.0 ** np.arange(_LEAST, _LEAST + _OCTAVES)[:, None] * _MIDDLE).reshape(-1)
"""What each bin stands for."""

_CLASSES, _TRIED, _DIRECT = 8, 2, 16
"""Classes of the number u that a coder tells apart, about; how many numbers are tried of each; and magnitudes of
multiples that are counted for each class, larger ones being counted for all, by half octaves."""
_OPEN = np.arange(3, 14).repeat(2)
"""Bits that half octaves leave open."""
_PHASES = (1.0, 1.5)
"""Steps are these times powers of two."""
_MOST_STEPS = 8 * len(_PHASES)
"""That are tried of one level."""
_EXPONENT = np.int64(0x7FF << 52)
"""Of a float64: what is left without the others is the power of two at or below it."""


def _bins_above(*, nearest: bool) -> npt.NDArray[np.intp]:
    """Of steps of `_PHASES` and all bounds of multiples, the first bin above, counted from that of a unit on.

    The bounds: of 1 … _DIRECT by u, then of half octaves. Shape (phases, _DIRECT · _CLASSES · _TRIED + half octaves).
    `nearest`: whatever u is, from 2 on.
    """
    u = np.tile((np.arange(_CLASSES * _TRIED) + 0.5) / (_CLASSES * _TRIED), (_DIRECT, 1))
    u[1:] = 0.5 if nearest else u[1:]
    direct = (np.arange(_DIRECT)[:, None] + u).reshape(-1)
    halves = (2.0 ** np.arange(4, 15)[:, None] * _PHASES).reshape(-1)[1:] - 0.5
    bounds = np.concatenate([direct, halves])
    return np.stack([np.searchsorted(_VALUES, phase * bounds, side="right") for phase in _PHASES]) + _LEAST * _BINS


_ABOVE, _ABOVE_NEAREST = _bins_above(nearest=False), _bins_above(nearest=True)


class SampledPrecision(NamedTuple):
    """How a tensor is coded of which a share of the changes is kept."""

    sampling: Sampling
    step: float = 0.0
    """That of the numbers of what rows have in common, which is coded first: see `low_rank`; 0 where nothing is."""


@dataclass(frozen=True, kw_only=True)
class LevelCosts:
    """A sample of a tensor's changes, by the exponent of the base's elements."""

    low: int
    """The exponent of level 0; the first and the last level have all that lie beyond."""
    dtype: str
    """One of `kernels.dare.TYPES`."""
    times: float
    """Elements of the tensor that one stands for."""
    unit: Floats
    """Of each level, what its changes are counted in: shape (LEVELS,)."""
    elements: Integers
    """Shape (LEVELS,)."""
    power: Floats
    """Their changes' mean square, by that of a level's unit in the last place: shape (LEVELS,)."""
    bins: npt.NDArray[np.int16]
    """Those of changes that occur, level by level, `_BINS` to the octave: shape (k,)."""
    counts: npt.NDArray[np.int32]
    """How many changes are in each: shape (k,)."""
    step: float = 0.0
    """Of what is coded of the changes first: see `SampledPrecision`. These are the others."""
    common_bits: float = 0.0
    """What that takes."""
    left: float = 1.0
    """The share of the changes' square that these have."""
    nearest: bool = False
    """See `kernels.dare.Sampling`."""


def counted(
    dtype: str, low: int, levels: Bytes, change: npt.NDArray[np.float32], times: float, unit: Floats
) -> LevelCosts:
    """Count changes.

    Args:
        dtype: one of `kernels.dare.TYPES`.
        low: the exponent of level 0.
        levels: of each element, shape (n,).
        change: their magnitudes, finite.
        times: elements that one stands for.
        unit: of each level, what changes are counted in: powers of two.
    """
    by_bin, power = changes_by_bin(levels, change, unit)
    elements, counts = by_bin.sum(1), by_bin[:, :-1].reshape(-1)
    (found,) = np.nonzero(counts)
    return LevelCosts(
        low=low,
        dtype=dtype,
        times=times,
        unit=unit,
        elements=elements,
        power=power / np.maximum(elements, 1),
        bins=found.astype(np.int16),
        counts=counts[found],
    )


@kernel
def changes_by_bin(
    levels: Bytes, change: npt.NDArray[np.float32], unit: Floats
) -> tuple[npt.NDArray[np.int32], Floats]:
    """Changes by level and bin, and the sums of their squares by that of the level's unit.

    Args:
        levels: of each element, shape (n,).
        change: their magnitudes, finite.
        unit: of each level: a power of two.

    Returns:
        shape (LEVELS, bins + 1), the last of which has those that are 0; and shape (LEVELS,).
    """
    bins = len(_VALUES)
    exact = change / unit[levels]
    power: Floats = np.bincount(levels, exact * exact, LEVELS).astype(np.float64, copy=False)
    part, octave = np.frexp(exact)
    sixteenths = part * 32 - 16  # of an octave, from 0 on
    at = 2 * np.floor(sixteenths) + (sixteenths % 1 > 0)
    at = np.where(exact > 0, np.clip((octave - 1 - _LEAST) * _BINS + at, 0, bins - 1), bins).astype(np.int64)
    counts = np.bincount(levels * np.int64(bins + 1) + at, minlength=LEVELS * (bins + 1))
    return counts.astype(np.int32).reshape(LEVELS, -1), power


@changes_by_bin.native
def _(levels: Bytes, change: npt.NDArray[np.float32], unit: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
    levels, change, unit = np.ascontiguousarray(levels), np.ascontiguousarray(change), np.ascontiguousarray(unit)
    return native.count_changes(levels, change, unit, len(_VALUES))


class _TriedSteps(NamedTuple):
    """Steps that are tried of each level that moved, the largest first: shape (levels, _MOST_STEPS)."""

    size: Floats
    """In units of the level."""
    bits: Floats
    """Of an element that is kept; infinite for what is not tried."""
    rounding: Floats
    """Mean of r(1 − r)."""


def offers(each: Sequence[LevelCosts]) -> tuple[list[SampledPrecision], Floats, Floats]:
    """What may be kept, and the bits and the harm of each, by rising bits: none where nothing moved.

    `each`: a tensor's changes, and what is left of them where some was told before.
    """
    if not each:
        return [], np.zeros(0), np.zeros(0)
    found = [_offers(costs) for costs in each]
    of = np.repeat(np.arange(len(found)), [len(own.bits) for own in found])
    bits = np.concatenate([own.bits + costs.common_bits for own, costs in zip(found, each, strict=True)])
    noise = [own.harm * costs.left for own, costs in zip(found, each, strict=True)]
    harm = np.concatenate(
        [more * np.maximum(_UNEVEN, more) if costs.step else more for more, costs in zip(noise, each, strict=True)]
    )
    shares, widths = np.concatenate([own.shares for own in found]), np.concatenate([own.widths for own in found])
    on = hull_of(bits, harm)
    kept = [
        SampledPrecision(Sampling(each[i].low, shares[at], widths[at], each[i].nearest), each[i].step)
        for at, i in zip(on.tolist(), of[on].tolist(), strict=True)
    ]
    return kept, bits[on], harm[on]


class _Offered(NamedTuple):
    """What may be kept of one tensor's changes, by rising bits: k of it."""

    shares: npt.NDArray[np.uint16]
    """See `Sampling`: shape (k, LEVELS)."""
    widths: npt.NDArray[np.uint16]
    """Likewise."""
    bits: Floats
    """Shape (k,)."""
    harm: Floats
    """Likewise."""


def _offers(costs: LevelCosts) -> _Offered:
    """The same of one, whatever else is told."""
    (moved,) = np.nonzero(costs.power)
    none = _Offered(np.zeros((0, LEVELS), np.uint16), np.zeros((0, LEVELS), np.uint16), np.zeros(0), np.zeros(0))
    if not len(moved):
        return none
    unit = costs.unit
    tried = _tried(costs, moved)
    energy, n = costs.power[moved] * unit[moved] ** 2, costs.elements[moved] * costs.times
    most = np.where(tried.bits < np.inf, tried.bits, 0.0).max(1)
    worth = float(np.where(most > _LEAST_BITS, energy / np.maximum(most, _LEAST_BITS), 0.0).max())
    if not worth:
        return none
    price = _SLOPES[:, None] * worth
    best = _best(tried, costs.power[moved], price[..., None] / unit[moved, None] ** 2, moved == 0)
    share, width, bits, noise = best
    all_bits = added(n * share * bits) + _HEAD
    harm = added(n * noise * unit[moved] ** 2) / float(added(n * energy))
    shares, widths = np.full((len(_SLOPES), LEVELS), SHARES - 1), np.tile(_unseen(costs, unit), (len(_SLOPES), 1))
    shares[:, moved], widths[:, moved] = np.rint(share * SHARES) - 1, width * unit[moved]
    on = hull_of(all_bits, harm)
    few = np.minimum(widths[on], _MOST_WIDTH).astype(np.float32)
    words = np.clip(to_bf16(few), 1, 0x7F7F).astype(np.uint16)
    return _Offered(shares[on].astype(np.uint16), words, all_bits[on], harm[on])


def _unseen(costs: LevelCosts, unit: Floats) -> Floats:
    """Widths of levels in which nothing was seen to move: fine, and yet not too fine for what moved elsewhere."""
    level, at = np.divmod(costs.bins.astype(np.intp), len(_VALUES))
    largest = float((_VALUES[at] * unit[level]).max())
    octave = np.frexp(largest)[1] - 12
    fine: Floats = np.maximum(unit, np.ldexp(1.0, octave))
    return fine


def _tried(costs: LevelCosts, moved: npt.NDArray[np.intp]) -> _TriedSteps:
    """Steps, from a unit or a small part of what is usual up to the largest change, and what is known of them."""
    bins = len(_VALUES)
    counts = np.zeros(LEVELS * bins, np.int64)
    counts[costs.bins] = costs.counts
    counts = counts.reshape(LEVELS, bins)[moved]
    n = costs.elements[moved]
    last = bins - 1 - (counts[:, ::-1] > 0).argmax(1)
    usual = np.frexp(costs.power[moved] * n / counts.sum(1))[1] // 2  # the octave of what a change is, about
    first = np.where(moved > 0, np.maximum(usual - 4, 0), np.maximum(usual - 4, _LEAST + 5))
    octave, phase = np.divmod(np.arange(_MOST_STEPS), len(_PHASES))
    octave = first[:, None] + octave
    size = np.ldexp(np.array(_PHASES)[phase], octave)
    inside = size <= np.maximum(2 * _VALUES[last], np.ldexp(1.0, first))[:, None]
    shift = (octave - _LEAST) * np.int64(_BINS)
    bits, rounding = costs_of_steps(counts, n, size, shift, inside.sum(1), nearest=costs.nearest)
    return _TriedSteps(*(np.ascontiguousarray(each[:, ::-1]) for each in (size, bits, rounding)))


@kernel
def costs_of_steps(
    counts: Integers, n: Integers, size: Floats, shift: Integers, tried: Integers, *, nearest: bool
) -> tuple[Floats, Floats]:
    """Of each level and step the bits of an element that is kept, infinite where it is not tried, and its rounding.

    Args:
        counts: changes by level and bin, some of each level: shape (L, bins).
        n: elements of each level.
        size: of steps, ascending, of each of `_PHASES` by turns: shape (L, steps).
        shift: of each step: from what is one of its phase, in bins.
        tried: how many of the steps are, of each level: shape (L,).
        nearest: see `kernels.dare.Sampling`.

    Returns:
        of shapes (L, steps) both; rounding is the mean of r(1 − r), or, beyond a step, of the square of what is left.
    """
    upto = np.concatenate([np.zeros((len(counts), 1), np.int64), np.cumsum(counts, axis=1)], axis=1)
    row, step = np.nonzero(np.arange(size.shape[1]) < tried[:, None])
    bounds = (_ABOVE_NEAREST if nearest else _ABOVE)[step % len(_PHASES)]
    above = np.clip(bounds + shift[row, step, None], 0, counts.shape[1])
    more = upto[row, -1:] - np.take_along_axis(upto[row], above, 1)
    bits = np.full(size.shape, np.inf)
    bits[row, step] = _entropy(more, n[row]) / n[row]
    level, at = np.nonzero(counts)
    exact = _VALUES[at][:, None] / size[level]
    beyond = nearest & (exact >= 1)
    exact -= np.floor(exact)
    noise = np.where(beyond, np.minimum(exact, 1 - exact) ** 2, exact * (1 - exact))
    whole = np.floor(noise * (1 << 20)).astype(np.int64) * counts[level, at][:, None]
    rounding = np.add.reduceat(whole, np.searchsorted(level, np.arange(len(n))), axis=0) / (n[:, None] * 2.0**20)
    return bits, rounding


@costs_of_steps.native
def _(
    counts: Integers, n: Integers, size: Floats, shift: Integers, tried: Integers, *, nearest: bool
) -> tuple[Floats, Floats]:
    above = _ABOVE_NEAREST if nearest else _ABOVE
    return native.costs_of_steps(counts, _VALUES, n, size, above, shift, tried, nearest=nearest)


def _entropy(more: Integers, n: Integers) -> Floats:
    """Bits that multiples of n elements take, signs too, by how many are beyond each of `_ABOVE`: shape (rows,)."""
    by_class = _DIRECT * _CLASSES * _TRIED
    direct = more[:, :by_class].reshape(-1, _DIRECT, _CLASSES, _TRIED).sum(3)
    halves = np.concatenate([_TRIED * more[:, by_class:], np.zeros((len(more), 1), np.int64)], axis=1)
    n = _TRIED * n
    each = np.concatenate([n[:, None, None] - direct[:, :1], direct[:, :-1] - direct[:, 1:]], axis=1)
    beyond, rest = direct[:, -1] - halves[:, :1], halves[:, :-1] - halves[:, 1:]
    told = added(_times_log2(each).reshape(len(more), -1)) + added(_times_log2(beyond))
    told += _CLASSES * added(_times_log2(rest))
    more_bits = direct[:, 0].sum(1) + beyond.sum(1) * _OPEN[0] + _CLASSES * (rest * _OPEN[1:]).sum(1)
    bits: Floats = (_times_log2(n) + (more_bits - told) / _CLASSES) / _TRIED
    return bits


def _times_log2(counts: Integers) -> Floats:
    """c · log2 c of each."""
    found = np.zeros(counts.shape)
    some = counts > 1
    of = counts[some].astype(np.float64)
    found[some] = of * log2(of)
    return found


def _best(tried: _TriedSteps, power: Floats, price: Floats, low: npt.NDArray[np.bool_]) -> tuple[Floats, ...]:
    """Of each price and level the share, the width, an element's bits if it is kept, and noise; in units of the level.

    Args:
        tried: steps.
        power: by level.
        price: of a bit, shape (prices, levels, 1).
        low: which levels have smaller exponents too, and widths that are no whole numbers.
    """
    bits, spread = np.maximum(tried.bits, 1e-9), power[:, None] + tried.size**2 * tried.rounding
    share = np.sqrt(spread / (price * bits))
    wanted = np.divide(tried.size, np.clip(share, 1 / SHARES, 1.0, out=share), out=share)
    # Whole numbers, of four bits where they are large: those next to it.
    grain = (wanted.view(np.int64) & _EXPONENT).view(np.float64)
    grain = np.maximum(grain / 8, np.where(low, 2.0**-1000, 1.0)[:, None], out=grain)
    times = np.floor(np.divide(wanted, grain, out=wanted), out=wanted)
    (cost, *near), (other, *far) = (
        _at_width(tried, power, price, bits, grain, width) for width in (times * grain, (times + 1) * grain)
    )
    wider = other < cost
    step = np.where(wider, other, cost).argmin(2)
    at = step + np.arange(step.size).reshape(step.shape) * cost.shape[2]
    wider = wider.take(at)
    share, width, noise = (np.where(wider, b.take(at), a.take(at)) for a, b in zip(near, far, strict=True))
    return share, width, bits[np.arange(len(bits)), step], noise


def _at_width(
    tried: _TriedSteps, power: Floats, price: Floats, bits: Floats, grain: Floats, width: Floats
) -> tuple[Floats, ...]:
    """Of each price, level and step at such a width: cost, infinite where it cannot be; share, width and noise.

    Arrays are worked on in place: there are tens of thousands of numbers, hundreds of times.
    """
    share = np.maximum(width, grain)
    share = np.divide(tried.size, share, out=share)
    share *= SHARES
    share = np.ceil(share, out=share)
    share /= SHARES
    noise = 1 / share
    noise -= 1
    noise *= power[:, None]
    spent = share * width
    spent *= width
    spent *= tried.rounding
    noise += spent
    spent = np.multiply(price, share, out=spent)
    spent *= bits
    spent += noise
    spent[(share > 1) | (width <= 0)] = np.inf
    return spent, share, width, noise
