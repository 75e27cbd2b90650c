"""Whole numbers that were rounded with a dither that decoders know, and what it tells of them: the reference.

With u = drawn / 2^24, drawn by the hash of an element's place (see `place_hash`), an encoder rounds a magnitude of x
steps to q = ⌈x − u⌉ of them, which is x on the average. That is 0 wherever u ≥ x: where magnitudes are small beside
the step, only elements with a small u can be anything else, and the smaller u is, the more of them are. Those of the
first classes of u are picked out and coded, with the class for a context; what is left behind them is next to nothing.
So of where marks lie only what the dither leaves open is stored, which is half as much or less.

Who shares random numbers need not send them. A dither that the decoder knows is subtractive dither (Schuchman 1964;
Ziv 1985), used in what is coded alone: results keep their few values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tallstore.kernels.native import known_dither as native
from tallstore.kernels.place_hash import DRAWN, drawn_at
from tallstore.kernels.reference import Bytes, pack, unpack
from tallstore.kernels.registry import kernel

__all__ = [
    "BINS",
    "CLASSES",
    "EXPONENT",
    "RUN",
    "Numbers",
    "Words",
    "count_bins",
    "pack_numbers",
    "pick",
    "put_back",
    "take_out",
    "unpack_numbers",
]

Numbers = npt.NDArray[np.int8]
Words = npt.NDArray[np.uint16]
CLASSES = 16
"""Of the dither, at most."""
BINS = 1 << 12
"""Of the dither, where numbers are counted."""
RUN = 1 << 10
"""Elements that are counted one behind the other."""
EXPONENT = 7
"""Where a word's exponent begins: it is one more than the class."""


@kernel
def unpack_numbers(packed: Bytes, n: int) -> Numbers:
    """Symbols of a signed mask as numbers: 0, 1 and −1, shape (n,)."""
    symbols = unpack(packed, "signed", n).view(np.int8)
    return symbols - 3 * (symbols >> 1)


@unpack_numbers.native
def _(packed: Bytes, n: int) -> Numbers:
    return native.unpack_numbers(packed, n)


@kernel
def pack_numbers(numbers: Numbers) -> Bytes:
    """The inverse of `unpack_numbers`."""
    return pack((numbers.view(np.uint8) & 3) - (numbers.view(np.uint8) >> 7), "signed")


@pack_numbers.native
def _(numbers: Numbers) -> Bytes:
    return native.pack_numbers(numbers)


@kernel
def count_bins(numbers: Numbers, first: int, one_in: int) -> npt.NDArray[np.int64]:
    """How many elements that are not 0 have each dither: shape (BINS,).

    Args:
        numbers: shape (n,).
        first: see `place_hash.first_of`.
        one_in: of how many runs of `RUN` elements one is counted, the first among them.
    """
    places = np.flatnonzero(numbers).astype(np.uint32)
    places = places[places // RUN % one_in == 0]
    return np.bincount(drawn_at(places, first) // ((1 << DRAWN) // BINS), minlength=BINS)


@count_bins.native
def _(numbers: Numbers, first: int, one_in: int) -> npt.NDArray[np.int64]:
    return native.count_bins(numbers, first, BINS, RUN * one_in)


@kernel
def pick(n: int, first: int, shift: int, classes: int, live: Bytes, block: int) -> tuple[Bytes, Words]:
    """Which elements are coded, and their classes.

    Args:
        n: elements.
        first: see `place_hash.first_of`.
        shift: a class is as many places as 2^shift.
        classes: those whose class is below are coded; at most `CLASSES`.
        live: of each 2^block elements a bit, whether any of them is coded; empty if there are none such.
        block: at least 6.

    Returns:
        a bit for each element, shape (⌈n/8⌉,); and of those coded, in order, (class + 1) · 2^EXPONENT: shape (K,).
    """
    of = drawn_at(np.arange(n, dtype=np.uint32), first) >> np.uint32(shift)
    picked = of < classes
    if len(live):
        picked &= np.unpackbits(live, bitorder="little").view(bool)[np.arange(n) >> block]
    words = ((of[picked] + 1) << EXPONENT).astype(np.uint16)
    return np.packbits(picked, bitorder="little"), words


@pick.native
def _(n: int, first: int, shift: int, classes: int, live: Bytes, block: int) -> tuple[Bytes, Words]:
    return native.pick(n, first, shift, classes, live, block)


@kernel
def take_out(numbers: Numbers, picked: Bytes, words: Words) -> tuple[Words, Numbers]:
    """The words of those that are coded with their numbers added, shape (K,); the numbers of the others, shape (n,)."""
    at = np.unpackbits(picked, count=len(numbers), bitorder="little").view(bool)
    rest = np.where(at, np.int8(0), numbers)
    return words + numbers[at].astype(np.uint16), rest


@take_out.native
def _(numbers: Numbers, picked: Bytes, words: Words) -> tuple[Words, Numbers]:
    return native.take_out(numbers, picked, words)


@kernel
def put_back(rest: Numbers, picked: Bytes, words: Words, after: Words, most: int) -> bool:
    """Set the numbers of those that are coded, in place; False where one is larger than `most`, or is there already."""
    at = np.unpackbits(picked, count=len(rest), bitorder="little").view(bool)
    moved = (after - words).view(np.int16)
    if (np.abs(moved.astype(np.int32)) > most).any() or rest[at].any():
        return False
    rest[at] = moved.astype(np.int8)
    return True


@put_back.native
def _(rest: Numbers, picked: Bytes, words: Words, after: Words, most: int) -> bool:
    return native.put_back(rest, picked, words, after, most)
