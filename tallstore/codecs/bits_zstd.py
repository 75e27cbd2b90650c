"""Mask codec `bits+zstd`: packed symbols in one zstd frame.

Masks have no repeats to speak of, so what works is zstd's Huffman stage on packed bytes: eight binary or four
signed symbols a byte come close to their entropy. Rows that never moved become runs.
"""

from __future__ import annotations

from tallstore.codecs import zstd
from tallstore.codecs.base import Buffer, Bytes, MaskCodec
from tallstore.codecs.bits import checked
from tallstore.kernels import reference


class BitsZstd(MaskCodec):
    """Spec: `spec/codecs/bits-zstd.md`."""

    id = "bits+zstd"

    def encode_packed(self, packed: Bytes, kind: str, n: int) -> bytes:  # noqa: ARG002 - all kinds alike
        """One frame."""
        return zstd.compress(packed)

    def decode_packed(self, data: Buffer, kind: str, n: int) -> Bytes:
        """One frame of exactly the bytes that n symbols take."""
        return checked(zstd.decompress(data, reference.packed_size(kind, n)), kind, n)
