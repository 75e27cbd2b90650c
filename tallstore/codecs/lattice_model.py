"""What tells how likely steps on the lattice are: chosen by counting, chunk by chunk.

Exponents of the base are octaves, and so are the shifts of rows: a row whose updates are twice as large behaves as one
whose weights are half as large. Contexts that hardly differ share a table. All decisions are made on whole numbers, so
that they are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.codecs.base import Row
from tallstore.codecs.lattice_rows import COEFFICIENT_BITS, affordable, directed
from tallstore.kernels.lattice import LEVELS, Lattice, Model, Prepared, Rows
from tallstore.kernels.lattice_choices import BITS, POINT, WEIGHT_BITS, both_signs
from tallstore.kernels.lattice_fast import count_segments, count_symbols, prepare, shifts, tables

__all__ = ["choose", "estimate", "folded", "lanes_for", "lowest", "lowest_of", "sampled", "segmented", "undirected"]

Integers = npt.NDArray[np.int64]

_SEGMENT = 256
"""Fewest elements of a segment: short rows are taken together."""
_LOOKED_AT = 128
"""About as many elements of a segment say what its shift is."""
_SAMPLED = 1 << 12
"""About as many elements of the base say where levels begin."""
_MANY_MOVED = 8
"""Where one element in so many moved, what lanes cost is next to nothing."""
_ABOVE = 1 << 11
"""One element in so many may have a larger exponent than the highest level's."""


def lanes_for(symbols: npt.NDArray[np.int8]) -> int:
    """How many lanes symbols, shape (n,), are coded in: each costs 16 bits, and more are quicker."""
    n = len(symbols)
    if n >= 1 << 19:
        return 128
    if n >= 1 << 16 and np.count_nonzero(symbols) * _MANY_MOVED >= n:
        return 64
    return 32 if n >= 1 << 12 else 8


def choose(prepared: Prepared, low: int, row: Row) -> Model:
    """The model of a chunk.

    Args:
        prepared: its steps.
        low: the exponent of level 0.
        row: see `Row`.
    """
    rows = _rows(prepared, row)
    counts = count_symbols(prepared, rows)
    counts = counts[:, : LEVELS + int(rows.shifts.max())]
    table, weights, cost = tables(folded(counts.sum(0)), signed=False)
    if len(rows.along):
        signed = tables(counts.reshape(-1, counts.shape[2]), signed=True)
        if signed[2] + POINT * COEFFICIENT_BITS * (rows.across.size + rows.along.size) < cost:
            return Model(bits=BITS, low=low, rows=rows, table=signed[0].reshape(counts.shape[:2]), weights=signed[1])
        rows = undirected(rows.width, rows.first, rows.shifts)
    if not rows.shifts.any():
        rows = undirected()
    return Model(bits=BITS, low=low, rows=rows, table=table[None], weights=both_signs(weights))


def _rows(prepared: Prepared, row: Row, rank: int | None = None) -> Rows:
    """What may be told of a chunk's rows; `rank`: see `directed`."""
    width, first = segmented(row, len(prepared.levels))
    if not width:
        return undirected()
    row_shifts = shifts(count_segments(prepared, width, first, max(1, width // _LOOKED_AT)))
    return directed(prepared, undirected(width, first, row_shifts - row_shifts.min()), rank)


def undirected(width: int = 0, first: int = 0, shifts: npt.NDArray[np.uint8] | None = None) -> Rows:
    """Rows without directions; by default, all elements in one."""
    shifts = np.zeros(1, np.uint8) if shifts is None else shifts
    across, along = np.zeros((len(shifts), 0), np.int8), np.zeros((0, width), np.int8)
    return Rows(width=width, first=first, shifts=shifts, across=across, along=along, marks=np.zeros(0, np.uint16))


def estimate(
    lattice: Lattice, after: npt.NDArray[Any], base: npt.NDArray[Any], elements: int | None = None, length: int = 0
) -> float:
    """Bits per element that steps will take, by a sample of a tensor.

    Directions of few rows fit these better than those of many rows will, but are fewer. On real tensors of rows, the
    estimate is mostly a few percent above what they then take.

    Args:
        lattice: of the type.
        after: elements of the task as words, shape (n,), n > 0: runs of it, one behind the other.
        base: the base's in their place.
        elements: of the tensor: what its tables take is spread over all of them. By default, the sample is all.
        length: of the runs, each of which is a row, or begins one; 0 where they are no rows.
    """
    prepared = prepare(lattice, after, base, lowest(lattice, base))
    total = elements or len(base)
    rank = min(affordable(total // length, length), max(1, affordable(len(base) // length, length))) if length else 0
    rows = _rows(prepared, (length, 0), rank)
    counts = count_symbols(prepared, rows)
    estimates = [_estimated(folded(counts.sum(0)), total, signed=False)]
    if len(rows.along):
        told = COEFFICIENT_BITS * (rows.across.size / len(base) + rows.along.size / total)
        estimates.append(told + _estimated(counts.reshape(-1, counts.shape[2]), total, signed=True))
    return min(estimates) + 8 * len(prepared.extra) / len(base)


def _estimated(counts: Integers, elements: int, *, signed: bool) -> float:
    """Bits per element of symbols that occur so often in a sample of so many."""
    _, weights, cost = tables(counts, signed=signed)
    told = WEIGHT_BITS * int((weights.shape[1] - (weights[:, ::-1] > 0).argmax(1)).sum())  # as it is counted there
    return (cost / POINT - told) / float(counts.sum()) + told / elements


def lowest(lattice: Lattice, base: npt.NDArray[Any]) -> int:
    """The exponent of level 0: the highest level's is about the largest that there is, a few outliers aside."""
    return lowest_of(lattice.keys(sampled(base)))


def sampled(elements: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Those of a chunk that say where levels begin, evenly strided."""
    return elements[:: max(1, len(elements) // _SAMPLED)]


def lowest_of(exponents: Integers) -> int:
    """The exponent of level 0, of a sample."""
    above = np.cumsum(np.bincount(exponents)[::-1])[::-1]
    top = int(np.flatnonzero(above > len(exponents) // _ABOVE)[-1])
    return max(0, top - LEVELS + 1)


def segmented(row: Row, n: int) -> Row:
    """Elements of a segment and of the first one."""
    length, gone = row
    if not length or n < 2 * _SEGMENT:
        return 0, 0
    times = -(-_SEGMENT // length)
    width, first = times * length, times * length - gone
    return (width, first) if first < n else (0, 0)


def folded(counts: Integers) -> Integers:
    """Elements by magnitude's symbol, of those by symbol."""
    magnitudes: Integers = counts[:, ::2].copy()
    magnitudes[:, 1:] += counts[:, 1::2]
    return magnitudes
