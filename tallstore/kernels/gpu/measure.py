"""What masks keep of a task vector, added up on a GPU block by block in the order of `encoder.metrics`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tallstore.kernels.gpu.elements import WIDE, as_elements, load, on_device, task_vector
from tallstore.kernels.reference import wide

__all__ = ["measure"]

_BLOCK = tl.constexpr(1024)
_N_SUMS = tl.constexpr(5)


def measure(
    base: Tensor, weights: Tensor, vector: Tensor | None, packed: Tensor, kind: torch.dtype, *, signed: bool
) -> Tensor:
    """The sums of each block of 1024 elements for one task: shape (5, blocks), float64, as `encoder.metrics.sums`.

    Args:
        base: θ0, shape (N,), any maskable type.
        weights: θt, shape (N,), any maskable type.
        vector: v as stored, shape (N,), float32; None: v ≡ 1.
        packed: the task's symbols, uint8.
        kind: the type that the tile computes in: float32 or float64.
        signed: whether the mask is.
    """
    n = len(base)
    blocks = triton.cdiv(n, _BLOCK.value)
    out = torch.empty(_N_SUMS.value, blocks, dtype=torch.float64, device=base.device)
    assert kind in {wide(weights.dtype), torch.float64}
    if n:
        with on_device(base):
            _measure_kernel[(blocks,)](
                as_elements(base),
                as_elements(weights),
                as_elements(base if vector is None else vector),
                packed,
                out,
                n,
                blocks,
                ONES=vector is None,
                BITS=2 if signed else 1,
                W=WIDE[kind],
                num_warps=1,
                enable_fp_fusion=False,
            )
    return out


@triton.jit
def _add_up(x):
    """The sum of a block, shape (1,): the second half is added to the first, until one is left."""
    for level in tl.static_range(1, 11):
        x = tl.sum(tl.reshape(x, (2, 1024 >> level)), axis=0)
    return x


@triton.jit
def _measure_kernel(
    base, weights, vector, packed, out, n, blocks, ONES: tl.constexpr, BITS: tl.constexpr, W: tl.constexpr
):
    block = tl.program_id(0)
    first = block.to(tl.int64) * _BLOCK
    left = n - first
    at = tl.arange(0, _BLOCK)
    tau = task_vector(load(weights + first + at, left, at, False), load(base + first + at, left, at, False), W)
    byte = load(packed + first // 8 * BITS + at // (8 // BITS), left, at, False).to(tl.int32)
    symbol = (byte >> (at % (8 // BITS) * BITS)) & ((1 << BITS) - 1)
    if ONES:
        v = tl.full(at.shape, 1.0, W)
    else:
        v = load(vector + first + at, left, at, False).to(W)
    kept = tl.where(symbol == 0, tl.zeros_like(v), tl.where(symbol == 2, -v, v))
    gap = tau - kept
    to = out + block + tl.arange(0, 1)
    tl.store(to, _add_up(gap * gap).to(tl.float64))
    tl.store(to + blocks, _add_up(tau * tau).to(tl.float64))
    tl.store(to + 2 * blocks, _add_up(kept * kept).to(tl.float64))
    tl.store(to + 3 * blocks, _add_up(tau * kept).to(tl.float64))
    tl.store(to + 4 * blocks, _add_up((symbol != 0).to(tl.int32)).to(tl.float64))
