"""Levels as fine as it takes, for tensors that need more than the ladders of `quantizers` have: up to 127 of each sign.

Evenly spaced ones, since their indices are entropy-coded (Gish and Pierce 1968), as many as reach to the largest
magnitude; or, where magnitudes are few, as in types of few bits of which few elements moved, one for each of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tallstore.recipes.histogram import EDGES, Floats, Magnitudes
from tallstore.recipes.rate_distortion import Choices, hull_of, prices

__all__ = ["MOST", "Steps", "biased", "join", "join_below", "steps"]

Steps = tuple[list[Floats], Floats, Floats]
"""Where levels begin, and the bits and the harm of each."""

MOST = 127
"""Levels of each sign, so that a table has 255 and an index one byte."""
_STEPS = (0.8, 0.57, 0.4, 0.28, 0.2, 0.14, 0.1, 0.07, 0.05, 0.035)
"""In root mean squares."""
_FIRST = 0.6
"""Where the first level begins, in steps."""
_PLACES = _FIRST + np.arange(MOST + 1)
"""And all of them."""
_QUARTER, _QUARTERS = 8, 16
"""Bins of a quarter of an octave, and how many of these levels reach beyond the largest magnitude that was seen: those
that were are a sample. What no element is at takes no bytes."""


def steps(histogram: Magnitudes) -> Steps:
    """Levels, and the bits and the harm of each, κ being 1: shape (choices,)."""
    if not histogram.energy:
        return [], np.zeros(0), np.zeros(0)
    (bins,) = np.nonzero(histogram.counts)
    rms, edges = histogram.rms, histogram.edges
    top = float(edges[bins[-1]])
    first, last = histogram.first + int(bins[0]), histogram.first + int(bins[-1])
    above = EDGES[last + _QUARTER : last + 1 + _QUARTERS * _QUARTER : _QUARTER]
    every = np.concatenate([edges[bins], EDGES[first:last:_QUARTER], above])
    every.sort()
    bounds = [_distinct(every)]
    counts = [(step * rms, math.ceil(top / (step * rms) - _FIRST)) for step in _STEPS]
    evenly = [step * _PLACES[: count + 1] for step, count in counts if 1 <= count <= MOST]
    if evenly:  # looked up at once: there is little to each
        at = edges.searchsorted(np.concatenate(evenly))
        end = 0
        for places in evenly:
            begin, end = end, end + len(places)
            own = _distinct(at[begin:end])
            bounds.append(np.concatenate([edges[own[: own.searchsorted(len(edges))]], above]))
    bounds = [each for each in bounds if len(each) <= MOST]
    return bounds, *prices(histogram, bounds)


def biased(stepped: Steps, histogram: Magnitudes, kappa: float) -> Steps:
    """The same, κ being what it is: what lies below the first level is left out alike, which is bias and no noise."""
    levels, bits, harm = stepped
    upto = np.concatenate([[0.0], np.cumsum(histogram.counts * np.square(histogram.middle))])
    below = upto[np.searchsorted(histogram.edges, [each[0] for each in levels])] if levels else np.zeros(0)
    return levels, bits, harm + (kappa - 1) * below / histogram.energy if levels else harm


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """Those of a sorted array, each once; `np.unique` would import `numpy.ma` in the middle of a run."""
    first = np.empty(len(values), bool)
    first[:1] = True
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]


def join(offered: Choices, stepped: Steps, first: int) -> Choices:
    """The same choices and steps beside them, as far as they are the best for some price of a bit.

    The ladder of a step is its place among the steps, counted from `first` on.
    """
    _, bits, harm = stepped
    return _joined(offered, first + np.arange(len(bits)), bits, harm)


def join_below(offered: Choices, bits: Floats, harm: Floats, first: int) -> Choices:
    """The same of any others, whose ladders are counted from `first` down."""
    return _joined(offered, first - np.arange(len(bits)), bits, harm)


def _joined(offered: Choices, ladders: NDArray[np.intp], bits: Floats, harm: Floats) -> Choices:
    ladders = np.concatenate([offered.ladders, ladders]).astype(np.intp)
    bits, harm = np.concatenate([offered.bits, bits]), np.concatenate([offered.harm, harm])
    best = hull_of(bits, harm)
    return Choices(ladders[best], bits[best], harm[best])
