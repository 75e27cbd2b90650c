"""The quantizers on offer: signs above a threshold, or a few levels; hard, or with dither (see `dither`).

In units of a tensor's root mean square, so that one table serves every tensor; each is named by its index in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tallstore.kernels.native import choices as native
from tallstore.recipes.histogram import EDGES

__all__ = [
    "ALL",
    "CODER",
    "CODERS",
    "DITHERS",
    "FEWEST",
    "HARD",
    "HARD_BOUNDS",
    "LEVELS",
    "LEVEL_BITS",
    "LOW",
    "OFFERED",
    "RATE",
    "SLOPE",
    "TABLES",
    "Quantizer",
    "fitting_scale",
    "is_mask",
    "ladders",
    "levels_of",
]

_THRESHOLDS = (0.0, 0.2, *(round(0.4 + 0.1 * i, 1) for i in range(25)), 3.0, 3.2, 3.5)
"""Of ternary choices, in units of the tensor's root mean square."""
_STEPS = (2.4, 2.2, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.65, 0.5, 0.4, 0.3)
"""Of multi-level choices, likewise."""
_DEAD_ZONE = 0.62
"""Where the first level begins, in steps."""
LEVELS = 7
"""Levels of each sign, so that a table has at most 15 and an index four bits."""
FEWEST = 8
"""Marks below which a choice is not offered."""
_ROUNDED = 0.999
"""Sums of squares that are less than they must be by more than this are not rounded, but lost."""
_LARGEST = float(np.finfo(np.float32).max)
_REACH = 7.5
"""No level begins beyond so many root mean squares."""
CODER = 1.035
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
    known: bool = True
    """Whether levels with dither are coded given it: of few elements that would take more."""


LADDERS: tuple[Quantizer, ...] = (
    *(Quantizer((threshold,)) for threshold in _THRESHOLDS),
    *(Quantizer(tuple(b for b in (step * (_DEAD_ZONE + i) for i in range(LEVELS)) if b < _REACH)) for step in _STEPS),
    *(Quantizer((foot * top,), (1 - 2 * foot) * top) for top in _RAMPS for foot in _FEET),
    *(Quantizer(tuple(step * i for i in range(LEVELS)), step) for step in _EVEN_STEPS),
)
"""Every precision on offer, in root mean squares. The first one marks all that moved."""
HARD = [i for i, ladder in enumerate(LADDERS) if not ladder.width]
_RAMPED = [i for i, ladder in enumerate(LADDERS) if ladder.width and len(ladder.bounds) == 1]
_RAMPED.sort(key=lambda i: LADDERS[i].bounds[0])
_EVEN = [i for i, ladder in enumerate(LADDERS) if ladder.width and len(ladder.bounds) > 1]
OFFERED = np.array([*HARD, *_RAMPED, *_EVEN])
"""The order in which choices are looked at; those with dither and one level by where their marks begin."""
HARD_BOUNDS = np.array([(*LADDERS[i].bounds, *([np.inf] * LEVELS))[:LEVELS] for i in HARD])
"""Shape (hard choices, levels): infinite where a choice has fewer."""
LOW = np.array([LADDERS[i].bounds[0] for i in _RAMPED])
SLOPE = 1 / np.array([LADDERS[i].width for i in _RAMPED])
"""Of choices with dither and one level: where marks begin, ascending, and how much likelier they get from there on."""
RATE = 1 / np.array([LADDERS[i].width for i in _EVEN])
"""Of choices with dither and several levels: levels a root mean square."""
DITHERS = (np.arange(8) + 0.5) / 8
"""Of choices with dither and several levels: those that stand for all."""
LEVEL_BITS = 64.0
"""Bits that a level takes in a choice's table."""
CODERS = np.array([1.015 if LADDERS[i].width else CODER for i in OFFERED])
"""`CODER` of each choice, in the order of `OFFERED`: what is coded given its dither comes nearer to it."""
_DITHER_BITS = 1700.0
"""Bits that models and states of what is coded given its dither take."""
TABLES = np.array(
    [
        LEVEL_BITS * len(LADDERS[i].bounds) * (len(LADDERS[i].bounds) > 1) + _DITHER_BITS * (LADDERS[i].width > 0)
        for i in OFFERED
    ]
)
"""Bits that a choice's table takes, in the order of `OFFERED`."""
ALL = native.Ladders(HARD_BOUNDS, (LOW, SLOPE, RATE, DITHERS), LEVELS, TABLES, CODERS, FEWEST)
"""The whole table, as the native library takes it."""


def levels_of(ladder: int, rms: float) -> Quantizer:
    """What a choice means for a tensor. One bound: a mask."""
    relative = LADDERS[ladder]
    if relative.width:
        return Quantizer(
            tuple(float(np.float32(b * rms)) for b in relative.bounds), float(np.float32(relative.width * rms))
        )
    return Quantizer(tuple(EDGES[np.searchsorted(EDGES, np.array(relative.bounds) * rms)].tolist()))


def fitting_scale(sums: Sequence[float], *, least: bool) -> float:
    """By which factor what is kept is off: what makes it unbiased, or nearest in least squares where `least`.

    Args:
        sums: what `encoder.metrics` measures of τ and what is kept: error, ‖τ‖², ‖kept‖², their product, count.
    """
    _, norm, kept, dot, _ = sums
    # ‖τ‖² · ‖kept‖² is never less than ⟨τ, kept⟩², but where squares of changes were too small for a float32.
    nearest = least or norm * kept < _ROUNDED * dot * dot
    above, below = (dot, kept) if nearest else (norm, dot)
    # Else nothing is kept, or nothing that any factor brings nearer; or so little of something huge that none does.
    return above / below if dot > 0 and 0 < above / _LARGEST < below else 1.0


def is_mask(ladder: int) -> bool:
    """Whether a choice is a mask, and not levels of one's own."""
    return len(LADDERS[ladder].bounds) == 1


def ladders() -> int:
    """How many precisions there are that `levels_of` knows."""
    return len(LADDERS)
