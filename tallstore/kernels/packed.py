"""Whole tensors from packed codes, on the CPU: what is kept in memory to switch by."""

from __future__ import annotations

from torch import Tensor

from tallstore.kernels import reference
from tallstore.kernels.decoding_backends import decoding

__all__ = ["apply_packed_delta", "apply_packed_mask"]


def apply_packed_mask(
    out: Tensor, base: Tensor, packed: Tensor, kind: str, scales: Tensor, chunk: int, vector: Tensor | None = None
) -> None:
    """Write θ̂ of a whole tensor into `out`, from packed symbols.

    Args:
        out: shape (N,), the task's type D. May be `base` itself.
        base: θ0, shape (N,), any maskable type.
        packed: uint8. The symbols of every chunk begin with a byte of their own.
        kind: binary or signed.
        scales: s of every chunk, float32, shape (ceil(N / chunk),).
        chunk: elements a chunk: a multiple of 8.
        vector: v, shape (N,), float32; None where it is 1 everywhere.
    """
    each = 8 // reference.SYMBOL_BITS[kind]
    symbols, values = packed.numpy(), None if vector is None else vector.numpy()
    for index, a in enumerate(range(0, len(out), chunk)):
        b = min(a + chunk, len(out))
        own = symbols[a // each : a // each + reference.packed_size(kind, b - a)]
        v = None if values is None else values[a:b]
        decoding().mask(own, kind, b - a, float(scales[index]), out.dtype, v).begin()(out[a:b], base[a:b])


def apply_packed_delta(out: Tensor, base: Tensor, packed: Tensor, bits: int, tables: Tensor, chunk: int) -> None:
    """Write round_D(f32(θ0) + d) of a whole tensor into `out`, d looked up.

    Args:
        out: shape (N,), the task's type D. May be `base` itself.
        base: θ0, shape (N,), any maskable type.
        packed: uint8 indices of `bits` bits, 4 or 8. Those of every chunk begin with a byte of their own.
        bits: of an index.
        tables: float32, shape (ceil(N / chunk), 16 or 256).
        chunk: elements a chunk: a multiple of 8.
    """
    indices, levels = packed.numpy(), tables.numpy()
    for index, a in enumerate(range(0, len(out), chunk)):
        b = min(a + chunk, len(out))
        own = indices[a * bits // 8 : a * bits // 8 + -(-(b - a) * bits // 8)]
        decoding().levels(own, bits, b - a, levels[index], out.dtype).begin()(out[a:b], base[a:b])
