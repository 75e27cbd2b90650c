"""What products of thin matrices add in a mixed batch: to outputs of tokens, as two thin products, and to rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tallstore.archive.resident_product import ProductPart, ResidentProduct

__all__ = ["LowRankRows"]


class _Lines(NamedTuple):
    """Neighbouring rows of the tensor that one chunk adds to, in these of its columns."""

    part: ProductPart
    scales: Tensor
    """Of each component, 2^shift times the scale: float32, shape (rank, 1)."""
    first: int
    """The tensor's row; likewise, the one behind the last: """
    last: int
    own: int
    """The part's row that is the first one."""
    begin: int
    """Columns; likewise, the one behind the last: """
    end: int


@dataclass(frozen=True, eq=False)
class LowRankRows:
    """A product that is added to the leading rows of a tensor, all of `width` elements.

    Numbers stay bytes in memory, and become floats for the time of a call: floats would take four times as much, more
    than the rest that a task adds, and converting them takes less than multiplying by them.
    """

    product: ResidentProduct
    rows: int
    width: int

    @classmethod
    def of(cls, product: ResidentProduct, rows: int, width: int) -> LowRankRows | None:
        """Of a tensor's product; None where its rows are not the tensor's."""
        for index, part in enumerate(product.parts):
            fits = part is None or product.columns[part.columns].shape[1] == width
            if not fits or (part is not None and index * product.chunk % width != part.gone):
                return None
        return cls(product, rows, width)

    @property
    def tensors(self) -> list[Tensor]:
        """All memory."""
        return [*self.product.tensors, *{id(each.scales): each.scales for each in self._lines}.values()]

    @property
    def numbers(self) -> int:
        """Of rows and columns, that each token is multiplied by."""
        return sum(each.part.rows.shape[0] * (each.last - each.first + each.end - each.begin) for each in self._lines)

    def add_outputs(self, y: Tensor, x: Tensor) -> None:
        """Add x · Pᵀ to a layer's outputs.

        Args:
            y: shape (tokens, outputs), a float type: the leading `rows` outputs are added to.
            x: shape (tokens, width), a float type.
        """
        wide = x.float()
        for lines in self._lines:
            across, along = self._factors(lines, slice(lines.own, lines.own + lines.last - lines.first))
            more = (wide if lines.end - lines.begin == self.width else wide[:, lines.begin : lines.end]) @ along.T
            own = y[:, lines.first : lines.last]
            if y.dtype == torch.float32:
                own.addmm_(more, across)
            else:
                own += (more @ across).to(y.dtype)

    def add_rows(self, out: Tensor, index: Tensor) -> None:
        """Add P's rows to a tensor's.

        Args:
            out: shape (n, width), float32.
            index: int64, shape (n,): which rows they are, each below `rows`.
        """
        for lines in self._lines:
            which = torch.nonzero((index >= lines.first) & (index < lines.last)).reshape(-1)
            if len(which):
                across, along = self._factors(lines, index[which] - lines.first + lines.own)
                out[which, lines.begin : lines.end] += across.T @ along

    def add_all(self, out: Tensor) -> None:
        """Add P to a tensor's leading rows, with the bits of decoding: shape (rows, width), float32, contiguous."""
        self.product.add(out.view(-1), 0)

    def _factors(self, lines: _Lines, which: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Rows, times the scale and their shifts, and columns: float32, shapes (rank, n) and (rank, end − begin)."""
        part = lines.part
        along = self.product.columns[part.columns][: len(part.shifts), lines.begin : lines.end].float()
        return part.rows[:, which] * lines.scales, along

    @cached_property
    def _lines(self) -> tuple[_Lines, ...]:
        """Whole rows of each chunk, and what it has of its first and last one."""
        return tuple(self._cut())

    def _cut(self) -> Iterator[_Lines]:
        width = self.width
        for run in self.product.runs(0, self.rows * width):
            first, size = run.first // width, run.last - run.first
            own, begin, end = 0, run.gone, run.gone + size
            scales = ((1 << run.part.shifts.to(torch.int32)).float() * float(run.part.scale))[:, None]
            if begin and own < end // width:  # to the end of the first row
                yield _Lines(run.part, scales, first, first + 1, own, begin, width)
                own, begin = 1, 0
            whole = end // width
            if not begin and whole > own:
                yield _Lines(run.part, scales, first + own, first + whole, own, 0, width)
                own = whole
            if end > own * width:
                yield _Lines(run.part, scales, first + own, first + own + 1, own, begin, end - own * width)
