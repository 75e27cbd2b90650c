"""Kernels of numbers with a known dither (`src/known_dither.c`) as functions of arrays: see `kernels.known_dither`."""

from __future__ import annotations

from ctypes import byref, c_double, c_int32, c_int64, c_uint32, c_void_p

import numpy as np
import numpy.typing as npt

from tallstore.kernels.lattice_fast import memory
from tallstore.kernels.native import library
from tallstore.kernels.native.choices import LOGARITHM
from tallstore.kernels.native.library import Function, address

__all__ = [
    "choose_classes",
    "count_bins",
    "pack_numbers",
    "pick",
    "put_back",
    "take_marks",
    "take_numbers",
    "unpack_numbers",
]

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int8]
Words = npt.NDArray[np.uint16]
_P, _I, _N, _U = c_void_p, c_int32, c_int64, c_uint32
_TABLE: dict[str, Function] = {
    "unpack_numbers": (None, (_P, _P, _N)),
    "pack_numbers": (None, (_P, _P, _N)),
    "choose_classes": (_I, (_P, _I, _N, _I, c_double, c_double, _P)),
    "count_bins": (None, (_P, _P, _N, _U, _I, _N)),
    "pick": (_N, (_P, _P, _N, _U, _I, _I, _P, _I)),
    "take_out": (_N, (_P, _P, _P, _P, _P, _N, _U, _I, _I, _I, _P)),
    "put_back": (_I, (_P, _P, _N, _P, _P, _I)),
}
_SPARE = 64
"""Words behind the last that `pick` may write."""
_kernels = library.kernels_of(_TABLE, needed=True)


def unpack_numbers(packed: Bytes, n: int) -> Numbers:
    """Symbols of a signed mask as 0, 1 and −1."""
    out = np.empty(n, np.int8)
    _kernels().unpack_numbers(address(out), address(packed), n)
    return out


def pack_numbers(numbers: Numbers) -> Bytes:
    """The inverse."""
    out = np.empty(-(-len(numbers) // 4), np.uint8)
    _kernels().pack_numbers(address(out), address(numbers), len(numbers))
    return out


def count_bins(packed: Bytes, n: int, first: int, bins: int, every: int) -> npt.NDArray[np.int64]:
    """Symbols that are not 0 by their dither: shape (bins,), a power of two. A run is counted of every so many."""
    counts = np.zeros(bins, np.int64)
    _kernels().count_bins(address(counts), address(packed), n, first, bins.bit_length() - 1, every)
    return counts


def choose_classes(counts: npt.NDArray[np.float64], among: int, least: int, gap: float, frame: float) -> int:
    """The best shift and number of classes, as one number."""
    bits = len(counts).bit_length() - 1
    chosen: int = _kernels().choose_classes(address(counts), bits, among, least, gap, frame, byref(LOGARITHM))
    return chosen


def pick(n: int, first: int, shift: int, classes: int, live: Bytes, block: int) -> tuple[Bytes, Words]:
    """A bit for each element, and the words of those that are coded."""
    picked, words = np.empty(-(-n // 64) * 8, np.uint8), np.empty(n + _SPARE, np.uint16)
    where = address(live) if len(live) else None
    count = _kernels().pick(address(picked), address(words), n, first, shift, classes, where, block)
    return picked[: -(-n // 8)], words[:count]


def take_marks(
    packed: Bytes, n: int, first: int, shift: int, classes: int, low: int, live: Bytes
) -> tuple[Numbers, Bytes, Bytes]:
    """Symbols and levels of the marks that are coded, and the others, packed: good until this thread asks again."""
    symbols, levels, rest = memory("symbols", n, np.int8), memory("levels", n, np.uint8), memory("rest", n, np.uint8)
    out, where = (address(symbols), address(levels), address(rest)), address(live) if len(live) else None
    count = _kernels().take_out(*out, address(packed), None, n, first, shift, classes, low, where)
    return symbols[:count], levels[:count], rest[: -(-n // 4)]


def take_numbers(
    numbers: Numbers, first: int, shift: int, classes: int, low: int, live: Bytes
) -> tuple[Numbers, Bytes]:
    """The same of numbers, without the others."""
    n = len(numbers)
    symbols, levels = memory("symbols", n, np.int8), memory("levels", n, np.uint8)
    out, where = (address(symbols), address(levels), None), address(live) if len(live) else None
    count = _kernels().take_out(*out, None, address(numbers), n, first, shift, classes, low, where)
    return symbols[:count], levels[:count]


def put_back(rest: Numbers, picked: Bytes, words: Words, after: Words, most: int) -> bool:
    """Set what is coded; whether all of it was in range, and nothing there before."""
    n = len(rest)
    return bool(_kernels().put_back(address(rest), address(picked), n, address(words), address(after), most))
