"""Layers of a mixed batch from packed rows: one table of backends, and the choice between them.

The reference is torch, and the truth: it decodes a layer's rows and multiplies. On the processor the native library
walks the packed rows; on a GPU of CUDA Triton's kernels look codes up, and on any other device torch does. Their sums
are in another order, so that results differ by float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tallstore.kernels.device_rows import DeviceProducts, DeviceRows, DeviceVector
from tallstore.kernels.native import library
from tallstore.kernels.native.products import NativeProducts
from tallstore.kernels.packed_rows import PackedRows, Share, moved_rows, product

__all__ = [
    "Products",
    "ReferenceProducts",
    "Rows",
    "add",
    "backend_of",
    "form_for",
    "outputs",
    "placed",
    "products",
    "write_rows",
]

Rows = PackedRows | DeviceRows
"""What a task adds to a tensor: the second where the model is not on the processor."""


class Products(Protocol):
    """What a backend does for layers of a mixed batch."""

    name: str
    """reference, native, torch or triton."""

    def takes(self, packed: Any, base: Tensor) -> bool:
        """Whether there is anything faster than the reference for these."""

    def rows(self, out: Tensor, base: Tensor, packed: Any, index: Tensor | None, first: int = 0) -> None:
        """Write a task's rows.

        Args:
            out: shape (n, width), the model's type, contiguous.
            base: θ0, shape (rows, width), of the same type.
            packed: what the task adds: `PackedRows` on the processor, else `DeviceRows`.
            index: int64, shape (n,): which rows; None: those from `first` on.
            first: the first row's number.
        """

    def add(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Any]) -> None:
        """Add to a layer's outputs what tasks add: x · (θ̂ − θ0)ᵀ, and what their biases are more than the base's.

        Args:
            y: shape (tokens, rows), float32, contiguous.
            x: shape (tokens, width), float32, contiguous.
            base: θ0, shape (rows, width), the model's type.
            bias: the base's, shape (rows,), float32; None where no task has one.
            runs: each with the tokens that it is for.
        """

    def outputs(self, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Any]) -> Tensor | None:
        """A layer's outputs, the base's too; None where torch's own layer and then `add` take less.

        Args:
            x: shape (tokens, width), the model's type.
            base: θ0, shape (rows, width), of the same type.
            bias: the base's, shape (rows,), float32, or None.
            runs: as for `add`.

        Returns:
            shape (tokens, rows), float32.
        """

    def makes(self, packed: Any, base: Tensor) -> bool:
        """Whether `own` is worth its while for these, as far as they tell."""

    def own(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Any]) -> None:
        """Write outputs of tokens by their tasks' own rows: x · θ̂ᵀ and the task's bias, or the base's.

        Args:
            y: shape (tokens, rows), float32, contiguous; of tokens of no run it is left as it is.
            x: shape (tokens, width), float32, contiguous.
            base: θ0, shape (rows, width), float32.
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

    def outputs(self, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Share]) -> None:
        """Left to torch."""

    def makes(self, packed: PackedRows, base: Tensor) -> bool:  # noqa: ARG002 - as `Products` has it
        """It has no tiles."""
        return False

    def own(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Share]) -> None:
        """By `moved_rows`."""
        for packed, own, a, b in runs:
            weight = base if packed is None else moved_rows(packed, base, 0)
            y[a:b] = functional.linear(x[a:b], weight, bias if own is None else own)


def backend_of(device: str) -> str:
    """What computes for models on a device, by its type: cpu, triton or torch."""
    if device == "cpu":
        return "cpu"
    return "triton" if device == "cuda" and find_spec("triton") is not None else "torch"


def products(device: str = "cpu") -> Products:
    """The backend in use for a device; on the CPU see `native.library` for what decides."""
    backend = backend_of(device)
    if backend == "cpu":
        chosen = library.chosen()
        return _REFERENCE if chosen is None else _native(chosen)
    return _triton() if backend == "triton" else _TORCH


def placed(packed: PackedRows, device: torch.device, vectors: dict[int, DeviceVector]) -> Rows:
    """Rows where a model on a device is computed from. vectors: those that are there, by their identity."""
    if backend_of(device.type) == "cpu":
        return packed
    vector = packed.vector
    if vector is not None and id(vector) not in vectors:
        vectors[id(vector)] = DeviceVector.of(vector, device)
    return DeviceRows.of(packed, device, None if vector is None else vectors[id(vector)])


def form_for(device: torch.device) -> str | None:
    """The form that rows must have for a device; None where any will do."""
    return None if backend_of(device.type) == "cpu" else "codes"


def write_rows(out: Tensor, base: Tensor, packed: Rows, index: Tensor | None = None, first: int = 0) -> None:
    """`Products.rows`, by the reference where the backend does not take these."""
    if index is not None and (index.dtype != torch.int64 or not index.is_contiguous() or len(index) != len(out)):
        raise ValueError(f"kernels take {len(out)} contiguous indices of int64, not {len(index)} of {index.dtype}")
    if isinstance(packed, DeviceRows):
        _TORCH.rows(out, base, packed, index, first)
        return
    backend = products()
    (backend if backend.takes(packed, base) else _REFERENCE).rows(out, base, packed, index, first)


def outputs(x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Any]) -> Tensor:
    """A linear layer's outputs of rows of several tasks: x · θ0ᵀ + bias, and what tasks add to it.

    Args:
        x: shape (tokens, width), the model's type.
        base: θ0, shape (rows, width), of the same type.
        bias: the base's, shape (rows,), or None.
        runs: as for `Products.add`.

    Returns:
        shape (tokens, rows), the type of x. What tasks add is computed in float32.
    """
    wide_bias = None if bias is None else bias.detach().float()
    whole = products(x.device.type).outputs(x, base.detach(), wide_bias, runs)
    if whole is not None:
        return whole.to(x.dtype)
    y = functional.linear(x, base, bias)
    add(y, x, base, wide_bias, runs)
    return y


def add(y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Any]) -> None:
    """`Products.add` for x and y of any type, in float32."""
    backend = products(y.device.type)
    if y.dtype == torch.float32:
        backend.add(y, x.contiguous(), base.detach(), bias, runs)
        return
    wide = y.float()
    backend.add(wide, x.float().contiguous(), base.detach(), bias, runs)
    y.copy_(wide)


_REFERENCE, _TORCH = ReferenceProducts(), DeviceProducts()


@cache
def _native(chosen: library.Library) -> NativeProducts:
    return NativeProducts(chosen)


@cache
def _triton() -> Products:
    from tallstore.kernels.gpu.products import TritonProducts

    return TritonProducts()
