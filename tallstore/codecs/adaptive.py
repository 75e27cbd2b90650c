"""Mask codec `adaptive`: per chunk `bits+zstd` or a list of gaps, whichever is smaller, or looks so in a sample.

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
from tallstore.codecs.base import Buffer, Bytes, Marks, MaskCodec
from tallstore.codecs.bits_zstd import BitsZstd
from tallstore.codecs.sample import sample
from tallstore.errors import FormatError
from tallstore.kernels import reference
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.native import encode
from tallstore.kernels.registry import kernel

_PACKED, _GAPS = 0, 1
_HEAD = struct.Struct("<B3xIII")
_MORE = 255
_WORTH = 0.995
_NEVER_ABOVE = 0.5
"""Share of marks from which on gaps are not tried."""
_DOUBTFUL = 1.1
"""A chunk is tried the other way too where it takes this many times what its sample said."""


class Adaptive(MaskCodec):
    """Spec: `spec/codecs/adaptive.md`."""

    id = "adaptive"
    _packed = BitsZstd()

    def encode_packed(self, packed: Bytes, kind: str, n: int) -> bytes:
        """Packed, unless gaps are clearly smaller: they take longer to decode.

        Of a long chunk a sample tells, and the other form is made only where what was chosen is larger than the
        sample promised.
        """
        count = bits_on(packed)
        if count > _NEVER_ABOVE * n:
            return self._dense(packed, kind, n)
        few = sample(packed)
        if few is None:
            return _smaller(self._dense(packed, kind, n), _sparse(packed, kind, n, count))
        of = len(few) * 8 // reference.SYMBOL_BITS[kind]
        sizes = len(self._dense(few, kind, of)), len(_sparse(few, kind, of, bits_on(few)))
        share = len(packed) / len(few) * _DOUBTFUL
        if sizes[1] < _WORTH * sizes[0]:
            sparse = _sparse(packed, kind, n, count)
            return sparse if len(sparse) <= share * sizes[1] else _smaller(self._dense(packed, kind, n), sparse)
        dense = self._dense(packed, kind, n)
        if len(dense) <= share * sizes[0]:
            return dense
        return _smaller(dense, _sparse(packed, kind, n, count))

    def _dense(self, packed: Bytes, kind: str, n: int) -> bytes:
        """As one frame of packed symbols."""
        return bytes([_PACKED]) + self._packed.encode_packed(packed, kind, n)

    def decode_packed(self, data: Buffer, kind: str, n: int) -> Bytes:
        """By the first byte."""
        view = memoryview(data).cast("B")
        if len(view) and view[0] == _PACKED:
            return self._packed.decode_packed(view[1:], kind, n)
        marks = _open(view, kind, n)
        return decoding().gaps_to_packed(marks.gaps, marks.signs, kind, n)

    def decode_marks(self, data: Buffer, kind: str, n: int) -> Marks | None:
        """Of a chunk that is coded as gaps."""
        view = memoryview(data).cast("B")
        return None if len(view) and view[0] == _PACKED else _open(view, kind, n)


def _sparse(packed: Bytes, kind: str, n: int, count: int) -> bytes:
    """As gaps."""
    gaps, signs = gap_list(packed, kind, n, count)
    coded = zstd.compress(gaps)
    return b"".join((_HEAD.pack(_GAPS, count, len(gaps), len(coded)), coded, signs.data))


def _smaller(dense: bytes, sparse: bytes) -> bytes:
    return sparse if len(sparse) < _WORTH * len(dense) else dense


def _open(view: memoryview, kind: str, n: int) -> Marks:
    """A chunk of gaps, every mark of it within n symbols."""
    if len(view) < _HEAD.size or view[0] != _GAPS or any(view[1:4]):
        raise FormatError("a mask that is neither packed nor gaps, or cut off")
    _, count, gap_bytes, coded_bytes = _HEAD.unpack_from(view)
    sign_bytes = -(-count // 8) if kind == "signed" else 0
    # A gap of g zeros takes g // 255 + 1 bytes: with `count` of them in n symbols there cannot be more than this.
    if count > n or gap_bytes > count + n // _MORE or _HEAD.size + coded_bytes + sign_bytes != len(view):
        raise FormatError(f"{count} marks in {gap_bytes} gap bytes do not fit {n} symbols and {len(view)} bytes")
    gaps = zstd.decompress(view[_HEAD.size : _HEAD.size + coded_bytes], gap_bytes)
    signs = _signs(view[_HEAD.size + coded_bytes :], count)
    zeros, ends = decoding().sum_gaps(gaps)
    if zeros + ends > n:
        raise FormatError(f"a list of gaps and {count} marks does not fit {n} symbols")
    if len(gaps) and gaps[-1] == _MORE:
        raise FormatError("a list of gaps ends within a gap")
    if ends != count:
        raise FormatError(f"a list of gaps holds {ends} marks, expected {count}")
    return Marks(count, gaps, signs)


@kernel
def bits_on(packed: Bytes) -> int:
    """How many bits are set: one for every symbol that is on."""
    return int(np.bitwise_count(packed).sum() if hasattr(np, "bitwise_count") else np.unpackbits(packed).sum())


@bits_on.native
def _(packed: Bytes) -> int:
    return encode.bits_on(packed)


@kernel
def gap_list(packed: Bytes, kind: str, n: int, count: int) -> tuple[Bytes, Bytes]:
    """The gaps of `count` marks, and their packed signs: good until this thread asks again."""
    symbols = reference.unpack(packed, kind, n)
    marks = np.flatnonzero(symbols)
    negative = symbols[marks] == 2
    return _encode_gaps(marks), np.packbits(negative[: count if kind == "signed" else 0], bitorder="little")


@gap_list.native
def _(packed: Bytes, kind: str, n: int, count: int) -> tuple[Bytes, Bytes]:
    return encode.packed_to_gaps(packed, n, count, reference.SYMBOL_BITS[kind])


def _encode_gaps(marks: np.ndarray) -> Bytes:
    gaps = np.diff(marks, prepend=-1) - 1
    more = gaps // _MORE
    out = np.full(len(gaps) + int(more.sum()), _MORE, np.uint8)
    out[np.cumsum(more + 1) - 1] = gaps % _MORE
    return out


def _signs(data: Buffer, count: int) -> Bytes:
    """Packed signs of `count` marks, or none."""
    bits = np.frombuffer(data, np.uint8)
    if len(bits) and count % 8 and bits[-1] >> (count % 8):
        raise FormatError("bits behind the last sign are not zero")
    return bits
