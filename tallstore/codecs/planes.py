"""Whole codec `planes+zstd`: bytes of equal place together, each plane in a zstd frame where that makes it smaller.

Of a trained float tensor only sign and exponent compress; the mantissa is noise. So floats are first rotated left by
one bit, which moves the sign to the end and makes the exponent's eight bits one byte of float32 and bfloat16.

    one u32 a plane: the bytes it takes (as many as elements: stored as it is) | the planes, least significant first
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.codecs import zstd
from tallstore.codecs.base import Buffer, Bytes, WholeCodec
from tallstore.codecs.sample import sample
from tallstore.errors import FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.native import encode
from tallstore.kernels.registry import kernel

_ROTATED = {"F64", "F32", "F16", "BF16"}
_WORD: dict[int, np.dtype[Any]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
_TILE = 1 << 19
"""Elements: few enough to stay in the cache for what is done next, enough that threads seldom wait for each other."""
_WORTH = 0.99
"""A plane that coding leaves above this share of its size is stored as it is: it then costs no decoding."""


class Planes(WholeCodec):
    """Spec: `spec/codecs/planes-zstd.md`."""

    id = "planes+zstd"

    def encode(self, raw: Bytes, dtype: str) -> bytes:
        """The pieces in one."""
        return b"".join(self.encode_pieces(raw, dtype))

    def encode_pieces(self, raw: Bytes, dtype: str) -> Sequence[Buffer]:
        """Rotate, split, and code each plane, or leave it where coding does not pay."""
        item = ITEM_BYTES[dtype]
        planes: list[Any] = [_smaller(plane) for plane in split_words(raw.view(_WORD[item]), dtype in _ROTATED)]
        lengths = np.array([len(p) for p in planes], "<u4")
        return [lengths.tobytes(), *planes]

    def decode(self, data: Buffer, out: Bytes, dtype: str) -> None:
        """All tiles."""
        for _ in self.decode_tiles(data, out, dtype):
            pass

    def decode_tiles(self, data: Buffer, out: Bytes, dtype: str) -> Iterator[tuple[int, int]]:
        """Put the planes back in place and rotate back, a cache-sized tile at a time."""
        item = ITEM_BYTES[dtype]
        words = out.view(_WORD[item])
        planes = _planes(data, item, len(words))
        join, rotated = decoding().join, dtype in _ROTATED
        for start in range(0, len(words), _TILE):
            run = slice(start, min(start + _TILE, len(words)))
            join(words[run], [plane[run] for plane in planes], rotated=rotated)
            yield start * item, run.stop * item

    def decode_planes(self, data: Buffer, n: int, dtype: str) -> list[Bytes] | None:
        """Of floats."""
        return _planes(data, ITEM_BYTES[dtype], n) if dtype in _ROTATED else None


def _smaller(plane: Bytes) -> Bytes | bytes:
    """A frame where that pays; none is made of what is noise in its sample."""
    few = sample(plane)
    if few is not None and len(zstd.compress(few)) >= len(few):
        return plane
    coded = zstd.compress(plane)
    return coded if len(coded) < _WORTH * len(plane) else plane


@kernel
def split_words(words: npt.NDArray[Any], rotated: bool) -> Bytes:
    """Bytes of equal place, least significant first: shape (bytes of a word, words)."""
    item = words.itemsize
    if rotated:
        words = words << 1 | words >> (8 * item - 1)
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, item).T)


@split_words.native
def _(words: npt.NDArray[Any], rotated: bool) -> Bytes:
    return encode.split(words, rotated)


def _planes(data: Buffer, item: int, n: int) -> list[Bytes]:
    view = memoryview(data).cast("B")
    if len(view) < 4 * item:
        raise FormatError("byte planes are cut off")
    lengths = [int(length) for length in np.frombuffer(view[: 4 * item], "<u4")]
    if 4 * item + sum(lengths) != len(view) or any(length > n for length in lengths):
        raise FormatError(f"byte planes of {lengths} bytes do not fit {len(view)} bytes and {n} elements")
    planes = []
    at = 4 * item
    for length in lengths:
        piece = view[at : at + length]
        planes.append(np.frombuffer(piece, np.uint8) if length == n else zstd.decompress(piece, n))
        at += length
    return planes
