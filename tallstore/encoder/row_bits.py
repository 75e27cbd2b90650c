"""Rows bit by bit: whether two are the same, and how large their numbers are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tallstore.kernels.native import encode as native
from tallstore.kernels.registry import kernel
from tallstore.tensors import as_bytes


@kernel
def same_and_largest(weights: Tensor, base: Tensor) -> tuple[bool, float]:
    """Whether both are equal in every bit, and the largest magnitude of the first; not finite if there is a NaN."""
    low, high = weights.aminmax() if weights.numel() else (0.0, 0.0)
    return same_bits(weights, base), max(abs(float(low)), abs(float(high)))


@same_and_largest.takes
def _(weights: Tensor, base: Tensor) -> bool:  # noqa: ARG001 - the kernel's own arguments
    return weights.numel() > 0


@same_and_largest.native
def _(weights: Tensor, base: Tensor) -> tuple[bool, float]:
    word = np.dtype(f"<u{weights.element_size()}")
    same, top = native.look(as_bytes(weights).view(word), as_bytes(base).view(word))
    largest = torch.from_numpy(np.array([top], word).view(f"<i{word.itemsize}")).view(weights.dtype)
    return same, float(largest)


def largest_of(values: Tensor) -> float:
    """The largest magnitude; not finite if there is a NaN."""
    return same_and_largest(values, values)[1]


@kernel
def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two flat tensors of one type are equal in every bit (−0 is not 0, a NaN is itself)."""
    return np.array_equal(as_bytes(left.contiguous()), as_bytes(right.contiguous()))


@same_bits.takes
def _(left: Tensor, right: Tensor) -> bool:
    size = left.nbytes
    return size > 0 and size == right.nbytes and size % _WORD.itemsize == 0


@same_bits.native
def _(left: Tensor, right: Tensor) -> bool:
    return native.look(as_bytes(left.contiguous()).view(_WORD), as_bytes(right.contiguous()).view(_WORD))[0]


_WORD = np.dtype("<u4")
