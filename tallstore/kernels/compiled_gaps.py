"""Lists of gaps from packed marks, compiled: the inverse of `compiled.gaps_to_packed`.

Two ways to the same bytes: one for any processor, and one for those that squeeze 64 bytes by a mask in one instruction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels.jit import compiled, wide
from tallstore.kernels.words import WIDE_GAPS, count, gather, highest, lowest, positions

__all__ = ["SLACK", "bits_on", "packed_to_gaps", "packed_to_gaps_anywhere"]

_Array = npt.NDArray[Any]
SLACK = 64
"""Bytes that are written behind the last gap, at most."""
_AT_ONCE = 4
"""Marks that are written without a look at how many there are."""
_RUN = 1 << 8
"""Words of which signs are kept a byte each until they are packed."""
_MORE = 255
_ONE, _EVEN, _ALL = np.uint64(1), np.uint64(0x5555555555555555), np.uint64(0xFFFFFFFFFFFFFFFF)
_TOP, _FULL, _HALF, _LAST = np.uint64(63), np.uint64(64), np.uint64(32), np.uint64(56)
_LOWEST, _SPREAD = np.uint64(0x0101010101010101), np.uint64(0x0102040810204080)


@compiled
def bits_on(packed: _Array) -> int:
    """How many bits of words, uint64, shape (n,), are set."""
    wide()
    found = np.uint64(0)
    for i in range(packed.shape[0]):
        found += count(packed[i])
    return int(found)


@compiled
def packed_to_gaps_anywhere(gaps: _Array, signs: _Array, packed: _Array, bits: int) -> tuple[int, int]:
    """Gaps (255: go on) and packed signs of packed symbols.

    Args:
        gaps: uint8, room for marks + n / 255 + 1 + SLACK.
        signs: uint64, room for a bit a mark, and one more.
        packed: uint64, n symbols: the bytes, zeros filling up the last word.
        bits: of a symbol.

    Returns the bytes of gaps and the marks.
    """
    each, signed = 64 // bits, bits == 2
    shift, places = np.uint64(bits - 1), _EVEN if signed else _ALL
    room, out = np.empty(each * _RUN + 2 * _AT_ONCE, np.uint8), signs.view(np.uint8)
    eights = room.view(np.uint64)
    at, marks, held, last = 0, 0, 0, -1
    for start in range(0, packed.shape[0], _RUN):
        run = packed[start : start + _RUN]
        for i in range(run.shape[0]):
            word = run[i]
            flags = word >> _ONE
            on = (word | flags) & places if signed else word
            if not on:
                continue
            begin = (start + i) * each
            before = last - begin
            gap = int(lowest(on) >> shift) - before - 1
            while gap >= _MORE:  # within a word there are no such gaps
                gaps[at] = _MORE
                at += 1
                gap -= _MORE
                before += _MORE
            last = begin + int((_TOP - highest(on)) >> shift)
            there, done = int(count(on)), 0
            while done < there:  # more than there are is written, and then written over
                for j in range(_AT_ONCE):
                    bit = lowest(on) & _TOP
                    on &= on - _ONE
                    place = int(bit >> shift)
                    gaps[at + done + j] = np.uint8(place - before - 1)
                    if signed:
                        room[held + done + j] = np.uint8(flags >> bit)
                    before = place
                done += _AT_ONCE
            at += there
            held += there
        for k in range(held >> 3):
            out[(marks >> 3) + k] = np.uint8(((eights[k] & _LOWEST) * _SPREAD) >> _LAST)
        left = held & 7
        for k in range(left):
            room[k] = room[held - left + k]
        marks += held - left
        held = left
    some = 0
    for k in range(held):
        some |= int(room[k] & 1) << k
    if held:
        out[marks >> 3] = np.uint8(some)
    return at, marks + held


@compiled
def _packed_to_gaps_wide(gaps: _Array, signs: _Array, packed: _Array, bits: int) -> tuple[int, int]:
    """The same, 64 symbols at a time."""
    signed = bits == 2
    step, n = 2 if signed else 1, packed.shape[0]
    at, marks, last = 0, 0, -1
    some = np.uint64(0)
    for i in range(0, n, step):
        word = packed[i]
        on, negative = word, np.uint64(0)
        if signed:
            high = packed[i + 1] if i + 1 < n else np.uint64(0)
            positive = gather(word, _EVEN) | (gather(high, _EVEN) << _HALF)
            negative = gather(word >> _ONE, _EVEN) | (gather(high >> _ONE, _EVEN) << _HALF)
            on = positive | negative
        if not on:
            continue
        begin = i // step * 64
        before = last - begin
        gap = int(lowest(on)) - before - 1
        while gap >= _MORE:
            gaps[at] = _MORE
            at += 1
            gap -= _MORE
            before += _MORE
        positions(gaps, at, on, before)
        there, filled = int(count(on)), np.uint64(marks & 63)
        own = gather(negative, on)
        some |= own << filled
        if (marks & 63) + there >= 64:
            signs[marks >> 6] = some
            some = own >> (_FULL - filled) if filled else np.uint64(0)
        at += there
        marks += there
        last = begin + int(_TOP - highest(on))
    if marks & 63:
        signs[marks >> 6] = some
    return at, marks


packed_to_gaps = _packed_to_gaps_wide if WIDE_GAPS else packed_to_gaps_anywhere
