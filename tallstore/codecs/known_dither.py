"""Codecs of marks and levels that were rounded with a dither which decoders know: only what it leaves open is stored.

See `kernels.known_dither` for the idea. Numbers q of a chunk, of which an element's place draws the dither, are

    u8 shift | u8 classes | u8 block | u8 0 | u32 first | u32 flag bytes | u32 coded bytes
        | zstd frame of the flags | a chunk of `lattice` | a chunk of `adaptive`, signed

The elements of the first classes are coded as steps of `lattice` from made-up elements, which have the class for an
exponent; the others as marks, of which there are few. Where blocks have none that is coded, flags say so: rows that
never moved.

Mask codec `dither`:             u8 0 | a chunk of `adaptive`            u8 1 | numbers: 1 is +, −1 is −
Vector codec `dither-levels`:    u8 L | L × f32: what 1 … L stand for | numbers
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.codecs import zstd
from tallstore.codecs.adaptive import Adaptive
from tallstore.codecs.base import Buffer, Bytes, Floats, IndexedValues, MaskCodec, VectorCodec
from tallstore.codecs.codebook import pack_indices
from tallstore.codecs.lattice import LatticeCodec
from tallstore.errors import FormatError
from tallstore.kernels.known_dither import (
    BINS,
    CLASSES,
    RUN,
    Numbers,
    count_bins,
    pack_numbers,
    pick,
    put_back,
    take_out,
    unpack_numbers,
)
from tallstore.kernels.logarithm import log2
from tallstore.kernels.place_hash import DRAWN

__all__ = ["DitheredLevels", "DitheredMask"]

Doubles = npt.NDArray[np.float64]

_HEAD = struct.Struct("<BBBxIII")
_OTHERWISE, _KNOWN = 0, 1
_LATTICE, _MARKS = LatticeCodec(), Adaptive()
_SHIFTS = range(DRAWN - BINS.bit_length() + 1, DRAWN - CLASSES.bit_length() + 2)
"""Classes are as wide as a bin, or more, up to all of the dither in as many as there can be."""
_BLOCK, _LEAST_BLOCK, _MOST_BLOCK = 6, 6, 24
_NO_CHANCE = 12.0
"""A run of blocks without marks is told of where so many were expected in it."""
_MOSTLY = 32
"""They are, where one block in so many is in such a run."""
_GAP, _FRAME = 1.5, 300.0
"""Bits that a gap takes beside its information, and a list of them, about."""
_ONE_IN, _LONG = 17, 1 << 17
"""Of how many runs one is counted, in chunks from so many elements on: an odd number, so that rows fall out of step."""
_SHORT = 1 << 16
"""Elements up to which marks are coded in the other form, too."""
_MOST_LEVELS, _IN_FOUR = 127, 16


class DitheredMask(MaskCodec):
    """Spec: `spec/codecs/dither.md`."""

    id = "dither"

    def encode_packed(self, packed: Bytes, kind: str, n: int) -> bytes:
        """Marks of which no dither is known."""
        return bytes([_OTHERWISE]) + _MARKS.encode_packed(packed, kind, n)

    def encode_drawn(self, packed: Bytes, n: int, first: int) -> bytes:
        """Signed marks, given what drew them: see `place_hash.first_of`."""
        coded = bytes([_KNOWN]) + _encode(unpack_numbers(packed, n), first, 1)
        return coded if n > _SHORT else min(coded, self.encode_packed(packed, "signed", n), key=len)

    def decode_packed(self, data: Buffer, kind: str, n: int) -> Bytes:
        """By the first byte."""
        view = memoryview(data).cast("B")
        mode = view[0] if len(view) else None
        if mode == _OTHERWISE:
            return _MARKS.decode_packed(view[1:], kind, n)
        if mode != _KNOWN or kind != "signed":
            raise FormatError(f"a {kind} mask with a known dither, of mode {mode}, is unknown or cut off")
        return pack_numbers(_decode(view[1:], n, 1))


class DitheredLevels(VectorCodec):
    """Spec: `spec/codecs/dither.md`."""

    id = "dither-levels"

    def encode(self, values: Floats) -> bytes:
        """Values that are few, drawn by whatever; those of either sign have the same magnitudes."""
        sizes = np.unique(np.abs(values[values != 0]))
        if len(sizes) > _MOST_LEVELS:
            raise ValueError(f"{len(sizes)} levels, expected at most {_MOST_LEVELS}")
        number = np.searchsorted(sizes, np.abs(values)) + 1
        numbers = np.where(values == 0, 0, np.where(values < 0, -number, number))
        return self.encode_drawn(numbers.astype(np.int8), sizes.astype(np.float32), 0)

    def encode_drawn(self, numbers: Numbers, sizes: Floats, first: int) -> bytes:
        """Numbers, given what drew them; `sizes`: what 1 … L stand for."""
        return bytes([len(sizes)]) + sizes.astype("<f4").tobytes() + _encode(numbers, first, len(sizes))

    def decode(self, data: Buffer, n: int) -> Floats:
        """Look every index up."""
        return self.decode_levels(data, n).values(n)

    def decode_levels(self, data: Buffer, n: int) -> IndexedValues:
        """0, the levels of +, then those of −."""
        view = memoryview(data).cast("B")
        count = view[0] if len(view) else 0
        if count > _MOST_LEVELS or len(view) < 1 + 4 * count:
            raise FormatError(f"{count} levels of a known dither are too many, or cut off")
        sizes = np.frombuffer(view[1 : 1 + 4 * count], "<f4")
        if not np.isfinite(sizes).all():
            raise FormatError("a level of a known dither is not finite")
        numbers = _decode(view[1 + 4 * count :], n, count)
        table = np.concatenate([np.zeros(1, np.float32), sizes, -sizes])
        order = np.zeros(256, np.uint8)
        order[np.arange(-count, count + 1)] = [*range(2 * count, count, -1), *range(count + 1)]
        bits = 4 if len(table) <= _IN_FOUR else 8
        return IndexedValues(table, pack_indices(numbers.view(np.uint8), bits, order), bits)


class _Choice(NamedTuple):
    """What of the dither is coded."""

    shift: int
    classes: int


_ALL = _Choice(_SHIFTS[-1], CLASSES)


def _encode(numbers: Numbers, first: int, most: int) -> bytes:
    """Numbers of a chunk, none larger than `most`."""
    n, live = len(numbers), _live(numbers)
    among = n if not len(live) else int(np.unpackbits(live).sum()) << _BLOCK
    choice = _chosen(_counted(numbers, first), among) if most == 1 else _ALL
    picked, words = pick(n, first, *choice, live, _BLOCK)
    after, rest = take_out(numbers, picked, words)
    flags = zstd.compress(live) if len(live) else b""
    coded = _LATTICE.encode_moved(after, words, "BF16")
    others = b"" if _is_all(choice) else _MARKS.encode_packed(pack_numbers(rest), "signed", n)
    head = _HEAD.pack(*choice, _BLOCK if len(live) else 0, first, len(flags), len(coded))
    return head + flags + coded + others


def _counted(numbers: Numbers, first: int) -> Doubles:
    """Marks by their dither, about: of long chunks some tell of all."""
    n = len(numbers)
    one_in = _ONE_IN if n >= _LONG else 1
    counts = count_bins(numbers, first, one_in)
    if one_in == 1 or not counts.any():
        return count_bins(numbers, first, 1).astype(np.float64)
    whole, rest = divmod(n, RUN * one_in)
    scaled: Doubles = counts.astype(np.float64) * (n / (whole * RUN + min(rest, RUN)))
    return scaled


def _decode(view: memoryview, n: int, most: int) -> Numbers:
    """The same, none larger than `most`."""
    if len(view) < _HEAD.size:
        raise FormatError("numbers with a known dither are cut off")
    if view[3]:
        raise FormatError("a byte that is reserved is not zero")
    shift, classes, block, first, flag_bytes, coded_bytes = _HEAD.unpack_from(view)
    choice, ends = _Choice(shift, classes), np.cumsum([_HEAD.size, flag_bytes, coded_bytes])
    if not 0 < classes <= CLASSES or shift > DRAWN or classes << shift > 1 << DRAWN or ends[-1] > len(view):
        raise FormatError(f"{classes} classes of 2^{shift} of a dither are out of range, or cut off")
    live = np.zeros(0, np.uint8)
    if block:
        if not _LEAST_BLOCK <= block <= _MOST_BLOCK:
            raise FormatError(f"blocks of 2^{block} elements are out of range")
        blocks = -(-n >> block)
        live = zstd.decompress(view[ends[0] : ends[1]], -(-blocks // 8))
        if blocks % 8 and live[-1] >> blocks % 8:
            raise FormatError("bits behind the last block are not zero")
    elif flag_bytes:
        raise FormatError("flags of blocks that there are not")
    if _is_all(choice):
        if ends[-1] != len(view):
            raise FormatError("something follows numbers with a known dither")
        rest = np.zeros(n, np.int8)
    else:
        rest = unpack_numbers(_MARKS.decode_packed(view[ends[-1] :], "signed", n), n)
        if not most and rest.any():
            raise FormatError("a mark with a known dither, and no level that it could be of")
    picked, words = pick(n, first, *choice, live, block)
    after = words.copy()
    _LATTICE.decode(view[ends[1] : ends[2]], after.view(np.uint8), "BF16")
    if not put_back(rest, picked, words, after, most):
        raise FormatError(f"a number with a known dither is larger than {most}, or there twice")
    return rest


def _is_all(choice: _Choice) -> bool:
    """Whether every element of a live block is coded."""
    return choice.classes << choice.shift == 1 << DRAWN


def _live(numbers: Numbers) -> Bytes:
    """A bit for each block, whether its elements are coded; empty where all are worth it."""
    n, size = len(numbers), 1 << _BLOCK
    whole = n // size
    on = np.ones(-(-n // size), bool)
    on[:whole] = numbers[: whole * size].view(np.uint64).reshape(whole, size // 8).any(1)
    some = int(np.count_nonzero(on))
    if some * _MOSTLY > len(on) * (_MOSTLY - 1):
        return np.zeros(0, np.uint8)
    edges = np.flatnonzero(np.diff(np.concatenate([[True], on, [True]])))
    begins, ends = edges[::2], edges[1::2]
    long = (ends - begins) * _density(int(np.count_nonzero(numbers)), some) >= _NO_CHANCE
    if int((ends - begins)[long].sum()) * _MOSTLY < len(on):
        return np.zeros(0, np.uint8)
    steps = np.zeros(len(on) + 1, np.int8)
    steps[begins[long]], steps[ends[long]] = 1, -1
    return np.packbits(np.cumsum(steps[:-1]) == 0, bitorder="little")


def _density(marks: int, some: int) -> float:
    """Marks of a block of those that may have any, `some` of which do: far below one where many have none by chance.

    Of blocks with λ marks on the average a share of 1 − e^−λ has some. λ / (1 − e^−λ) = marks / some is solved by its
    first terms, and where λ is large by the last: a little too low in between.
    """
    of = marks / max(some, 1)
    return max(of - 1.0, math.sqrt(max(12.0 * of - 3.0, 9.0)) - 3.0)


def _chosen(counts: Doubles, among: int) -> _Choice:
    """How much of the dither is coded, by what it takes.

    Args:
        counts: marks by their dither, shape (BINS,).
        among: elements of live blocks.
    """
    steps = 1 << np.arange(len(_SHIFTS))[:, None]  # bins of a class
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
    return _Choice(_SHIFTS[shift], classes + 1)
