"""Elements as kernels see them. bfloat16 comes as int16, so an element that is not touched stays the bits it is.

It is rounded by the GPU's own instruction. Triton's interpreter has one that does not round to nearest and loses
subnormal numbers: there integers do it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}
"""Triton's names of the types that are computed in."""
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def as_elements(tensor: Tensor) -> Tensor:
    """A tensor as kernels take it: bfloat16 as int16, all else as it is."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch on the tensor's own device: Triton takes the current one."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


@triton.jit
def widen(x, W: tl.constexpr):
    """Elements as numbers of type W, float32 or float64; exact unless x is float64 and W is not."""
    if x.dtype == tl.int16:
        return (x.to(tl.int32) << 16).to(tl.float32, bitcast=True).to(W)
    else:
        return x.to(W)


@triton.jit
def narrow(x, D: tl.constexpr):
    """Numbers rounded to elements of type D, to nearest, ties to even; from float64 by way of float32."""
    if D == tl.float64:
        return x.to(tl.float64)
    elif D == tl.int16 and not _INTERPRETED:
        return x.to(tl.float32).to(tl.bfloat16).to(tl.int16, bitcast=True)
    elif D == tl.int16:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        # What rounding would carry a NaN's bits to is no NaN.
        return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.int16)
    else:
        return x.to(tl.float32).to(D)


@triton.jit
def task_vector(weights, start, W: tl.constexpr):
    """τ = θt − θ0, where θ0 is rounded to the task's type first."""
    if start.dtype == weights.dtype:
        same = start
    elif start.dtype == tl.float64:
        same = narrow(start, weights.dtype)
    else:
        same = narrow(widen(start, tl.float32), weights.dtype)
    if weights.dtype == tl.float64:
        return weights - same
    else:
        return (widen(weights, tl.float32) - widen(same, tl.float32)).to(W)


@triton.jit
def divide(x, y, W: tl.constexpr):
    """x / y, rounded to nearest: in float32 Triton's `/` is not."""
    if W == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def load(at, left, offset, ALL: tl.constexpr):
    """Load at pointers `at` of elements `offset`, of which `left` exist; 0 for the others. ALL: all exist."""
    if ALL:
        return tl.load(at)
    else:
        return tl.load(at, mask=offset < left, other=0)


@triton.jit
def store(at, values, left, offset, ALL: tl.constexpr):
    """The same for storing."""
    if ALL:
        tl.store(at, values)
    else:
        tl.store(at, values, mask=offset < left)
