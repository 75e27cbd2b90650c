"""A task's share of one tensor, decoded as far as it stays small: what is kept in memory to switch by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tallstore.archive.resident_product import ResidentProduct
from tallstore.codecs.base import IndexedValues
from tallstore.kernels import reference
from tallstore.kernels.devices import kernels_for

__all__ = ["PackedTensor"]


@dataclass(frozen=True)
class PackedTensor:
    """Packed symbols or indices of N elements, or a delta's values where a codec has neither."""

    kind: str
    """binary, signed, levels or values."""
    codes: Tensor
    """uint8, every chunk's beginning with a byte of its own; values: float32, shape (N,)."""
    bits: int
    """Of a symbol or index."""
    chunk: int
    """Elements a chunk: a power of two."""
    scales: Tensor | None = None
    """Of masks: s of every chunk, float32, shape (chunks,)."""
    tables: Tensor | None = None
    """Of levels: float32, shape (chunks, 16 or 256)."""
    vector: Tensor | None = None
    """Of masks: v, float32, shape (N,) or longer; None where it is 1."""
    product: ResidentProduct | None = None
    """Of levels of float32: what is added to the base before them."""

    @classmethod
    def of_levels(cls, levels: Sequence[IndexedValues], sizes: Sequence[int], chunk: int) -> PackedTensor:
        """Of chunks of so many elements, one behind the other, in indices of as many bits as any of them needs."""
        bits = max(each.bits for each in levels)
        tables = np.zeros((len(levels), 1 << bits), np.float32)
        for row, each in zip(tables, levels, strict=True):
            row[: len(each.table)] = each.table
        codes = [
            each.packed if each.bits == bits else np.stack([each.packed & 15, each.packed >> 4], 1).reshape(-1)[:n]
            for each, n in zip(levels, sizes, strict=True)
        ]
        return cls("levels", torch.from_numpy(np.concatenate(codes)), bits, chunk, tables=torch.from_numpy(tables))

    @property
    def tensors(self) -> list[Tensor]:
        """All memory."""
        own = [] if self.product is None else self.product.tensors
        return [*own, *(t for t in (self.codes, self.scales, self.tables, self.vector) if t is not None)]

    def to(self, move: Callable[[Tensor], Tensor]) -> PackedTensor:
        """The same with codes and tables moved. The vector, which tasks share, stays."""
        scales, tables = self.scales, self.tables
        return replace(
            self,
            codes=move(self.codes),
            scales=None if scales is None else move(scales),
            tables=None if tables is None else move(tables),
            product=None if self.product is None else self.product.to(move),
        )

    def apply(self, out: Tensor, base: Tensor, start: int) -> None:
        """Write θ̂ of a run of elements that begins where a chunk does, or lies in one.

        Args:
            out: shape (n,), the task's type.
            base: θ0, shape (n,), on the same device.
            start: the run's first element: a multiple of 8.
        """
        n, device = len(out), out.device
        if self.product is not None:
            out.copy_(base)
            self.product.add(out, start)
            base = out
        if self.kind == "values":
            reference.apply_delta(out, base, self.codes[start : start + n].to(device))
            return
        kernels = kernels_for(device.type)
        codes = self.codes[start * self.bits // 8 : -(-(start + n) * self.bits // 8)].to(device)
        first, last = start // self.chunk, -(-(start + n) // self.chunk)
        if self.tables is not None:
            tables = self.tables[first:last].to(device)
            kernels.apply_packed_delta(out, base, codes, self.bits, tables, self.chunk)
            return
        assert self.scales is not None
        vector = None if self.vector is None else self.vector[start : start + n].to(device)
        kernels.apply_packed_mask(out, base, codes, self.kind, self.scales[first:last].to(device), self.chunk, vector)
