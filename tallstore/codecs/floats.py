"""Vector codecs `f32` and `bf16`: plain little-endian values; and `ones`: v ≡ 1, which takes no bytes at all.

With `ones` a signed mask and one scale make a ternary task vector that shares nothing with the other tasks.
"""

from __future__ import annotations

import numpy as np

from tallstore.codecs.base import Buffer, Floats, VectorCodec
from tallstore.errors import FormatError


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
        words = np.ascontiguousarray(values, np.float32).view(np.uint32)
        # Half a step, and one more where the upper half is odd: it carries over exactly where it must.
        upper = (words + (words >> 16 & 1) + np.uint32(0x7FFF)) >> 16
        return upper.astype("<u2").tobytes()

    def decode(self, data: Buffer, n: int) -> Floats:
        """A bfloat16 is the upper half of a float32."""
        upper = np.frombuffer(_sized(data, 2 * n), "<u2").astype(np.uint32) << 16
        return _finite(upper.view(np.float32))


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
    found = memoryview(data).nbytes
    if found != size:
        raise FormatError(f"{found} bytes of vector where {size} are due")
    return data


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise FormatError("the vector holds a value that is not finite")
    return values
