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

from tallstore.kernels.lattice import LEVELS
from tallstore.kernels.logarithm import log2
from tallstore.kernels.native import known_dither as native
from tallstore.kernels.place_hash import DRAWN, drawn_at
from tallstore.kernels.reference import Bytes, pack, unpack
from tallstore.kernels.registry import kernel

__all__ = [
    "BINS",
    "BLOCK",
    "CLASSES",
    "EXPONENT",
    "RUN",
    "SHIFTS",
    "Doubles",
    "Numbers",
    "Words",
    "choose_classes",
    "count_bins",
    "pack_numbers",
    "pick",
    "put_back",
    "take_marks",
    "take_numbers",
    "unpack_numbers",
]

Numbers = npt.NDArray[np.int8]
Words = npt.NDArray[np.uint16]
Doubles = npt.NDArray[np.float64]
CLASSES = 16
"""Of the dither, at most."""
BINS = 1 << 12
"""Of the dither, where numbers are counted."""
SHIFTS = range(DRAWN - BINS.bit_length() + 1, DRAWN - CLASSES.bit_length() + 2)
"""Classes are as wide as a bin, or more, up to all of the dither in as many as there can be."""
_GAP, _FRAME = 1.5, 300.0
"""Bits that a gap takes beside its information, and a list of them, about."""
RUN = 1 << 10
"""Elements that are counted one behind the other."""
BLOCK = 6
"""A bit is told of 2^BLOCK elements when they are encoded."""
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
def count_bins(packed: Bytes, n: int, first: int, one_in: int) -> npt.NDArray[np.int64]:
    """How many symbols of a signed mask that are not 0 have each dither: shape (BINS,).

    Args:
        packed: n symbols, packed.
        n: elements.
        first: see `place_hash.first_of`.
        one_in: of how many runs of `RUN` elements one is counted, the first among them.
    """
    places = np.flatnonzero(unpack(packed, "signed", n)).astype(np.uint32)
    places = places[places // RUN % one_in == 0]
    return np.bincount(drawn_at(places, first) // ((1 << DRAWN) // BINS), minlength=BINS)


@count_bins.native
def _(packed: Bytes, n: int, first: int, one_in: int) -> npt.NDArray[np.int64]:
    return native.count_bins(packed, n, first, BINS, RUN * one_in)


@kernel
def choose_classes(counts: Doubles, among: int) -> tuple[int, int]:
    """How much of the dither is coded, by what it takes.

    Args:
        counts: marks by their dither, shape (BINS,).
        among: elements of live blocks.

    Returns:
        a class is as many places as 2 to the power of the first; how many classes are coded.
    """
    steps = 1 << np.arange(len(SHIFTS))[:, None]  # bins of a class
    upto = np.concatenate([[0.0], np.cumsum(counts)])[steps * np.arange(CLASSES + 1)]
    of = max(among, 1) / BINS * steps  # there are none where nothing has a mark
    share = np.clip(np.diff(upto, axis=1) / of, 0.0, 1.0)
    on, off = np.where(share > 0, share, 1.0), np.where(share < 1, 1.0 - share, 1.0)
    bits = np.cumsum(-of * (share * log2(on) + (1.0 - share) * log2(off)), axis=1)
    # What is left behind them is coded as gaps, in a frame.
    left = upto[-1, -1] - upto[:, 1:]
    bits += np.where(left > 0, left * (log2(among / np.maximum(left, 1.0)) + _GAP) + _FRAME, 0.0)
    bits[1:, : CLASSES // 2] = np.inf  # as many places as classes of half their width
    shift, classes = divmod(int(np.argmin(bits)), CLASSES)
    return SHIFTS[shift], classes + 1


@choose_classes.native
def _(counts: Doubles, among: int) -> tuple[int, int]:
    shift, classes = divmod(native.choose_classes(counts, among, SHIFTS[0], _GAP, _FRAME), CLASSES)
    return shift, classes + 1


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
def take_marks(
    packed: Bytes, n: int, first: int, shift: int, classes: int, low: int, live: Bytes
) -> tuple[Numbers, Bytes, Bytes]:
    """The marks that are coded, as `lattice` takes them: what would be made of words that `pick` gives.

    Args:
        packed: n symbols of a signed mask, packed.
        n: elements.
        first: see `place_hash.first_of`.
        shift: a class is as many places as 2^shift.
        classes: those whose class is below are coded.
        low: the exponent of level 0: 0 or 1.
        live: of each 2^BLOCK elements a bit, whether any of them is coded; empty if there are none such.

    Returns:
        symbols, which are the numbers, and levels of those that are coded, shape (K,); the others, packed as they came,
        with the symbol 0 in place of those that are coded. All are good until this thread asks again.
    """
    picked, words = pick.reference(n, first, shift, classes, live, BLOCK)
    at = np.unpackbits(picked, count=n, bitorder="little").view(bool)
    symbols = unpack(packed, "signed", n)
    rest = pack(np.where(at, np.uint8(0), symbols), "signed")
    return unpack_numbers.reference(packed, n)[at], _levels(words, low), rest


@take_marks.native
def _(
    packed: Bytes, n: int, first: int, shift: int, classes: int, low: int, live: Bytes
) -> tuple[Numbers, Bytes, Bytes]:
    return native.take_marks(packed, n, first, shift, classes, low, live)


@kernel
def take_numbers(
    numbers: Numbers, first: int, shift: int, classes: int, low: int, live: Bytes
) -> tuple[Numbers, Bytes]:
    """The same of numbers, shape (n,), without the others: numbers, which are the symbols of small ones, and levels."""
    picked, words = pick.reference(len(numbers), first, shift, classes, live, BLOCK)
    at = np.unpackbits(picked, count=len(numbers), bitorder="little").view(bool)
    return numbers[at], _levels(words, low)


@take_numbers.native
def _(numbers: Numbers, first: int, shift: int, classes: int, low: int, live: Bytes) -> tuple[Numbers, Bytes]:
    return native.take_numbers(numbers, first, shift, classes, low, live)


def _levels(words: Words, low: int) -> Bytes:
    levels: Bytes = np.minimum((words >> EXPONENT) - low, LEVELS - 1).astype(np.uint8)
    return levels


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
