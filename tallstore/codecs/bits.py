"""Mask codec `bits`: packed symbols as they are. One bit a parameter for `binary`, two for `signed`."""

from __future__ import annotations

import numpy as np

from tallstore.codecs.base import Buffer, Bytes, MaskCodec
from tallstore.errors import FormatError
from tallstore.kernels import reference


class Bits(MaskCodec):
    """Spec: `spec/codecs/bits.md`."""

    id = "bits"

    def encode_packed(self, packed: Bytes, kind: str, n: int) -> bytes:  # noqa: ARG002 - as they are
        """As they are."""
        return packed.tobytes()

    def decode_packed(self, data: Buffer, kind: str, n: int) -> Bytes:
        """As they are."""
        return checked(np.frombuffer(data, np.uint8), kind, n)


def checked(packed: Bytes, kind: str, n: int) -> Bytes:
    """Packed bytes that may be anything, if they are n symbols."""
    if len(packed) != reference.packed_size(kind, n):
        raise FormatError(f"{len(packed)} bytes of mask, expected {reference.packed_size(kind, n)}")
    if not reference.packed_is_valid(packed, kind, n):
        raise FormatError(f"a {kind} mask holds a symbol that there is not, or bits behind its last")
    return packed
