"""The functions of `kernels.lattice` at speed: the native kernels where they are, the reference where not."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import Structure, byref, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.errors import DamagedError
from tallstore.kernels import lattice as reference
from tallstore.kernels.lattice import (
    CLASSES,
    CONTEXTS,
    ENDS,
    GRADES,
    LEVELS,
    OPEN_BITS,
    SYMBOLS,
    Bytes,
    Integers,
    Lattice,
    LatticeSymbols,
    Model,
    Prepared,
    Rows,
    Words,
    frequencies,
    segments_of,
)
from tallstore.kernels.native import library
from tallstore.kernels.native.library import Function, address, bind

__all__ = ["KERNELS", "count_segments", "count_symbols", "decode", "encode", "prepare", "project"]

_P, _I, _L = c_void_p, c_int32, c_int64
KERNELS: Mapping[str, Function] = {
    "lattice_prepare": (_L, (_P, _P, _P, _P, _P, _L, _I, _I, _I, _I)),
    "lattice_count_segments": (None, (_P, _P, _P, _L, _L, _L, _L)),
    "lattice_project": (None, (_P, _P, _L, _P, _I, _L, _L)),
    "lattice_count_symbols": (None, (_P, _P, _P, _L, _P)),
    "lattice_encode": (_L, (_P, _P, _P, _P, _L, _I, _I, _P, _P, _P, _I, _I)),
    "lattice_decode": (_I, (_P, _L, _I, _I, _I, _I, _I, _P, _P, _I, _I, _P, _P, _I, _P, _L, _P, _L)),
}
"""Of `native/src/lattice_encode.c` and `lattice_decode.c`."""


class _RowLayout(Structure):
    """`ts_rows` of `native/src/lattice.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("table", "shifts", "across", "along")),
        *(("width", c_int64), ("first", c_int64), ("rank", c_int32), ("contexts", c_int32)),
        ("marks", c_int32 * (GRADES - 1)),
    )


def _rows(rows: Rows, table: Bytes | None = None) -> _RowLayout:
    """Addresses in `rows`, and the integers beside them; the caller keeps the arrays."""
    marks = (c_int32 * (GRADES - 1))(*rows.marks.tolist())
    contexts = 0 if table is None else table.shape[1]
    where = None if table is None else address(table)
    across, along = (address(each) if each.size else None for each in (rows.across, rows.along))
    return _RowLayout(
        where, address(rows.shifts), across, along, rows.width, rows.first, len(rows.along), contexts, marks
    )


def _native() -> Any:
    native = library.chosen()
    return None if native is None else _bound(native)


@cache
def _bound(native: library.Library) -> Any:
    return bind(KERNELS, native)


def _addresses(*arrays: npt.NDArray[Any]) -> list[int]:
    return [address(array) for array in arrays]


def prepare(lattice: Lattice, after: Words, base: Words, low: int) -> Prepared:
    """See `lattice.prepare`."""
    native, n = _native(), len(base)
    if native is None:
        return reference.prepare(lattice, after, base, low)
    after, base = np.ascontiguousarray(after), np.ascontiguousarray(base)
    symbols, levels, extra = np.empty(n, np.int8), np.empty(n, np.uint8), np.empty(4 * n + 8, np.uint8)
    used = native.lattice_prepare(
        *_addresses(symbols, levels, extra, after, base), n, lattice.bits, lattice.shift, lattice.mask, low
    )
    return Prepared(symbols, levels, extra[:used].copy())


def count_segments(prepared: Prepared, width: int, first: int, one_in: int) -> Integers:
    """See `lattice.count_segments`."""
    native, n = _native(), len(prepared.levels)
    if native is None:
        return reference.count_segments(prepared, width, first, one_in)
    counts = np.empty((segments_of(n, width, first), LEVELS, CLASSES), np.int64)
    native.lattice_count_segments(*_addresses(counts, prepared.symbols, prepared.levels), n, width, first, one_in)
    return counts


def project(prepared: Prepared, rows: Rows) -> Integers:
    """See `lattice.project`."""
    native, rank = _native(), len(rows.along)
    if native is None:
        return reference.project(prepared, rows)
    sums = np.empty((len(rows.shifts), rank), np.int32)
    symbols = prepared.symbols
    native.lattice_project(*_addresses(sums, symbols), len(symbols), address(rows.along), rank, rows.width, rows.first)
    return sums.astype(np.int64)


def count_symbols(prepared: Prepared, rows: Rows) -> Integers:
    """See `lattice.count_symbols`."""
    native = _native()
    if native is None:
        return reference.count_symbols(prepared, rows)
    counts = np.empty((rows.grades, CONTEXTS, 2 * SYMBOLS - 1), np.int64)
    symbols = prepared.symbols
    native.lattice_count_symbols(*_addresses(counts, symbols, prepared.levels), len(symbols), byref(_rows(rows)))
    return counts


def encode(prepared: Prepared, model: Model, lanes: int) -> LatticeSymbols:
    """See `lattice.encode`."""
    native, n = _native(), len(prepared.levels)
    if native is None:
        return reference.encode(prepared, model, lanes)
    words, states = np.empty(n, np.uint16), np.empty(lanes, np.uint32)
    frequency = frequencies(model.weights, model.bits)
    share, begin = frequency.astype(np.uint32), (np.cumsum(frequency, axis=1) - frequency).astype(np.uint32)
    used = native.lattice_encode(
        *_addresses(words, states, prepared.symbols, prepared.levels),
        n,
        lanes,
        model.bits,
        byref(_rows(model.rows, model.table)),
        *_addresses(share, begin),
        *share.shape,
    )
    return LatticeSymbols(states, words[n - used :], prepared.extra)


def decode(lattice: Lattice, words: Words, model: Model, steps: LatticeSymbols) -> None:
    """See `lattice.decode`."""
    native = _native()
    if native is None or not words.flags.c_contiguous:
        reference.decode(lattice, words, model, steps)
        return
    states = steps.states.astype(np.uint32)  # a copy: they are used up
    entries = np.empty(len(model.weights) << model.bits, np.uint32)
    stream, extra = np.ascontiguousarray(steps.words), np.ascontiguousarray(steps.extra)
    failed = native.lattice_decode(
        address(words),
        len(words),
        lattice.bits,
        lattice.shift,
        lattice.mask,
        model.low,
        model.bits,
        *_addresses(entries, model.weights),
        *model.weights.shape,
        byref(_rows(model.rows, model.table)),
        address(states),
        len(states),
        address(stream),
        len(stream),
        address(extra),
        len(extra),
    )
    if failed:
        raise DamagedError(ENDS if failed == 1 else OPEN_BITS)
