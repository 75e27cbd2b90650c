"""Costs and harms of choices that numba compiles: see `recipes.allocation`, whose numbers these are, bit for bit.

Sums are added up one after the other (no fastmath): several side by side, in registers or in an array.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels.jit import compiled
from tallstore.kernels.logarithm import ROOT, SERIES

__all__ = ["dithered", "hard", "hull", "log2"]

_Array = npt.NDArray[Any]


@compiled
def log2(value: float) -> float:
    """What `logarithm.log2` finds of one number."""
    part, power = math.frexp(value)
    if part < ROOT:
        part, power = 2 * part, power - 1
    z = (part - 1) / (part + 1)
    square, series = z * z, SERIES[-1]
    for k in range(2, SERIES.shape[0] + 1):
        series = series * square + SERIES[-k]
    found: float = power + z * series
    return found


@compiled
def _information(count: float, moved: float) -> float:
    """What a level's parameters add to minus the entropy: nothing, if there are none."""
    return count * log2(count / moved) if count > 0 else 0.0


@compiled
def _cost(counts: _Array, moved: float) -> tuple[float, float]:
    """Marks, and their entropy and signs in bits, from how many parameters there are at each level."""
    marks, known = 0.0, 0.0
    for j in range(counts.shape[0]):
        marks += counts[j]
        known += _information(counts[j], moved)
    known += _information(max(moved - marks, 0.0), moved)
    return marks, marks - known


@compiled
def _below(edges: _Array, value: float) -> int:
    """How many ascending edges are below a value."""
    low, high = 0, edges.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if edges[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def hard(
    cost: _Array,
    harm: _Array,
    counted: _Array,
    middle: _Array,
    edges: _Array,
    bounds: _Array,
    moved: float,
    energy: float,
    rms: float,
    kappa: float,
    fewest: float,
) -> None:
    """Choices without dither.

    Args:
        cost: float64, shape (choices,): entropy and signs in bits; set.
        harm: the same: harm, infinite where a choice is not offered; set.
        counted: float64, shape (B,): how many parameters are in each bin.
        middle: float64, shape (B,): the middle of each.
        edges: float64, shape (B,): the lower edge of each, ascending.
        bounds: float64, shape (choices, levels): where levels begin, in root mean squares; infinite where none does.
        moved: how many parameters moved.
        energy: Σ τ².
        rms: root mean square.
        kappa: how many times worse bias is than noise.
        fewest: marks below which a choice is not offered.
    """
    n, levels = counted.shape[0], bounds.shape[1]
    tail, total = np.zeros(n + 1, np.float64), np.zeros(n + 1, np.float64)
    for k in range(n - 1, -1, -1):
        tail[k] = tail[k + 1] + counted[k]
        total[k] = total[k + 1] + counted[k] * middle[k]
    counts = np.empty(levels, np.float64)
    for i in range(bounds.shape[0]):
        kept, filled = 0.0, 0
        here = _below(edges, bounds[i, 0] * rms)
        for j in range(levels):
            end = n
            if j + 1 < levels and bounds[i, j + 1] < np.inf:
                end = _below(edges, bounds[i, j + 1] * rms)
            counts[j] = tail[here] - tail[end]
            size = total[here] - total[end]
            kept += size * size / max(counts[j], 1e-300)
            filled += counts[j] > 0
            here = end
        marks, cost[i] = _cost(counts, moved)
        several = bounds[i, 1] < np.inf
        offered = marks >= fewest and kept > 0 and (not several or filled > 1)
        harm[i] = kappa * max(energy / kept - 1, 0.0) if offered else np.inf


@compiled
def _spoiled(energy: float, along: float, square: float, biased: float, kappa: float) -> float:
    """See `recipes.allocation`; `along` is above 0."""
    gain = energy / along
    found: float = max(gain * gain * (square - biased + kappa * biased) / energy - kappa, 0.0)
    return found


@compiled
def dithered(
    cost: _Array,
    harm: _Array,
    counted: _Array,
    sizes: _Array,
    low: _Array,
    slope: _Array,
    rate: _Array,
    levels: int,
    moved: float,
    kappa: float,
    fewest: float,
) -> None:
    """Choices with dither: R with one level, then E with several, evenly spaced.

    Args:
        cost: float64, shape (R + E,): entropy and signs in bits; set.
        harm: the same: harm, infinite where a choice is not offered; set.
        counted: float64, shape (B,): how many parameters are in each bin.
        sizes: float64, shape (B,): the middle of each in root mean squares, ascending.
        low: float64, shape (R,): where marks begin, in root mean squares, ascending.
        slope: float64, shape (R,): how much likelier they are by a root mean square more.
        rate: float64, shape (E,): levels a root mean square.
        levels: of each of the E.
        moved: how many parameters moved.
        kappa: how many times worse bias is than noise.
        fewest: marks below which a choice is not offered.
    """
    n, ramps, evens = counted.shape[0], low.shape[0], rate.shape[0]
    energy, begun = 0.0, 0
    ones, dots, means = np.zeros(ramps, np.float64), np.zeros(ramps, np.float64), np.zeros(ramps, np.float64)
    for i in range(n):
        c, x = counted[i], sizes[i]
        cx = c * x
        energy += cx * x
        while begun < ramps and low[begun] < x:
            begun += 1
        # A choice whose marks begin later, or a bin that is empty, would add 0.
        for k in range(begun if c > 0 else 0):
            mean = min((x - low[k]) * slope[k], 1.0)
            ones[k] += mean * c
            dots[k] += mean * cx
            means[k] += mean * mean * c
    counts, top = np.empty(levels, np.float64), np.float64(levels)
    for i in range(ramps):
        counts[0] = ones[i]
        marks, cost[i] = _cost(counts[:1], moved)
        offered = marks >= fewest and dots[i] > 0
        harm[i] = _spoiled(energy, dots[i], marks, means[i], kappa) if offered else np.inf
    for i in range(evens):
        counts[:] = 0
        # A magnitude between two levels is at one or the other, `at` or the one above: their sums so far.
        at, level, here, above, along, biased = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(n):
            c, mean = counted[k], min(sizes[k] * rate[i], top)
            while mean >= level + 1:
                if at:
                    counts[at - 1] = here
                at, level, here, above = at + 1, level + 1, above, 0.0
            here += (1.0 - (mean - level)) * c
            above += (1.0 - abs(mean - (level + 1))) * c
            along += mean * (c * sizes[k])
            biased += mean * mean * c
        if at:
            counts[at - 1] = here
        if at < levels:
            counts[at] = above
        square, filled = 0.0, 0
        for j in range(levels):
            square += counts[j] * ((j + 1.0) * (j + 1.0))
            filled += counts[j] > 0
        marks, cost[ramps + i] = _cost(counts, moved)
        offered = marks >= fewest and filled > 1 and along > 0
        harm[ramps + i] = _spoiled(energy, along, square, biased, kappa) if offered else np.inf


@compiled
def hull(order: _Array, bits: _Array, harm: _Array) -> int:
    """Find the choices on the lower convex hull of harm over bits, by rising bits.

    Args:
        order: int64, shape (choices,): set, as far as the hull goes.
        bits: float64, shape (choices,).
        harm: float64, shape (choices,): infinite where a choice is not offered.

    Returns how many these are.
    """
    n = 0
    for i in range(bits.shape[0] - 1, -1, -1):  # most of them are by falling bits
        if harm[i] == np.inf:
            continue
        k = n
        while k > 0:
            before = order[k - 1]
            if bits[before] < bits[i] or (bits[before] == bits[i] and harm[before] < harm[i]):
                break
            order[k] = before
            k -= 1
        order[k] = i
        n += 1
    kept, least = 0, np.inf
    for i in range(n):
        right = order[i]
        if harm[right] >= least:
            continue
        least = harm[right]
        while kept > 1:
            left, middle = order[kept - 2], order[kept - 1]
            rise = (harm[right] - harm[left]) * (bits[middle] - bits[left])
            if (harm[middle] - harm[left]) * (bits[right] - bits[left]) < rise:
                break
            kept -= 1
        order[kept] = right
        kept += 1
    return kept
