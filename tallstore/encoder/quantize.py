"""A task vector on levels of its own, whose bounds a recipe gives: a table, an index an element, what is kept.

The native library makes it in few passes; without it, numpy does. The same bits.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tallstore.codecs.base import Bytes, Floats
from tallstore.codecs.codebook import Codebook
from tallstore.encoder.metrics import agreement, settled
from tallstore.encoder.rounded_levels import Placing, RoundedLevels
from tallstore.kernels.backends import kernel
from tallstore.kernels.native import encode as native
from tallstore.kernels.native_types import FLOAT32, NARROW
from tallstore.recipes.dither import uniform, unmixed
from tallstore.recipes.histogram import add_up
from tallstore.recipes.quantizers import Quantizer

__all__ = ["Leveled", "encode"]

_TYPES = {form: dtype for dtype, form in NARROW.items()}
_CODECS = (Codebook("q4", 16), Codebook("q5", 32), Codebook("q8", 256))


def codec_of(count: int) -> Codebook:
    """The codec of so many levels of each sign, at most 127."""
    return next(codec for codec in _CODECS if 1 + 2 * count <= codec.levels)


_TURNS = 4
"""Tables that magnitudes are added up in by turns, so that those of one level need not wait for each other."""


class Leveled(NamedTuple):
    """A coded task vector."""

    codec: str
    data: bytes
    table: Floats
    indices: Bytes
    sums: tuple[float, ...]
    """What `quality.sums` measures, of τ and what the decoder will give."""

    @property
    def values(self) -> Floats:
        """What the decoder will give: it looks the same indices up in the same table."""
        return self.table[self.indices]


def encode(
    tau: Floats,
    levels: Quantizer,
    start: int,
    seed: int,
    memory: Bytes | None = None,
    base: Floats | None = None,
    form: int = FLOAT32,
) -> Leveled:
    """Put magnitudes on levels, and code these.

    Args:
        tau: τ of a chunk, shape (n,).
        levels: where they begin.
        start: where in the tensor the chunk begins.
        seed: of the dither, if there is any.
        memory: shape (n,): indices go into it.
        base: θ0, shape (n,), of a narrow row: what a decoder rounds is measured, and the scale settled by it.
        form: of the row: see `kernels.native_types`.
    """
    indices = np.empty(len(tau), np.uint8) if memory is None else memory
    numbers, totals, norm = sort_by_level(indices, tau, levels, start, seed)
    table = _table(levels, numbers.tolist(), totals.tolist(), norm)
    if form == FLOAT32:
        sums = agreement_of_levels(tau, table, indices, base, form)
    else:
        assert base is not None, "of a narrow row the base is needed"
        begun = RoundedLevels(tau, base, form, levels.bounds[0], levels.width, start, seed)
        placing = Placing(begun, table[1 : 1 + len(levels.bounds)], indices) if levels.width else None

        def measure(scale: float) -> tuple[float, ...]:
            placed = indices if placing is None else placing.at(scale)
            return agreement_of_levels(tau, table * np.float32(scale), placed, base, form)

        scale, sums = settled(measure, partial(_off, levels.least and not levels.width))
        if placing is not None:
            numbers = np.bincount(placing.at(scale), minlength=len(table))
        table = table * np.float32(scale)
    codec = codec_of(len(levels.bounds))
    return Leveled(codec.id, codec.encode_indices(table, indices, numbers), table, indices, sums)


def _off(least: bool, sums: tuple[float, ...]) -> float:
    """By which factor the scale is off."""
    _, norm, kept, dot, _ = sums
    if least:
        return dot / kept if kept > 0 else 1.0
    return norm / dot if dot > 0 else 1.0


@kernel
def sort_by_level(
    indices: Bytes, tau: Floats, levels: Quantizer, start: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], float]:
    """Set indices: 0, then each level of +, then each of −. How many have each, the sums of their |τ|, and ‖τ‖²."""
    bounds, width, size = np.array(levels.bounds, np.float32), np.float32(levels.width), 1 + 2 * len(levels.bounds)
    magnitude = np.abs(tau)
    shifted = magnitude - uniform(start, len(tau), seed) * width if width else magnitude
    cell = np.searchsorted(bounds, shifted, side="right")
    cell[magnitude == 0] = 0
    cell[(cell > 0) & (tau < 0)] += len(bounds)
    indices[:] = cell
    turn = cell + np.arange(len(cell)) % _TURNS * size
    first, second, third, fourth = np.bincount(turn, magnitude, _TURNS * size).astype(np.float64).reshape(_TURNS, size)
    total = (first + third) + (second + fourth)
    return np.bincount(cell, minlength=size), total, add_up(np.square(tau, dtype=np.float64))


@sort_by_level.native
def _(
    indices: Bytes, tau: Floats, levels: Quantizer, start: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], float]:
    bounds, width = np.array(levels.bounds, np.float32), np.float32(levels.width)
    return native.levels(indices, tau, bounds, float(width), unmixed(start, seed))


def _table(levels: Quantizer, numbers: list[int], totals: list[float], norm: float) -> Floats:
    """What levels stand for, scaled to be unbiased: or not, where the least error is wanted, which means have.

    Hard levels stand for the mean of the magnitudes between their bounds; with dither they are evenly spaced, so that
    a magnitude between two of them is right on the average. An empty cell has no mean: the codec drops its level,
    because nothing points at it.
    """
    count, means, kept = len(levels.bounds), [], 0.0
    for i in range(1, count + 1):
        total = totals[i] + totals[count + i]
        mean = float(i) if levels.width else total / max(numbers[i] + numbers[count + i], 1)
        means.append(mean)
        kept += mean * total
    scale = 1.0 if levels.least and not levels.width else norm / kept if kept else 1.0
    table = np.zeros(1 + 2 * count, np.float32)
    table[1 : count + 1] = [mean * scale for mean in means]
    np.negative(table[1 : count + 1], out=table[count + 1 :])
    return table


@kernel
def agreement_of_levels(
    tau: Floats, table: Floats, indices: Bytes, base: Floats | None, form: int
) -> tuple[float, ...]:
    """`agreement` of τ and what its indices add to the base, rounded as its type is. `base`: None where none is.

    `form`: the base's type, as `native_types` numbers them.
    """
    step = torch.from_numpy(table[indices])
    if form != FLOAT32 and base is not None:
        start = torch.from_numpy(base)
        step = (start + step).to(_TYPES[form]).to(torch.float32) - start
    return agreement(torch.from_numpy(tau), step)


@agreement_of_levels.native
def _(tau: Floats, table: Floats, indices: Bytes, base: Floats | None, form: int) -> tuple[float, ...]:
    return native.measure_levels(tau, base, indices, table, form)
