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
from tallstore.codecs.lattice_rows import COEFFICIENT_BITS, directed
from tallstore.kernels.lattice import LEVELS, Lattice, Model, Prepared, Rows
from tallstore.kernels.lattice_choices import BITS, POINT, WEIGHT_BITS, both_signs
from tallstore.kernels.lattice_fast import count_segments, count_symbols, prepare, shifts, tables

__all__ = ["choose", "estimate", "lanes_for", "lowest", "undirected"]

Integers = npt.NDArray[np.int64]

_SEGMENT = 256
"""Fewest elements of a segment: short rows are taken together."""
_LOOKED_AT = 128
"""About as many elements of a segment say what its shift is."""
_SAMPLED = 1 << 12
"""About as many elements of the base say where levels begin."""
_ABOVE = 1 << 11
"""One element in so many may have a larger exponent than the highest level's."""


def lanes_for(n: int) -> int:
    """How many lanes a chunk of n elements has: each costs 16 bits, and more are quicker."""
    return 128 if n >= 1 << 19 else 64 if n >= 1 << 16 else 32 if n >= 1 << 12 else 8


def choose(prepared: Prepared, low: int, row: Row) -> Model:
    """The model of a chunk.

    Args:
        prepared: its steps.
        low: the exponent of level 0.
        row: see `Row`.
    """
    width, first = _segments(row, len(prepared.levels))
    rows = undirected()
    if width:
        found = shifts(count_segments(prepared, width, first, max(1, width // _LOOKED_AT)))
        rows = directed(prepared, undirected(width, first, found - found.min()))
    counts = count_symbols(prepared, rows)
    counts = counts[:, : LEVELS + int(rows.shifts.max())]
    table, weights, cost = tables(folded(counts.sum(0)), signed=False)
    if len(rows.along):
        signed = tables(counts.reshape(-1, counts.shape[2]), signed=True)
        if signed[2] + POINT * COEFFICIENT_BITS * (rows.across.size + rows.along.size) < cost:
            return Model(bits=BITS, low=low, rows=rows, table=signed[0].reshape(counts.shape[:2]), weights=signed[1])
        rows = undirected(width, first, rows.shifts)
    if not rows.shifts.any():
        rows = undirected()
    return Model(bits=BITS, low=low, rows=rows, table=table[None], weights=both_signs(weights))


def undirected(width: int = 0, first: int = 0, shifts: npt.NDArray[np.uint8] | None = None) -> Rows:
    """Rows without directions; by default, all elements in one."""
    shifts = np.zeros(1, np.uint8) if shifts is None else shifts
    across, along = np.zeros((len(shifts), 0), np.int8), np.zeros((0, width), np.int8)
    return Rows(width=width, first=first, shifts=shifts, across=across, along=along, marks=np.zeros(0, np.uint16))


def estimate(lattice: Lattice, after: npt.NDArray[Any], base: npt.NDArray[Any], elements: int | None = None) -> float:
    """Bits per element that steps will take, by a sample of a tensor; rows are taken to be all alike.

    Args:
        lattice: of the type.
        after: elements of the task as words, shape (n,), n > 0: runs of it, one behind the other.
        base: the base's in their place.
        elements: of the tensor: what its tables take is spread over all of them. By default, the sample is all.
    """
    prepared = prepare(lattice, after, base, lowest(lattice, base))
    _, weights, cost = tables(folded(count_symbols(prepared, undirected())[0, :LEVELS]), signed=False)
    told = WEIGHT_BITS * weights.size
    bits = cost / POINT + 8 * len(prepared.extra) - told
    return bits / len(base) + told / (elements or len(base))


def lowest(lattice: Lattice, base: npt.NDArray[Any]) -> int:
    """The exponent of level 0: the highest level's is about the largest that there is, a few outliers aside."""
    some = base[:: max(1, len(base) // _SAMPLED)]
    above = np.cumsum(np.bincount(lattice.keys(some), minlength=lattice.mask + 1)[::-1])[::-1]
    top = int(np.flatnonzero(above > len(some) // _ABOVE)[-1])
    return max(0, top - LEVELS + 1)


def _segments(row: Row, n: int) -> Row:
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
