"""A task's difference in one tensor, packed so that its rows can be walked: what mixed batches are computed from.

A mark is an element that the task moves. Only rows with marks are held where that is less. Marks are found by one of
three forms, whichever takes the fewest bytes:

    gaps     the zeros before each mark, in fields of 3 to 12 bits, the first in the lowest: a field of ones stands for
             as many zeros as it says, and that the gap goes on
    bitmap   a bit an element, least significant first
    codes    every element's level, also of those that do not move

and what a mark adds is its level's value in a table a chunk, times the vector's element where there is one. Of many
levels the commonest may have fewer bits: marks with rare ones are then told apart, by gaps between them. An index says,
every few rows, where walking may begin. All of this is in memory only; archives have codecs of their own.

The functions here are the reference: native and Triton kernels equal them, products but for how their sums are rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.kernels import reference
from tallstore.kernels.pairs import Singles
from tallstore.kernels.reference import Bytes

__all__ = [
    "FORMS",
    "TILE_ROWS",
    "PackedRows",
    "RareLevels",
    "SharedVector",
    "fields_of",
    "moved_rows",
    "product",
]

FORMS = ("gaps", "bitmap", "codes")
TILE_ROWS = 16
"""What the rows between two entries are a multiple of: so many are computed side by side."""


@dataclass(frozen=True, kw_only=True)
class SharedVector:
    """The multi-task vector for one tensor, as its codec has it: values, or indices into a table a chunk."""

    codes: npt.NDArray[Any]
    """float32 (32 bits), or uint8 indices, one a byte (8) or two (4, the first in the low half)."""
    bits: int
    tables: Singles | None
    """Shape (chunks, 2^bits); None of values."""
    chunk: int

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.codes.nbytes + (0 if self.tables is None else self.tables.nbytes)

    def values(self, start: int, stop: int) -> Singles:
        """Elements [start, stop): float32."""
        if self.tables is None:
            return np.asarray(self.codes[start:stop], np.float32)
        at = np.arange(start, stop)
        return self.tables[at // self.chunk, fields_of(self.codes, self.bits, at)]


@dataclass(frozen=True, kw_only=True)
class RareLevels:
    """Marks whose levels are none of the commonest, in order."""

    fields: Bytes
    """Each `gap_bits` of a gap, in marks whose levels are common, and above these the level's number: at most 12 bits
    in all. A gap of ones stands for as many marks as it says, and that the gap goes on."""
    count: int
    """Of fields."""
    gap_bits: int

    def marks(self, bits: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Their numbers among all marks, and their levels, of so many bits each."""
        every = fields_of(self.fields, self.gap_bits + bits, np.arange(self.count))
        most = (1 << self.gap_bits) - 1
        gaps = every & most
        ends = np.flatnonzero(gaps != most)
        return np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(len(ends)), every[ends] >> self.gap_bits


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedRows:
    """Of a tensor of `rows` rows of `width` elements each."""

    form: str
    """One of `FORMS`."""
    rows: int
    width: int
    dtype: torch.dtype
    """The task's type D: what is moved is rounded to it."""
    places: Bytes
    """Gaps, bits or codes, of the rows that are held."""
    levels: Bytes
    """Of each mark, in order, `bits` each, least significant first; empty for codes, and for 0 bits. Of one with a rare
    level it may be any."""
    bits: int
    """Of a level: 0, 1, 2, 4 or 8; of steps also 16: then it is the step itself, modulo 2^16."""
    tables: Singles
    """What levels stand for, a row a chunk, the commonest first: float32, shape (chunks, 2^k); of 16 bits there are
    none."""
    chunk: int
    """Elements a chunk: a power of two."""
    marks: int
    """How many elements move; of codes at most."""
    steps: bool = False
    """Whether a level stands for units in the last place of D, in the order of its numbers, in place of a number."""
    block: int = 1
    """Rows between two entries of the index."""
    index: npt.NDArray[np.int64]
    """Shape (blocks, 5): gaps, marks, and the element behind the last mark, before each block of rows that are held; of
    rare levels, fields, and the mark behind the last one."""
    gaps: int = 0
    """How many gaps there are; continued ones count again."""
    gap_bits: int = 8
    """Of a gap."""
    numbers: npt.NDArray[np.int32] | None = None
    """Of the rows that are held, in order; None: all are."""
    tiles: npt.NDArray[np.int32] | None = None
    """How many rows are held before each `TILE_ROWS` of the tensor's, and in all."""
    rare: RareLevels | None = None
    """None where every mark's level is among the first 2^bits."""
    vector: SharedVector | None = None
    """What levels are factors of; None where it is 1."""

    @property
    def table_bits(self) -> int:
        """Of a level's number."""
        return int(self.tables.shape[1]).bit_length() - 1

    @property
    def nbytes(self) -> int:
        """Memory of its own: the vector, which tasks share, is not counted."""
        held = (self.places, self.levels, self.tables, self.index, self.numbers, self.tiles)
        rare = 0 if self.rare is None else self.rare.fields.nbytes
        return rare + sum(each.nbytes for each in held if each is not None)

    @property
    def held(self) -> int:
        """Rows that are held."""
        return self.rows if self.numbers is None else len(self.numbers)

    @property
    def numel(self) -> int:
        """Elements."""
        return self.rows * self.width

    def values(self, first: int, last: int) -> Singles:
        """What levels stand for, 0 where nothing moves, of rows [first, last): float32, shape (last − first, width)."""
        out = np.zeros((last - first, self.width), np.float32)
        if self.form == "codes":
            at = np.arange(first * self.width, last * self.width)
            out.reshape(-1)[:] = self.tables[at // self.chunk, fields_of(self.places, self.bits, at)]
        else:
            numbers = np.arange(self.rows) if self.numbers is None else self.numbers
            a, b = np.searchsorted(numbers, [first, last])
            at, mark = self._marked(int(a) * self.width, int(b) * self.width)
            own = numbers[at // self.width].astype(np.int64) * self.width + at % self.width
            out.reshape(-1)[own - first * self.width] = self._values(own, mark)
        if self.vector is not None:
            out *= self.vector.values(first * self.width, last * self.width).reshape(out.shape)
        return out

    def _values(self, own: npt.NDArray[np.int64], mark: int) -> Singles:
        """What marks at elements, the first of them number `mark`, stand for."""
        if self.bits == 16:
            return self.levels[: 2 * (mark + len(own))].view(np.int16)[mark:].astype(np.float32)
        level = np.zeros(len(own), np.int32)
        if self.bits:
            level = fields_of(self.levels, self.bits, np.arange(mark, mark + len(own)))
        if self.rare is not None:
            at, number = self.rare.marks(self.table_bits)
            here = (at >= mark) & (at < mark + len(own))
            level[at[here] - mark] = number[here]
        values: Singles = self.tables[own // self.chunk, level]
        return values

    def _marked(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], int]:
        """Elements in [start, stop) of held rows that move, and how many marks lie before. `start` begins a row."""
        if start >= stop:
            return np.zeros(0, np.int64), 0
        gap, mark, place = (int(n) for n in self.index[start // self.width // self.block, :3])
        if self.form == "bitmap":
            begin = start // self.width // self.block * self.block * self.width
            bits = np.unpackbits(self.places[begin // 8 : -(-stop // 8)], bitorder="little")
            at = np.flatnonzero(bits) + begin // 8 * 8
            at = at[(at >= begin) & (at < stop)]
        else:
            most = (1 << self.gap_bits) - 1
            gaps = fields_of(self.places, self.gap_bits, np.arange(gap, self.gaps))
            ends = np.flatnonzero(gaps != most)
            at = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(len(ends)) + place
            at = at[: np.searchsorted(at, stop)]
        before = int(np.searchsorted(at, start))
        return at[before:], mark + before


Share = tuple[PackedRows | None, Tensor | None, int, int]
"""What a task adds to a layer's weight, its bias if that is not the base's, and the tokens [a, b) that it is for."""


def moved_rows(packed: PackedRows, base: Tensor, first: int) -> Tensor:
    """The task's rows from `first` on, in the base's type.

    Args:
        packed: what the task adds.
        base: θ0 in the model's type M, shape (n, width): exact in D, or D is wider than M.
        first: the first row's number.

    Returns:
        θ̂ = M(round_D(W(θ0) + step)): shape (n, width), type M.
    """
    values = torch.from_numpy(packed.values(first, first + len(base)))
    start = base if base.dtype == packed.dtype else base.to(packed.dtype)
    if packed.steps:
        return _stepped(start, values.to(torch.int64)).to(base.dtype)
    out = torch.empty_like(start)
    reference.apply_delta(out, start, values)
    out = torch.where(values == 0, start, out)
    return out if out.dtype == base.dtype else out.to(base.dtype)


def product(x: Tensor, packed: PackedRows, base: Tensor) -> Tensor:
    """What a task adds to a layer's outputs: x · (θ̂ − θ0)ᵀ.

    Args:
        x: shape (n, width), float32 or float64.
        packed: what the task adds to the layer's weight.
        base: θ0, shape (rows, width).

    Returns:
        shape (n, rows), the type of x.
    """
    own = moved_rows(packed, base, 0)
    return x @ (own.to(x.dtype) - base.to(x.dtype)).T


def _stepped(start: Tensor, steps: Tensor) -> Tensor:
    """Elements so many numbers further on, in their type's order: of `spec/codecs/lattice.md`."""
    bits = 8 * start.element_size()
    word = {2: torch.int16, 4: torch.int32}[start.element_size()]
    low = (1 << (bits - 1)) - 1
    own = start.view(word).to(torch.int64)
    own = (torch.where(own < 0, own ^ low, own) + steps).to(word)
    return torch.where(own < 0, own ^ low, own).view(start.dtype)


def fields_of(codes: Bytes, bits: int, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Fields of so many bits, at most 12, by number. Two bytes behind the last one's first are read."""
    byte = at * bits // 8
    word = codes[byte].astype(np.int32)
    if 8 % bits:
        word |= codes[byte + 1].astype(np.int32) << 8 | codes[byte + 2].astype(np.int32) << 16
    fields: npt.NDArray[np.int32] = word >> (at * bits % 8).astype(np.int32) & (1 << bits) - 1
    return fields
