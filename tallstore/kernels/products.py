"""Layers of a mixed batch from packed rows: one table of backends, and the choice between them.

The reference is torch, and the truth: it decodes a layer's rows and multiplies. The native library (CPU) and Triton
(CUDA) walk the packed rows; their sums are in another order, so that results differ by float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

from tallstore.kernels.native import library
from tallstore.kernels.native.products import NativeProducts
from tallstore.kernels.packed_rows import PackedRows, Share, moved_rows, product

__all__ = ["Products", "ReferenceProducts", "products", "write_rows"]


class Products(Protocol):
    """What a backend does for layers of a mixed batch."""

    name: str
    """reference or native."""

    def takes(self, packed: PackedRows, base: Tensor) -> bool:
        """Whether there is anything faster than the reference for these."""

    def rows(self, out: Tensor, base: Tensor, packed: PackedRows, index: Tensor | None, first: int = 0) -> None:
        """Write a task's rows.

        Args:
            out: shape (n, width), the model's type, contiguous.
            base: θ0, shape (rows, width), of the same type.
            packed: what the task adds.
            index: int64, shape (n,): which rows; None: those from `first` on.
            first: the first row's number.
        """

    def add(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Share]) -> None:
        """Add to a layer's outputs what tasks add: x · (θ̂ − θ0)ᵀ, and what their biases are more than the base's.

        Args:
            y: shape (tokens, rows), float32, contiguous.
            x: shape (tokens, width), float32, contiguous.
            base: θ0, shape (rows, width), the model's type.
            bias: the base's, shape (rows,), float32; None where no task has one.
            runs: each with the tokens that it is for.
        """


class ReferenceProducts:
    """The reference."""

    name = "reference"

    def takes(self, packed: PackedRows, base: Tensor) -> bool:  # noqa: ARG002 - as `Products` has it
        """Nothing is faster than itself."""
        return False

    def rows(self, out: Tensor, base: Tensor, packed: PackedRows, index: Tensor | None, first: int = 0) -> None:
        """By `moved_rows`."""
        if index is None:
            out.copy_(moved_rows(packed, base[first : first + len(out)], first))
            return
        for row, own in zip(index.tolist(), out, strict=True):
            own.copy_(moved_rows(packed, base[row : row + 1], row)[0])

    def add(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Share]) -> None:
        """By `product`."""
        for packed, own, a, b in runs:
            if packed is not None:
                y[a:b] += product(x[a:b], packed, base)
            if own is not None and bias is not None:
                y[a:b] += own - bias


def products() -> Products:
    """The backend in use on the CPU: see `native.library` for what decides."""
    chosen = library.chosen()
    return _REFERENCE if chosen is None else _native(chosen)


def write_rows(out: Tensor, base: Tensor, packed: PackedRows, index: Tensor | None = None, first: int = 0) -> None:
    """`Products.rows`, by the reference where the backend does not take these."""
    backend = products()
    (backend if backend.takes(packed, base) else _REFERENCE).rows(out, base, packed, index, first)


_REFERENCE = ReferenceProducts()


@cache
def _native(chosen: library.Library) -> NativeProducts:
    return NativeProducts(chosen)
