"""Vector codecs `f32` and `bf16`: plain little-endian values; and `ones`: v ≡ 1, which takes no bytes at all.

With `ones` a signed mask and one scale make a ternary task vector that shares nothing with the other tasks.
"""

from __future__ import annotations

import numpy as np

from tallstore.codecs.base import Buffer, Floats, VectorCodec
from tallstore.errors import FormatError
from tallstore.kernels.conversion import from_bf16, to_bf16


class F32(VectorCodec):
    """Spec: `spec/codecs/f32.md`. Exact."""

    id = "f32"

    def encode(self, values: Floats) -> bytes:
        """Four bytes a value."""
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, data: Buffer, n: int) -> Floats:
        """View: nothing is copied."""
        return _finite(np.frombuffer(_sized(data, 4 * n), "<f4"))


class BF16(VectorCodec):
    """Spec: `spec/codecs/bf16.md`. Rounds to the nearest bfloat16, ties to even."""

    id = "bf16"

    def encode(self, values: Floats) -> bytes:
        """Two bytes a value."""
        return to_bf16(values).astype("<u2", copy=False).tobytes()

    def decode(self, data: Buffer, n: int) -> Floats:
        """Exactly."""
        return _finite(from_bf16(np.frombuffer(_sized(data, 2 * n), "<u2")))


class Ones(VectorCodec):
    """Spec: `spec/codecs/ones.md`. Every value is 1."""

    id = "ones"

    def encode(self, values: Floats) -> bytes:  # noqa: ARG002 - the values are not needed
        """Nothing to say."""
        return b""

    def decode(self, data: Buffer, n: int) -> Floats:
        """All ones."""
        _sized(data, 0)
        return np.ones(n, np.float32)


def _sized(data: Buffer, size: int) -> Buffer:
    actual = memoryview(data).nbytes
    if actual != size:
        raise FormatError(f"{actual} bytes of vector, expected {size}")
    return data


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise FormatError("the vector holds a value that is not finite")
    return values
