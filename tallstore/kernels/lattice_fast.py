"""The functions of `kernels.lattice` at speed: the native kernels where they are, the reference where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ctypes import Structure, byref, c_int32, c_int64, c_void_p
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tallstore.errors import DamagedError
from tallstore.kernels import lattice as reference
from tallstore.kernels import lattice_choices
from tallstore.kernels.lattice import (
    CLASSES,
    CONTEXTS,
    ENDS,
    GRADES,
    LEVELS,
    MOST_BITS,
    MOST_TABLES,
    OPEN_BITS,
    SYMBOLS,
    Bytes,
    Counts,
    Integers,
    Lattice,
    LatticeSymbols,
    Model,
    Prepared,
    Rows,
    Words,
    segments_of,
)
from tallstore.kernels.lattice_choices import LOGS
from tallstore.kernels.native import library
from tallstore.kernels.native.library import Function, address
from tallstore.kernels.scratch import scratch

__all__ = [
    "KERNELS",
    "SPARE",
    "along_rows",
    "count_segments",
    "count_symbols",
    "decode",
    "encode",
    "memory",
    "prepare",
    "project",
    "shifts",
    "tables",
]

_Kind = TypeVar("_Kind", bound=np.generic)
_P, _I, _L = c_void_p, c_int32, c_int64
KERNELS: Mapping[str, Function] = {
    "lattice_prepare": (_L, (_P, _P, _P, _P, _P, _L, _I, _I, _I, _I)),
    "lattice_count_segments": (None, (_P, _P, _P, _L, _L, _L, _L)),
    "lattice_shifts": (None, (_P, _P, _L, _I, _P)),
    "lattice_along": (None, (_P, _P, _L, _L, _I, _I, _P, _P, _P)),
    "lattice_tables": (_I, (_P, _P, _P, _P, _I, _I, _I, _I, _P, _P)),
    "lattice_project": (None, (_P, _P, _L, _P, _I, _L, _L)),
    "lattice_count_symbols": (None, (_P, _P, _P, _L, _P)),
    "lattice_encode": (_L, (_P, _P, _P, _P, _L, _I, _I, _P, _P, _I, _I)),
    "lattice_decode": (_I, (_P, _L, _I, _I, _I, _P, _L, _P, _L, _P)),
}
"""Of `native/src/lattice_choices.c`, `lattice_encode.c` and `lattice_decode.c`."""


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


_native = library.kernels_of(KERNELS)


def _addresses(*arrays: npt.NDArray[Any]) -> list[int]:
    return [address(array) for array in arrays]


SPARE = 64
"""Numbers that kernels may write behind the last."""
_KEPT = 1 << 21
"""Elements up to which this thread's memory is used again: the system takes as long to hand out pages as kernels take
to fill them."""


def memory(name: str, n: int, kind: type[_Kind], each: int = 1) -> npt.NDArray[_Kind]:
    """Room for `each` numbers of every of n elements, and `SPARE` more; it holds anything."""
    size = each * n + SPARE
    return scratch(f"lattice {name}", size, kind) if n <= _KEPT else np.empty(size, kind)


def prepare(lattice: Lattice, after: Words, base: Words, low: int) -> Prepared:
    """See `lattice.prepare`; what is given is good until this thread prepares the next."""
    native, n = _native(), len(base)
    if native is None:
        return reference.prepare(lattice, after, base, low)
    after, base = np.ascontiguousarray(after), np.ascontiguousarray(base)
    symbols, levels = memory("symbols", n, np.int8)[:n], memory("levels", n, np.uint8)[:n]
    extra = memory("open bits", n, np.uint8, 4)
    used = native.lattice_prepare(
        *_addresses(symbols, levels, extra, after, base), n, lattice.bits, lattice.shift, lattice.mask, low
    )
    return Prepared(symbols, levels, extra[:used].copy())


def count_segments(prepared: Prepared, width: int, first: int, one_in: int) -> Counts:
    """See `lattice.count_segments`."""
    native, n = _native(), len(prepared.levels)
    if native is None:
        return reference.count_segments(prepared, width, first, one_in)
    counts = np.empty((segments_of(n, width, first), LEVELS, CLASSES), np.int16)
    native.lattice_count_segments(*_addresses(counts, prepared.symbols, prepared.levels), n, width, first, one_in)
    return counts


def shifts(counts: Counts) -> Bytes:
    """See `lattice_choices.shifts`."""
    native = _native()
    if native is None:
        return lattice_choices.shifts(counts)
    chosen, counts = np.empty(len(counts), np.uint8), np.ascontiguousarray(counts, np.int16)
    native.lattice_shifts(*_addresses(chosen, counts), len(counts), lattice_choices.ROUNDS, address(LOGS))
    return chosen


def along_rows(begin: Integers, symbols: npt.NDArray[np.int8], turns: int) -> Integers:
    """See `lattice_choices.along`."""
    native = _native()
    if native is None:
        return lattice_choices.along(begin, symbols, turns)
    vectors, rank, longest = begin.astype(np.int8), len(begin), max(symbols.shape)
    across, signs = np.empty((rank, len(symbols)), np.int8), np.array(symbols, order="C")  # a copy: they are used up
    sums, each = np.empty(rank * longest, np.int32), np.empty(longest, np.float64)
    native.lattice_along(*_addresses(vectors, signs), *symbols.shape, rank, turns, *_addresses(across, sums, each))
    return vectors.astype(np.int64)


def tables(counts: Integers, *, signed: bool) -> tuple[Bytes, Bytes, int]:
    """See `lattice_choices.tables`."""
    native = _native()
    if native is None:
        return lattice_choices.tables(counts, signed=signed)
    counts = np.array(counts, np.int64, order="C")  # a copy: they are used up
    table, weights = np.empty(len(counts), np.uint8), np.empty(counts.size, np.uint8)
    cost, kinds = c_int64(), c_int32()
    number = native.lattice_tables(
        *_addresses(table, weights),
        byref(cost),
        address(counts),
        *counts.shape,
        signed,
        lattice_choices.BITS,
        address(LOGS),
        byref(kinds),
    )
    return table, weights[: number * kinds.value].reshape(number, -1), cost.value


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
    """See `lattice.encode`; words are good until this thread encodes the next."""
    native, n = _native(), len(prepared.levels)
    if native is None:
        return reference.encode(prepared, model, lanes)
    words, states = memory("words", n, np.uint16)[: n + 4], np.empty(lanes, np.uint32)
    used = native.lattice_encode(
        *_addresses(words, states, prepared.symbols, prepared.levels),
        n,
        lanes,
        model.bits,
        byref(_rows(model.rows, model.table)),
        address(model.weights),
        *model.weights.shape,
    )
    return LatticeSymbols(states, words[n + 4 - used :], prepared.extra)


def decode(lattice: Lattice, words: Words, data: Bytes, told: Bytes) -> bool:
    """Turn the base's elements into the task's, in place, by a chunk of mode 3 as it is.

    Args:
        lattice: of the type.
        words: the base's elements, shape (n,).
        data: the chunk.
        told: what its model's frame holds.

    Returns:
        whether that is done; False, and nothing is, where there is no kernel, or the chunk is not what one is.

    Raises:
        DamagedError: see `lattice.decode`.
    """
    native = _native()
    if native is None or not words.flags.c_contiguous:
        return False
    return run_decoder(native.lattice_decode, (words,), lattice, data, told)


def run_decoder(
    decoder: Callable[..., int], words: Sequence[Words], lattice: Lattice, data: Bytes, told: Bytes
) -> bool:
    """Whether a chunk was what it should be, and the first of the words are the task's now; see `decode`.

    `words`: the elements to be moved, and those beside them that the decoder reads; contiguous, shape (n,) each.

    Raises:
        DamagedError: the words or the open bits do not end with the elements.
    """
    failed = decoder(
        *(address(each) for each in words),
        len(words[0]),
        lattice.bits,
        lattice.shift,
        lattice.mask,
        address(data),
        len(data),
        address(told),
        len(told),
        address(scratch("lattice entries", MOST_TABLES << MOST_BITS, np.uint32)),
    )
    if failed in {1, 2}:
        raise DamagedError(ENDS if failed == 1 else OPEN_BITS)
    return not failed
