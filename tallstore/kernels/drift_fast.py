"""The functions of `kernels.drift` at speed: the native kernels where they are, the reference where not."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import Structure, byref, c_int32, c_int64, c_void_p

import numpy as np

from tallstore.kernels import drift as reference
from tallstore.kernels import drift_choices
from tallstore.kernels import lattice as plain
from tallstore.kernels.drift import DriftModel, DriftSymbols, Told, still_of
from tallstore.kernels.lattice import (
    LEVELS,
    SYMBOLS,
    Bytes,
    Counts,
    Integers,
    Lattice,
    Prepared,
    Words,
    segments_of,
)
from tallstore.kernels.lattice_choices import LOGS
from tallstore.kernels.lattice_fast import memory, run_decoder
from tallstore.kernels.native import library
from tallstore.kernels.native.library import Function, address

__all__ = ["KERNELS", "count_still", "count_symbols", "decode", "encode", "join", "tell"]

_P, _I, _L = c_void_p, c_int32, c_int64
KERNELS: Mapping[str, Function] = {
    "drift_grades": (None, (_P, _P, _P, _P, _L, _I, _I, _P)),
    "drift_count_still": (None, (_P, _P, _P, _P, _L, _L, _L, _L)),
    "drift_count_symbols": (None, (_P, _P, _P, _P, _P, _L, _P)),
    "drift_join": (None, (_P, _P, _P, _I, _I, _P)),
    "drift_encode": (_L, (_P, _P, _P, _P, _L, _P, _P, _P, _P, _L, _I, _I, _P, _P, _I, _I)),
    "drift_decode": (_I, (_P, _P, _L, _I, _I, _I, _P, _L, _P, _L, _P)),
}
"""Of `native/src/drift_encode.c` and `drift_decode.c`."""


class _Contexts(Structure):
    """`ts_drift` of `native/src/drift.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("table", "shifts")),
        *(("width", c_int64), ("first", c_int64), ("contexts", c_int32)),
    )


_native = library.kernels_of(KERNELS)


def tell(lattice: Lattice, start: Words, base: Words, unit: int, grades: Bytes) -> Told:
    """See `drift.tell`; what is given is good until this thread tells the next."""
    native, n = _native(), len(start)
    if native is None:
        return reference.tell(lattice, start, base, unit, grades)
    start, base, grades = np.ascontiguousarray(start), np.ascontiguousarray(base), np.ascontiguousarray(grades)
    told = Told(memory("grades", n, np.uint8)[:n], memory("negative", n, np.int8)[:n])
    where = (address(each) for each in (told.grade, told.negative, start, base))
    native.drift_grades(*where, n, lattice.bits, unit, address(grades))
    return told


def count_still(prepared: Prepared, told: Told, width: int, first: int, one_in: int) -> Counts:
    """See `drift.count_still`."""
    native, n = _native(), len(told.grade)
    if native is None:
        return reference.count_still(prepared, told, width, first, one_in)
    counts = np.empty((segments_of(n, width, first), LEVELS, plain.CLASSES), np.int16)
    where = (address(each) for each in (counts, prepared.symbols, prepared.levels, told.grade))
    native.drift_count_still(*where, n, width, first, one_in)
    return counts


def count_symbols(prepared: Prepared, told: Told, width: int, first: int, shifts: Bytes) -> Integers:
    """See `drift.count_symbols`."""
    native, most = _native(), int(shifts.max())
    if native is None:
        return reference.count_symbols(prepared, told, width, first, shifts)
    counts = np.empty((reference.GRADES * LEVELS + most, 2 * SYMBOLS - 1), np.int64)
    contexts = _Contexts(None, address(shifts), width, first, LEVELS + most)
    where = (address(each) for each in (counts, prepared.symbols, prepared.levels, told.grade, told.negative))
    native.drift_count_symbols(*where, len(told.grade), byref(contexts))
    return counts


def join(counts: Integers) -> tuple[Bytes, int]:
    """See `drift_choices.join`."""
    native = _native()
    if native is None:
        return drift_choices.join(counts)
    joined, cost, counts = np.empty(len(counts), np.uint8), c_int64(), np.array(counts, np.int64, order="C")
    native.drift_join(address(joined), byref(cost), address(counts), *counts.shape, address(LOGS))
    return joined, cost.value


def encode(prepared: Prepared, told: Told, model: DriftModel, lanes: int, exceptions: int) -> DriftSymbols:
    """See `drift.encode`; words are good until this thread encodes the next.

    `exceptions`: how many still elements moved.
    """
    native, n = _native(), len(told.grade)
    if native is None:
        return reference.encode(prepared, told, model, lanes)
    words, states = memory("words", n, np.uint16)[: n + 4], np.empty(lanes, np.uint32)
    places, odd, table = np.empty(exceptions, np.uint32), np.empty(exceptions, np.int8), still_of(model)
    contexts = _Contexts(
        address(table), address(model.shifts), model.width, model.first, LEVELS + int(model.shifts.max())
    )
    read = (prepared.symbols, prepared.levels, told.grade, told.negative)
    used = native.drift_encode(
        *(address(each) for each in (words, states, places, odd)),
        exceptions,
        *(address(each) for each in read),
        n,
        lanes,
        model.bits,
        byref(contexts),
        address(model.weights),
        *model.weights.shape,
    )
    return DriftSymbols(states, words[n + 4 - used :], prepared.extra, places, odd)


def decode(lattice: Lattice, words: Words, base: Words, data: Bytes, told: Bytes) -> bool:
    """Turn a start's elements into the task's, in place, by a chunk of mode 4 as it is.

    Args:
        lattice: of the type.
        words: the start's elements, shape (n,).
        base: the base's: shape (n,).
        data: the chunk.
        told: what its model's frame holds.

    Returns:
        whether that is done; False, and nothing is, where there is no kernel, or the chunk is not what one is.

    Raises:
        DamagedError: see `drift.decode`.
    """
    native = _native()
    if native is None or not words.flags.c_contiguous or not base.flags.c_contiguous:
        return False
    return run_decoder(native.drift_decode, (words, base), lattice, data, told)
