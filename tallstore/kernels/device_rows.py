"""A task's difference in one tensor on a device other than the processor: a code for every element, in torch.

Devices have no use for walks from mark to mark: codes are looked up where they are needed. The functions here run
wherever torch does, and are the reference of those in `kernels.gpu.products`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tallstore.kernels import reference
from tallstore.kernels.packed_rows import PackedRows, SharedVector

__all__ = ["DeviceProducts", "DeviceRows", "DeviceShare", "DeviceVector"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceVector:
    """The multi-task vector for one tensor. Beside `packed_rows.SharedVector`, which says what it holds."""

    codes: Tensor
    bits: int
    tables: Tensor | None
    chunk: int

    @classmethod
    def of(cls, vector: SharedVector, device: torch.device) -> DeviceVector:
        """The same on a device."""
        tables = None if vector.tables is None else torch.from_numpy(vector.tables).to(device)
        return cls(codes=torch.from_numpy(vector.codes).to(device), bits=vector.bits, tables=tables, chunk=vector.chunk)

    @property
    def nbytes(self) -> int:
        """Memory."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.tables) if t is not None)

    def values(self, at: Tensor) -> Tensor:
        """Elements by number: float32."""
        if self.tables is None:
            return self.codes[at].float()
        return self.tables[at // self.chunk, _fields(self.codes, self.bits, at)]


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceRows:
    """Of a tensor of `rows` rows of `width` elements each. Beside `packed_rows.PackedRows` in the form `codes`."""

    codes: Tensor
    """uint8: codes of `bits` bits, the first in the lowest ones, and spare bytes behind them."""
    tables: Tensor
    """What they stand for: float32, shape (chunks, 2^bits)."""
    bits: int
    chunk: int
    """Elements a chunk: a power of two."""
    rows: int
    width: int
    dtype: torch.dtype
    """The task's type D."""
    marks: int
    vector: DeviceVector | None = None

    @classmethod
    def of(cls, packed: PackedRows, device: torch.device, vector: DeviceVector | None = None) -> DeviceRows:
        """Rows in the form `codes`, of numbers, on a device. vector: theirs, which tasks share."""
        assert packed.form == "codes"
        assert not packed.steps
        assert (vector is None) == (packed.vector is None)
        return cls(
            codes=torch.from_numpy(packed.places).to(device),
            tables=torch.from_numpy(np.ascontiguousarray(packed.tables)).to(device),
            bits=packed.bits,
            chunk=packed.chunk,
            rows=packed.rows,
            width=packed.width,
            dtype=packed.dtype,
            marks=packed.marks,
            vector=vector,
        )

    @property
    def nbytes(self) -> int:
        """Memory of its own."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.codes, self.tables))

    @property
    def numel(self) -> int:
        """Elements."""
        return self.rows * self.width

    def moved(self, base: Tensor, index: Tensor) -> Tensor:
        """The task's rows by number, in the base's type, as `packed_rows.moved_rows` has them.

        Args:
            base: θ0 of these rows, shape (n, width).
            index: int64, shape (n,), on the device.
        """
        at = index[:, None] * self.width + torch.arange(self.width, device=index.device)
        values = self.tables[at // self.chunk, _fields(self.codes, self.bits, at)]
        if self.vector is not None:
            values = values * self.vector.values(at)
        start = base.to(self.dtype)
        out = torch.empty_like(start)
        reference.apply_delta(out, start, values)
        return torch.where(values == 0, start, out).to(base.dtype)


DeviceShare = tuple[DeviceRows | None, Tensor | None, int, int]
"""What a task adds to a layer's weight, its bias if that is not the base's, and the tokens [a, b) that it is for."""


class DeviceProducts:
    """Layers of a mixed batch by torch, on any device. See `kernels.products.Products`."""

    name = "torch"

    def takes(self, packed: DeviceRows, base: Tensor) -> bool:  # noqa: ARG002 - as `Products` has it
        """Nothing is faster than itself."""
        return False

    def rows(self, out: Tensor, base: Tensor, packed: DeviceRows, index: Tensor | None, first: int = 0) -> None:
        """By `DeviceRows.moved`."""
        chosen = torch.arange(first, first + len(out), device=out.device) if index is None else index.to(out.device)
        out.copy_(packed.moved(base[chosen], chosen))

    def add(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[DeviceShare]) -> None:
        """By `DeviceRows.moved` too."""
        for packed, own, a, b in runs:
            if packed is not None:
                every = torch.arange(packed.rows, device=x.device)
                y[a:b] += x[a:b] @ (packed.moved(base, every).to(x.dtype) - base.to(x.dtype)).T
            if own is not None and bias is not None:
                y[a:b] += own - bias

    def outputs(self, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[DeviceShare]) -> None:
        """Left to torch."""

    def makes(self, packed: DeviceRows, base: Tensor) -> bool:  # noqa: ARG002 - as `Products` has it
        """A device looks codes up where it multiplies."""
        return False

    def own(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[DeviceShare]) -> None:
        """By the task's rows, decoded."""
        for packed, own, a, b in runs:
            weight = base
            if packed is not None:
                weight = torch.empty_like(base)
                self.rows(weight, base, packed, None)
            y[a:b] = functional.linear(x[a:b], weight, bias if own is None else own)


def _fields(codes: Tensor, bits: int, at: Tensor) -> Tensor:
    """Fields of 1, 2, 4 or 8 bits, by number: int64."""
    word = codes[at * bits // 8].to(torch.int64)
    return (word >> (at * bits % 8)) & ((1 << bits) - 1)
