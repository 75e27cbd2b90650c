"""What a task adds to a tensor's elements first, a product of two thin matrices, as it is kept in memory.

Numbers stay as small as codec `dare` has them, a byte each: columns once for all chunks that have the same, rows and
the rest by chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tallstore.kernels.low_rank import LowRank, add_product

__all__ = ["ProductPart", "ResidentProduct"]


@dataclass(frozen=True)
class ProductPart:
    """One chunk's: Σ scale · 2^shift · row ⊗ column, of which the chunk is a run of elements. Beside `LowRank`."""

    scale: np.float32
    shifts: Tensor
    """uint8, shape (rank,)."""
    rows: Tensor
    """int8, shape (rank, R): of as many rows as the chunk has a part of."""
    columns: int
    """Which of the tensor's columns: the first `rank` of them."""
    gone: int
    """Elements of the first row that lie before the chunk."""


class ProductRun(NamedTuple):
    """Elements of one chunk, and of these rows of the matrix."""

    part: ProductPart
    first: int
    """Elements from the beginning of what was asked for; likewise, the one behind the last: """
    last: int
    row: int
    """The first of the part's rows; likewise, the one behind the last: """
    stop: int
    gone: int
    """Elements of the first row that lie before."""


@dataclass(frozen=True)
class ResidentProduct:
    """Of a tensor's N elements."""

    parts: tuple[ProductPart | None, ...]
    """By chunk; None where nothing is added."""
    columns: tuple[Tensor, ...]
    """int8, shape (rank, width): those that parts name."""
    chunk: int
    """Elements a chunk."""

    @classmethod
    def of(cls, chunks: Sequence[LowRank | None], chunk: int) -> ResidentProduct | None:
        """Of every chunk's; None where nothing is added anywhere."""
        columns: list[np.ndarray] = []
        parts: list[ProductPart | None] = []
        for each in chunks:
            if each is None:
                parts.append(None)
                continue
            number = next((n for n, held in enumerate(columns) if _begin_alike(held, each.columns)), len(columns))
            if number == len(columns):
                columns.append(each.columns)
            elif len(each.columns) > len(columns[number]):
                columns[number] = each.columns
            shifts, rows = (torch.from_numpy(np.array(own)) for own in (each.shifts, each.rows))
            parts.append(ProductPart(each.scale, shifts, rows, number, each.gone))
        held = tuple(torch.from_numpy(np.array(own)) for own in columns)
        return cls(tuple(parts), held, chunk) if held else None

    @property
    def tensors(self) -> list[Tensor]:
        """All memory."""
        return [*self.columns, *(own for part in self.parts if part is not None for own in (part.shifts, part.rows))]

    def to(self, move: Callable[[Tensor], Tensor]) -> ResidentProduct:
        """The same with all memory moved."""
        parts = tuple(
            None if part is None else replace(part, shifts=move(part.shifts), rows=move(part.rows))
            for part in self.parts
        )
        return replace(self, parts=parts, columns=tuple(map(move, self.columns)))

    def runs(self, start: int, n: int) -> Iterator[ProductRun]:
        """Of n elements from `start` on, those of each chunk that adds something."""
        for index in range(start // self.chunk, -(-(start + n) // self.chunk)):
            part = self.parts[index]
            if part is None:
                continue
            a, b = max(start, index * self.chunk), min(start + n, (index + 1) * self.chunk)
            width = self.columns[part.columns].shape[1]
            begin = part.gone + a - index * self.chunk
            row, stop = begin // width, -(-(begin + b - a) // width)
            yield ProductRun(part, a - start, b - start, row, stop, begin - row * width)

    def add(self, out: Tensor, start: int) -> None:
        """Add it, where it is not 0, to a run of elements, in place: rounded to float32 twice, as codec `dare` does.

        Args:
            out: the base's elements, float32, contiguous, shape (n,), on any device.
            start: the first of them.
        """
        for part, first, last, row, stop, gone in self.runs(start, len(out)):
            here, rank = out[first:last], len(part.shifts)
            rows, columns = part.rows[:, row:stop], self.columns[part.columns][:rank]
            if out.device.type == "cpu":
                of = LowRank(part.scale, part.shifts.numpy(), rows.numpy(), columns.numpy(), gone)
                add_product("F32", here.numpy().view(np.uint32), of)
            else:
                add_on_device(here, float(part.scale), part.shifts, rows, columns, gone)


def add_on_device(out: Tensor, scale: float, shifts: Tensor, rows: Tensor, columns: Tensor, gone: int) -> None:
    """What `kernels.low_rank.add_product` does, in torch, to float32 elements on any device.

    Args:
        out: shape (n,), written in place.
        scale: exactly a float32.
        shifts: uint8, shape (rank,).
        rows: int8, shape (rank, R).
        columns: int8, shape (rank, width).
        gone: elements of the first row that lie before.
    """
    # In float64 no setting of a device rounds what is multiplied; Apple's have none.
    where = torch.device("cpu") if out.device.type == "mps" else out.device
    across, along = (each.to(where, torch.float64) for each in (rows, columns))
    across = torch.ldexp(across, shifts.to(where, torch.int32)[:, None])
    product = (across.T @ along).reshape(-1)[gone : gone + len(out)].to(torch.float32).to(out.device)
    moved = out + product * scale
    moved = torch.where(torch.isnan(moved), torch.nan, moved)  # the one that the kernels write
    out.copy_(torch.where(product == 0, out, moved))


def _begin_alike(held: np.ndarray, columns: np.ndarray) -> bool:
    """Whether the one begins with the other."""
    rank = min(len(held), len(columns))
    return held.shape[1] == columns.shape[1] and np.array_equal(held[:rank], columns[:rank])
