"""Levels with dither in a type of few bits, chosen by what a decoder returns and not by what it adds.

A decoder rounds θ0 + v to the task's type, so that a level v moves one parameter by more than v, another by less or not
at all. With δ_i what level i moves this very parameter by (δ_0 = 0), level i + 1 is taken in place of level i where

    |τ| ≥ (δ_i + g·(δ_{i+1} − δ_i)) · k,    g = (u·width + low) / top,    k = top / v_1,    top = width + 2·low

with u of `recipes.dither`: as far as g is uniform in [0, 1), what is returned is |τ| / k on the average for every
parameter by itself, wherever the type's values lie (dither between the points of a lattice). k makes up for magnitudes
beyond the last level, as scales do. Of levels that a parameter is moved by alike, the first is taken.

What did not move has no level, so that all of this is of the elements that moved.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from tallstore.codecs.base import Bytes, Floats
from tallstore.encoder.metrics import agreement
from tallstore.encoder.moved_elements import Moved
from tallstore.kernels.native import levels as native
from tallstore.kernels.native_types import NARROW
from tallstore.kernels.place_hash import first_of
from tallstore.kernels.registry import kernel
from tallstore.recipes.dither import uniform_at

__all__ = ["RoundedLevels"]

_TYPES = {form: dtype for dtype, form in NARROW.items()}


class RoundedLevels(NamedTuple):
    """A chunk's elements that moved, and where levels begin."""

    moved: Moved
    """Finite numbers."""
    low: float
    width: float
    """Where the first level begins: from `low` to `low` + `width`, above 0."""
    seed: int

    def place(self, indices: Bytes, values: Floats) -> tuple[float, ...]:
        """Choose levels: 0, then each of +, then each of −. What they keep, as `metrics.sums` measures it.

        Args:
            indices: shape (m,); set.
            values: what levels add, ascending, above 0, float32, shape (L,), at most 127.
        """
        low, width = np.float32(self.low), np.float32(self.width)
        with np.errstate(all="ignore"):  # a scale that overflows marks nothing
            top = width + 2 * low
            low, width, factor = low / top, width / top, top / values[0]
        return place_rounded(indices, self, values, float(low), float(width), float(factor))


@kernel
def place_rounded(
    indices: Bytes, levels: RoundedLevels, values: Floats, low: float, width: float, factor: float
) -> tuple[float, ...]:
    """What `RoundedLevels.place` does, beginnings being shares of `top`, which is width + 2 · low.

    Args:
        indices: shape (m,); set.
        levels: the chunk's elements, of a type of few bits.
        values: what levels add, shape (L,).
        low: where the first level begins, a float32.
        width: likewise, how far that varies from one parameter to the next.
        factor: `top` over the first level.
    """
    moved = levels.moved
    magnitude, indices[:] = np.abs(moved.tau), 0
    drawn = uniform_at(moved.places, first_of(moved.start, levels.seed))
    share, (before, kept) = drawn * np.float32(width) + np.float32(low), np.zeros((2, len(drawn)), np.float32)
    for level, value in enumerate(values.tolist(), 1):
        after = _moved_by(moved, value)
        with np.errstate(all="ignore"):
            least = (before + share * (after - before)) * np.float32(factor)
        taken = (magnitude >= least) & (after > before)
        indices[taken], kept[taken] = level, after[taken]
        before = after
    indices[(moved.tau < 0) & (indices > 0)] += len(values)
    kept = np.copysign(kept, moved.tau)
    return *agreement(torch.from_numpy(moved.tau), torch.from_numpy(kept))[:-1], float(np.count_nonzero(indices))


@place_rounded.native
def _(
    indices: Bytes, levels: RoundedLevels, values: Floats, low: float, width: float, factor: float
) -> tuple[float, ...]:
    moved = levels.moved
    shape = (low, width, factor, first_of(moved.start, levels.seed))
    return native.place_rounded(indices, moved.places, moved.tau, moved.base, values, shape, moved.form)


def _moved_by(moved: Moved, value: float) -> Floats:
    """How far a decoder moves each element towards its τ."""
    base = torch.from_numpy(moved.base)
    step = torch.from_numpy(np.copysign(np.float32(value), moved.tau))
    distance: Floats = ((base + step).to(_TYPES[moved.form]).to(torch.float32) - base).abs().numpy()
    return distance
