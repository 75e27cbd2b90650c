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
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tallstore.codecs import zstd
from tallstore.codecs.adaptive import Adaptive, bits_on
from tallstore.codecs.base import Buffer, Bytes, Floats, IndexedValues, MaskCodec, VectorCodec
from tallstore.codecs.codebook import pack_indices
from tallstore.codecs.lattice import LatticeCodec
from tallstore.errors import FormatError
from tallstore.kernels.known_dither import (
    BLOCK,
    CLASSES,
    RUN,
    SHIFTS,
    Doubles,
    Numbers,
    choose_classes,
    count_bins,
    pack_numbers,
    pick,
    put_back,
    take_marks,
    take_numbers,
    unpack_numbers,
)
from tallstore.kernels.lattice import LEVELS
from tallstore.kernels.place_hash import DRAWN

__all__ = ["DitheredLevels", "DitheredMask"]

_HEAD = struct.Struct("<BBBxIII")
_OTHERWISE, _KNOWN = 0, 1
_LATTICE, _MARKS = LatticeCodec(), Adaptive()
_LEAST_BLOCK, _MOST_BLOCK = 6, 24
_NO_CHANCE = 12.0
"""A run of blocks without marks is told of where so many were expected in it."""
_MOSTLY = 32
"""They are, where one block in so many is in such a run."""
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
        coded = bytes([_KNOWN]) + _encode_marks(packed, n, first)
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
        n, most = len(numbers), len(sizes)
        coded = _encode_marks(pack_numbers(numbers), n, first) if most == 1 else _encode_numbers(numbers, first, most)
        return bytes([most]) + sizes.astype("<f4").tobytes() + coded

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


_ALL = _Choice(SHIFTS[-1], CLASSES)


def _encode_marks(packed: Bytes, n: int, first: int) -> bytes:
    """Numbers of a chunk, none larger than 1, as symbols of a signed mask."""
    live = _live(packed, 1 << BLOCK - 2, n, lambda: bits_on(packed))
    among = bits_on(live) << BLOCK if len(live) else n
    choice = _Choice(*choose_classes(_counted(packed, n, first), among))
    low = _low(choice)
    symbols, levels, rest = take_marks(packed, n, first, *choice, low, live)
    others = b"" if _is_all(choice) else _MARKS.encode_packed(rest, "signed", n)
    return _joined(choice, first, live, _LATTICE.encode_numbers(symbols, levels, low, 1), others)


def _encode_numbers(numbers: Numbers, first: int, most: int) -> bytes:
    """Numbers of a chunk, none larger than `most`."""
    live = _live(numbers.view(np.uint8), 1 << BLOCK, len(numbers), lambda: int(np.count_nonzero(numbers)))
    low = _low(_ALL)
    coded = _LATTICE.encode_numbers(*take_numbers(numbers, first, *_ALL, low, live), low, most)
    return _joined(_ALL, first, live, coded, b"")


def _low(choice: _Choice) -> int:
    """The exponent of level 0, where each class has elements."""
    return max(0, choice.classes - LEVELS + 1)


def _joined(choice: _Choice, first: int, live: Bytes, coded: bytes, others: bytes) -> bytes:
    flags = zstd.compress(live) if len(live) else b""
    head = _HEAD.pack(*choice, BLOCK if len(live) else 0, first, len(flags), len(coded))
    return head + flags + coded + others


def _counted(packed: Bytes, n: int, first: int) -> Doubles:
    """Marks by their dither, about: of long chunks some tell of all."""
    if n >= _LONG:
        counts = count_bins(packed, n, first, _ONE_IN)
        whole, rest = divmod(n, RUN * _ONE_IN)
        if counts.any():
            scaled: Doubles = counts.astype(np.float64) * (n / (whole * RUN + min(rest, RUN)))
            return scaled
    return count_bins(packed, n, first, 1).astype(np.float64)


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


def _live(data: Bytes, size: int, n: int, marks: Callable[[], int]) -> Bytes:
    """A bit for each block, whether its elements are coded; empty where all are worth it.

    Args:
        data: of n elements, which are 0 where they have no mark.
        size: bytes of a block.
        n: elements.
        marks: counts those that have one.
    """
    whole = n >> BLOCK
    on = np.ones(-(-n >> BLOCK), bool)  # the last one, if it is shorter, is not left out
    words = data[: whole * size].view(np.uint64).reshape(whole, size // 8)
    while words.shape[1] > 1:
        words = words[:, ::2] | words[:, 1::2]
    on[:whole] = words[:, 0] != 0
    some = int(np.count_nonzero(on))
    if some * _MOSTLY > len(on) * (_MOSTLY - 1):
        return np.zeros(0, np.uint8)
    edges = np.flatnonzero(np.diff(np.concatenate([[True], on, [True]])))
    begins, ends = edges[::2], edges[1::2]
    long = (ends - begins) * _density(marks(), some) >= _NO_CHANCE
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
