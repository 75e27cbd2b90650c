"""Mask codec `adaptive`: per chunk the smaller of `bits+zstd` and a list of gaps.

A byte of packed symbols costs at least one bit, however rare the marks are. Where fewer than one parameter in five
or so is on, the distances between marks, one byte each and entropy-coded, come within a hundredth of the entropy.

    u8 0 | a chunk of `bits+zstd`
    u8 1 | u8 0 0 0 | u32 marks | u32 gap bytes | u32 coded bytes | zstd frame of the gap bytes | signs, one bit a mark

A gap is the number of zeros before a mark: floor(g / 255) bytes 255, then the byte g mod 255. Signs are there in
signed masks alone: 0 is +.
"""

from __future__ import annotations

import struct

import numpy as np

from tallstore.codecs import zstd
from tallstore.codecs.base import Buffer, Bytes, MaskCodec
from tallstore.codecs.bits_zstd import BitsZstd
from tallstore.errors import FormatError

_PACKED, _GAPS = 0, 1
_HEAD = struct.Struct("<B3xIII")
_MORE = 255
_WORTH = 0.995
_NEVER_ABOVE = 0.5
"""Share of marks from which on gaps are not tried."""


class Adaptive(MaskCodec):
    """Spec: `spec/codecs/adaptive.md`."""

    id = "adaptive"
    _packed = BitsZstd()

    def encode(self, symbols: Bytes, kind: str) -> bytes:
        """Packed, unless gaps are clearly smaller: they take longer to decode."""
        packed = bytes([_PACKED]) + self._packed.encode(symbols, kind)
        marks = np.flatnonzero(symbols)
        if len(marks) > _NEVER_ABOVE * len(symbols):
            return packed
        gaps = _encode_gaps(marks)
        coded = zstd.compress(gaps)
        signs = np.packbits(symbols[marks] == 2, bitorder="little").tobytes() if kind == "signed" else b""
        sparse = _HEAD.pack(_GAPS, len(marks), len(gaps), len(coded)) + coded + signs
        return sparse if len(sparse) < _WORTH * len(packed) else packed

    def decode(self, data: Buffer, kind: str, n: int) -> Bytes:
        """By the first byte."""
        view = memoryview(data).cast("B")
        if len(view) and view[0] == _PACKED:
            return self._packed.decode(view[1:], kind, n)
        if len(view) < _HEAD.size or view[0] != _GAPS or any(view[1:4]):
            raise FormatError("a mask that is neither packed nor gaps, or cut off")
        _, count, gap_bytes, coded_bytes = _HEAD.unpack_from(view)
        sign_bytes = -(-count // 8) if kind == "signed" else 0
        # A gap of g zeros takes g // 255 + 1 bytes: with `count` of them in n symbols there cannot be more than this.
        if count > n or gap_bytes > count + n // _MORE or _HEAD.size + coded_bytes + sign_bytes != len(view):
            raise FormatError(f"{count} marks in {gap_bytes} gap bytes do not fit {n} symbols and {len(view)} bytes")
        gaps = zstd.decompress(view[_HEAD.size : _HEAD.size + coded_bytes], gap_bytes)
        marks = _decode_gaps(gaps, count, n)
        symbols = np.zeros(n, np.uint8)
        symbols[marks] = 1 if kind == "binary" else 1 + _signs(view[_HEAD.size + coded_bytes :], count)
        return symbols


def _encode_gaps(marks: np.ndarray) -> Bytes:
    gaps = np.diff(marks, prepend=-1) - 1
    more = gaps // _MORE
    out = np.full(len(gaps) + int(more.sum()), _MORE, np.uint8)
    out[np.cumsum(more + 1) - 1] = gaps % _MORE
    return out


def _decode_gaps(gaps: Bytes, count: int, n: int) -> np.ndarray:
    """Positions of the marks, ascending."""
    ends = gaps != _MORE
    if int(gaps.sum(dtype=np.int64)) + count > n:
        raise FormatError(f"a list of gaps and {count} marks does not fit {n} symbols")
    steps = gaps.astype(np.int32)
    steps += ends
    at = np.cumsum(steps, dtype=np.int32)
    if not ends.all():
        if len(gaps) and not ends[-1]:
            raise FormatError("a list of gaps ends within a gap")
        at = at[ends]
    if len(at) != count:
        raise FormatError(f"a list of gaps holds {len(at)} marks where {count} are due")
    at -= 1
    return at


def _signs(data: Buffer, count: int) -> Bytes:
    bits = np.frombuffer(data, np.uint8)
    if count % 8 and bits[-1] >> (count % 8):
        raise FormatError("bits behind the last sign are not zero")
    return np.unpackbits(bits, count=count, bitorder="little")
