"""Lossless codec `lanes`: codes (integers, bytes, packed numbers of few bits) as differences from the base's.

Codes of a fine-tune are mostly the base's, and else one step away. Differences are taken lane by lane, a lane being as
many bits as one code has, modulo 2^bits, so that a step down is one number and not all ones; of lanes of eight bits or
more they are zigzag. Bytes of equal place lie in a plane: one frame, or a mask of what is not 0 and the rest.

    u8 0: the base's elements
    u8 1 | the task's own elements, coded by `planes+zstd`
    u8 bits of a lane (4, 8, 16, 32 or 64) | of each plane, least significant first:
        u32 a | u32 b | a bytes: mask, coded by `adaptive`; nothing where all is in the frame | b bytes: frame
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from tallstore.codecs import zstd
from tallstore.codecs.adaptive import Adaptive
from tallstore.codecs.base import ALONE, Buffer, Bytes, Given, LosslessCodec, Row
from tallstore.codecs.planes import Planes
from tallstore.errors import FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels import reference

_SAME, _WHOLE = 0, 1
_LANES: Mapping[str, Sequence[int]] = {
    "F4": (4,),
    "F8_E4M3": (8,), "F8_E5M2": (8,), "F8_E8M0": (8,), "F8_E4M3FNUZ": (8,), "F8_E5M2FNUZ": (8,),
    "F16": (16,), "BF16": (16,), "F32": (32,), "C64": (32,), "F64": (64,),
}  # fmt: skip
"""Bits of a lane that an encoder tries, of types that are no containers of others' codes."""
_HEAD = struct.Struct("<II")
_SPARSE = 0.5
"""Share of bytes that are not 0 from which on no mask of them is tried."""


class Lanes(LosslessCodec):
    """Spec: `spec/codecs/lanes.md`."""

    id = "lanes"
    _planes, _mask = Planes(), Adaptive()

    def encode(
        self,
        raw: Bytes,
        base: Bytes,
        dtype: str,
        row: Row = (0, 0),  # noqa: ARG002 - all rows alike
        origin: Bytes | None = None,  # noqa: ARG002 - drift's
    ) -> bytes:
        """The smallest of all ways."""
        if np.array_equal(raw, base):
            return bytes([_SAME])
        whole = bytes([_WHOLE]) + self._planes.encode(raw, dtype)
        widths = _LANES.get(dtype, dict.fromkeys((4, 8, 8 * ITEM_BYTES[dtype])))
        return min([*(self._encode_lanes(raw, base, bits) for bits in widths), whole], key=len)

    def decode(self, data: Buffer, out: Bytes, dtype: str, given: Given = ALONE) -> None:  # noqa: ARG002 - drift's
        """By the first byte."""
        view = memoryview(data).cast("B")
        if not len(view):
            raise FormatError("a chunk coded against the base is cut off")
        bits, rest = view[0], view[1:]
        if bits == _SAME:
            if len(rest):
                raise FormatError("a chunk that is the base's is followed by something")
        elif bits == _WHOLE:
            self._planes.decode(rest, out, dtype)
        elif bits in {4, 8, 16, 32, 64} and bits <= 8 * ITEM_BYTES[dtype]:
            out[:] = _undo(self._decode_planes(rest, max(1, bits // 8), len(out)), out, bits)
        else:
            raise FormatError(f"lanes of {bits} bits do not fit {dtype}")

    def _encode_lanes(self, raw: Bytes, base: Bytes, bits: int) -> bytes:
        item = max(1, bits // 8)
        differences = _difference(raw, base, bits).reshape(-1, item)
        planes = [self._encode_plane(np.ascontiguousarray(differences[:, place])) for place in range(item)]
        return b"".join([bytes([bits]), *planes])

    def _encode_plane(self, plane: Bytes) -> bytes:
        frame = zstd.compress(plane)
        dense = _HEAD.pack(0, len(frame)) + frame
        on = plane != 0
        if np.count_nonzero(on) > _SPARSE * len(plane):
            return dense
        mask = self._mask.encode_packed(np.packbits(on, bitorder="little"), "binary", len(plane))
        rest = zstd.compress(plane[on])
        return min(dense, _HEAD.pack(len(mask), len(rest)) + mask + rest, key=len)

    def _decode_planes(self, data: memoryview, item: int, size: int) -> Bytes:
        """Differences as they were split: uint8, shape (size,)."""
        n = size // item
        out = np.empty((n, item), np.uint8)
        at = 0
        for place in range(item):
            if len(data) < at + _HEAD.size:
                raise FormatError("planes of differences are cut off")
            a, b = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            if at + a + b > len(data):
                raise FormatError(f"planes of differences: {a} and {b} bytes are more than there are")
            mask, frame = data[at : at + a], data[at + a : at + a + b]
            at += a + b
            if not a:
                out[:, place] = zstd.decompress(frame, n)
                continue
            on = reference.unpack(self._mask.decode_packed(mask, "binary", n), "binary", n).view(bool)
            rest = zstd.decompress(frame, int(np.count_nonzero(on)))
            if not rest.all():
                raise FormatError("a difference is marked and 0")
            out[:, place] = 0
            out[on, place] = rest
        if at != len(data):
            raise FormatError("planes of differences are followed by something")
        return out.reshape(-1)


def _difference(raw: Bytes, base: Bytes, bits: int) -> Bytes:
    if bits >= 8:
        return reference.difference(raw, base, bits // 8)
    return _nibbles((raw & 0xF0) - (base & 0xF0), (raw & 0x0F) - (base & 0x0F))


def _undo(stored: Bytes, base: Bytes, bits: int) -> Bytes:
    if bits >= 8:
        return reference.undo_difference(stored, base, bits // 8)
    return _nibbles((stored & 0xF0) + (base & 0xF0), (stored & 0x0F) + (base & 0x0F))


def _nibbles(high: Bytes, low: Bytes) -> Bytes:
    """Two lanes per byte, without what they carry over."""
    return (high & np.uint8(0xF0)) | (low & np.uint8(0x0F))
