"""A task vector on levels of its own, whose bounds a recipe gives: a table, an index an element, what is kept.

The native library makes it in few passes; without it, numpy does. The same bits. In types of few bits levels, and
marks, which are one of them, are chosen by what a decoder returns, and the scale settled by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tallstore.codecs.base import Bytes, Floats
from tallstore.codecs.codebook import count_indices
from tallstore.encoder.mark_codes import code_levels
from tallstore.encoder.metrics import N_SUMS, TURNS, agreement, settled
from tallstore.encoder.moved_elements import Moved, scattered
from tallstore.encoder.rounded_levels import RoundedLevels
from tallstore.kernels.native import levels as native
from tallstore.kernels.native_types import FLOAT32, NARROW
from tallstore.kernels.place_hash import first_of
from tallstore.kernels.registry import kernel
from tallstore.kernels.scratch import scratch
from tallstore.recipes.dither import uniform_at
from tallstore.recipes.histogram import add_up
from tallstore.recipes.quantizers import Quantizer, fitting_scale

__all__ = ["Leveled", "Marked", "encode", "encode_moved", "mark_moved"]

Integers = npt.NDArray[np.int64]

_TYPES = {form: dtype for dtype, form in NARROW.items()}
_TURNS = 4
"""Tables that magnitudes are added up in by turns, so that those of one level need not wait for each other."""


class Leveled(NamedTuple):
    """A coded task vector."""

    codec: str
    data: bytes
    table: Floats
    indices: Bytes
    sums: tuple[float, ...]
    """What `metrics.sums` measures, of τ and what the decoder will give."""

    @property
    def values(self) -> Floats:
        """What the decoder will give: it looks the same indices up in the same table."""
        return self.table[self.indices]


class Marked(NamedTuple):
    """Signed marks over v = 1."""

    packed: Bytes
    scale: float
    sums: tuple[float, ...]
    """As above."""


Sums = tuple[float, ...]


def encode(tau: Floats, levels: Quantizer, start: int, seed: int, memory: Bytes | None = None) -> Leveled:
    """Put magnitudes on levels, and code these.

    Args:
        tau: τ of a chunk, shape (n,).
        levels: where they begin.
        start: where in the tensor the chunk begins.
        seed: of the dither, if there is any.
        memory: shape (n,): indices go into it.
    """
    indices = np.empty(len(tau), np.uint8) if memory is None else memory
    first = first_of(start, seed)
    numbers, totals, norm = sort_by_level(indices, tau, levels, None, first)
    table = _table(levels, numbers.tolist(), totals.tolist(), norm)
    sums = agreement_of_levels(tau, table, indices, None, FLOAT32)
    coded = code_levels(table, indices, numbers, levels.width * levels.known, first)
    return Leveled(*coded, table, indices, sums)


def encode_moved(moved: Moved, levels: Quantizer, seed: int) -> Leveled:
    """The same of a row of few bits: what a decoder rounds is measured, and the scale settled by it."""
    indices, numbers, totals, norm = _begun(moved, levels, seed)
    table = _table(levels, numbers.tolist(), totals.tolist(), norm)
    wanted = partial(fitting_scale, least=levels.least and not levels.width)
    factor, sums = _settled(moved, levels, seed, indices, table, wanted)
    table = table * np.float32(factor)
    if levels.width:
        numbers = count_indices(indices, len(table))
    numbers[0] += moved.n - len(moved.tau)
    everywhere = scattered(indices, moved.places, moved.n, 8)
    coded = code_levels(table, everywhere, numbers, levels.width * levels.known, first_of(moved.start, seed))
    return Leveled(*coded, table, everywhere, sums)


def mark_moved(moved: Moved, levels: Quantizer, seed: int, wanted: Callable[[Sums], float]) -> Marked | None:
    """Signed marks of a row of few bits, likewise. None where the scale that they would begin with is no number.

    Args:
        moved: finite numbers.
        levels: a single one.
        seed: of the dither, if there is any.
        wanted: what marks keep, to the factor by which their scale is off: see `metrics.settled`.
    """
    if levels.width:  # marks are drawn for that scale, and for another they are drawn anew
        indices, scale = scratch("indices", len(moved.tau), np.uint8), levels.width + 2 * levels.bounds[0]
    else:
        indices, numbers, totals, norm = _begun(moved, levels, seed)
        on, dot = float(len(indices) - numbers[0]), float(totals[1] + totals[2])
        scale = wanted((norm - 2 * dot + on, norm, on, dot, on))
    scale = float(np.float32(scale))
    if not 0 < scale < math.inf:
        return None
    table = np.array([0, scale, -scale], np.float32)
    factor, sums = _settled(moved, levels, seed, indices, table, wanted)
    return Marked(scattered(indices, moved.places, moved.n, 2), float(np.float32(scale * factor)), sums)


def _begun(moved: Moved, levels: Quantizer, seed: int) -> tuple[Bytes, Integers, npt.NDArray[np.float64], float]:
    indices = scratch("indices", len(moved.tau), np.uint8)
    return indices, *sort_by_level(indices, moved.tau, levels, moved.places, first_of(moved.start, seed))


class _Settled(NamedTuple):
    scale: float
    sums: Sums


def _settled(
    moved: Moved, levels: Quantizer, seed: int, indices: Bytes, table: Floats, wanted: Callable[[Sums], float]
) -> _Settled:
    """The factor on a table with which it is right, and what is kept then. `indices`: set, where there is dither."""
    if not len(moved.tau):
        return _Settled(1.0, (0.0,) * N_SUMS)
    if not levels.width:
        return _Settled(*settled(partial(_kept_at, moved, table, indices), wanted))
    values = table[1 : len(table) // 2 + 1]

    def placed(here: Moved, symbols: Bytes, scale: float) -> Sums:
        begun = RoundedLevels(here, levels.bounds[0], levels.width, seed)
        return begun.place(symbols, values * np.float32(scale))

    # A few tell nearly what scale is right, so that all of them are mostly placed but once or twice.
    some, scale = moved.some(_FEW), 1.0
    if some is not moved:
        scale, _ = settled(partial(placed, some, scratch("few", len(some.tau), np.uint8)), wanted)
    tried: dict[float, Bytes] = {}

    def place(scale: float) -> Sums:
        tried[scale] = scratch(f"levels {len(tried)}", len(moved.tau), np.uint8)
        return placed(moved, tried[scale], scale)

    scale, sums = settled(place, wanted, scale, TURNS if some is moved else 1)
    indices[:] = tried[scale]
    return _Settled(scale, sums)


_FEW = 1 << 13
"""Elements that a scale is looked for among, first."""


def _kept_at(moved: Moved, table: Floats, indices: Bytes, scale: float) -> Sums:
    return agreement_of_levels(moved.tau, table * np.float32(scale), indices, moved.base, moved.form)


@kernel
def sort_by_level(
    indices: Bytes, tau: Floats, levels: Quantizer, places: npt.NDArray[np.uint32] | None, first: int
) -> tuple[Integers, npt.NDArray[np.float64], float]:
    """Set indices: 0, then each level of +, then each of −. How many have each, the sums of their |τ|, and ‖τ‖².

    The sum of what is on no level is not asked for: it is 0.

    Args:
        indices: shape (n,); set.
        tau: τ, shape (n,).
        levels: where they begin.
        places: where in the chunk elements are, shape (n,); None where these are all of it.
        first: what is mixed for the chunk's first element: `place_hash.first_of`.
    """
    bounds, width, size = np.array(levels.bounds, np.float32), np.float32(levels.width), 1 + 2 * len(levels.bounds)
    magnitude = np.abs(tau)
    at = np.arange(len(tau), dtype=np.uint32) if places is None else places
    shifted = magnitude - uniform_at(at, first) * width if width else magnitude
    cell = np.searchsorted(bounds, shifted, side="right")
    cell[magnitude == 0] = 0
    cell[(cell > 0) & (tau < 0)] += len(bounds)
    indices[:] = cell
    turn = cell + np.arange(len(cell)) % _TURNS * size
    one, two, three, four = np.bincount(turn, magnitude, _TURNS * size).astype(np.float64).reshape(_TURNS, size)
    total = (one + three) + (two + four)
    total[0] = 0
    return np.bincount(cell, minlength=size), total, add_up(np.square(tau, dtype=np.float64))


@sort_by_level.native
def _(
    indices: Bytes, tau: Floats, levels: Quantizer, places: npt.NDArray[np.uint32] | None, first: int
) -> tuple[Integers, npt.NDArray[np.float64], float]:
    bounds, width = np.array(levels.bounds, np.float32), np.float32(levels.width)
    return native.levels(indices, tau, bounds, float(width), places, first)


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
    step, on = torch.from_numpy(table[indices]), float(np.count_nonzero(table[indices]))
    if form != FLOAT32 and base is not None:
        start = torch.from_numpy(base)
        step = (start + step).to(_TYPES[form]).to(torch.float32) - start
    return *agreement(torch.from_numpy(tau), step)[:-1], on


@agreement_of_levels.native
def _(tau: Floats, table: Floats, indices: Bytes, base: Floats | None, form: int) -> tuple[float, ...]:
    return native.measure_levels(tau, base, indices, table, form)
