"""What dropping and rescaling costs and spoils, share by share: `solo`'s choices in types of few bits beside marks.

Of the elements whose base has an exponent e, a share p_e of the changes is kept, each 1/p_e times on the average: see
`kernels.dare`. With n_e elements, H_e bits that one of them takes without loss and mean square q_e of their changes,

    bits = Σ n_e · p_e · H_e,     harm = Σ n_e · q_e · (1/p_e − 1 + p_e·f·(1 − f)) / Σ n_e · q_e

where f is the fraction of 1/p_e, which is rounded at random. For some bits the harm is least with

    p_e = min(1, λ · √(q_e / H_e)).

There is no bias, so that κ does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tallstore.kernels.dare import NOTHING, share_of
from tallstore.kernels.lattice import Bytes
from tallstore.kernels.logarithm import log2

__all__ = ["DropRates", "LevelCosts", "offers"]

Floats = npt.NDArray[np.float64]

_SLOPES = 2.0 ** (np.arange(-32, 1) / 4)
"""λ, where the largest share is 1 at the last: by quarters of an octave."""
_HEAD = 8 * 200
"""Bits that a tensor takes beside what is kept, about: head, tables, lanes."""


@dataclass(frozen=True)
class LevelCosts:
    """A tensor's elements by the exponent of the base's."""

    low: int
    """The exponent of level 0; the first and the last level have all that lie beyond."""
    elements: Floats
    """Shape (LEVELS,)."""
    bits: Floats
    """That all of them take without loss."""
    power: Floats
    """Their changes' mean square."""


@dataclass(frozen=True)
class DropRates:
    """What the encoder is told of a tensor."""

    low: int
    rates: Bytes
    """Of each level: see `kernels.dare.thresholds`."""


def offers(costs: LevelCosts) -> tuple[list[DropRates], Floats, Floats]:
    """Rates, and the bits and the harm of each: none where nothing moved."""
    n, power = costs.elements, costs.power
    energy = float((n * power).sum())
    moved = (n > 0) & (power > 0) & (costs.bits > 0)
    if not energy or not moved.any():
        return [], np.zeros(0), np.zeros(0)
    each = costs.bits / np.maximum(n, 1.0)
    worth = np.sqrt(np.where(moved, power / np.where(moved, each, 1.0), 0.0))
    shares = _SLOPES[:, None] * (worth / worth.max())
    # What was seen to move nowhere costs nothing to keep, and would be lost for good.
    rates = np.where(moved, np.minimum(_rounded(-8.0 * log2(np.maximum(shares, 2.0**-24))), NOTHING - 1), 0)
    rates = rates.astype(np.uint8)
    share = share_of(rates)
    fraction = 1 / share % 1.0
    spoiled = 1 / share - 1 + share * fraction * (1 - fraction)
    bits = (share * costs.bits).sum(1) + _HEAD
    harm = (spoiled * (n * power)).sum(1) / energy
    return [DropRates(costs.low, row) for row in rates], bits, harm


def _rounded(values: Floats) -> Floats:
    return np.floor(values + 0.5)
