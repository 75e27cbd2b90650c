"""A task's difference in one tensor, packed so that its rows can be walked: what mixed batches are computed from.

A mark is an element that the task moves. Only rows with marks are held where many have none. Marks are found by one of
four forms, whichever takes the fewest bytes:

    gaps     the zeros before each mark: bytes 255 (255 zeros more), then one below 255
    nibbles  the same in fields of 4 bits, the first in the low half: 15, and below
    bitmap   a bit an element, least significant first
    codes    every element's level, also of those that do not move

and what a mark adds is its level's value in a table a chunk, times the vector's element where there is one. An index
says, every few rows, where walking may begin. All of this is in memory only; archives have codecs of their own.

The functions here are the reference: native and Triton kernels equal them, products but for the order of their sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.kernels import reference
from tallstore.kernels.pairs import NIBBLES, Singles
from tallstore.kernels.reference import Bytes

__all__ = [
    "FORMS",
    "TILE_ROWS",
    "LevelChunk",
    "PackedRows",
    "SharedVector",
    "moved_rows",
    "pack_rows",
    "product",
    "unpacked",
]

FORMS = ("gaps", "nibbles", "bitmap", "codes")
_SPARE = 8
"""Bytes of zero behind packed ones: kernels load whole words."""
_BLOCK = 8192
"""Elements between two entries of the index, about: it takes a fortieth of a bit an element."""
TILE_ROWS = 16
"""What the rows between two entries are a multiple of: so many are computed side by side."""
_MOST = {"gaps": 255, "nibbles": 15}
"""What a field holds where its gap goes on."""
_SPARSE = 0.8
"""Share of rows with marks below which the others are not held."""


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
        return self.tables[at // self.chunk, _fields(self.codes, self.bits, at)]


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
    """Of each mark, in order, `bits` each, least significant first; empty for codes, and for 0 bits."""
    bits: int
    """Of a level: 0, 1, 2, 4 or 8."""
    tables: Singles
    """What levels stand for, a row a chunk: float32, shape (chunks, 2^bits)."""
    chunk: int
    """Elements a chunk: a power of two."""
    marks: int
    """How many elements move; of codes at most."""
    steps: bool = False
    """Whether a level stands for units in the last place of D, in the order of its numbers, in place of a number."""
    block: int = 1
    """Rows between two entries of the index."""
    index: npt.NDArray[np.int64]
    """Shape (blocks, 3): gaps, marks, and the element behind the last mark, before each block of rows that are held."""
    gaps: int = 0
    """How many gaps there are; continued ones count again."""
    numbers: npt.NDArray[np.int32] | None = None
    """Of the rows that are held, in order; None: all are."""
    tiles: npt.NDArray[np.int32] | None = None
    """How many rows are held before each `TILE_ROWS` of the tensor's, and in all."""
    vector: SharedVector | None = None
    """What levels are factors of; None where it is 1."""

    @property
    def nbytes(self) -> int:
        """Memory of its own: the vector, which tasks share, is not counted."""
        held = (self.places, self.levels, self.tables, self.index, self.numbers, self.tiles)
        return sum(each.nbytes for each in held if each is not None)

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
            out.reshape(-1)[:] = self.tables[at // self.chunk, _fields(self.places, self.bits, at)]
        else:
            numbers = np.arange(self.rows) if self.numbers is None else self.numbers
            a, b = np.searchsorted(numbers, [first, last])
            at, mark = self._marked(int(a) * self.width, int(b) * self.width)
            level = _fields(self.levels, self.bits, np.arange(mark, mark + len(at))) if self.bits else 0
            own = numbers[at // self.width].astype(np.int64) * self.width + at % self.width
            out.reshape(-1)[own - first * self.width] = self.tables[own // self.chunk, level]
        if self.vector is not None:
            out *= self.vector.values(first * self.width, last * self.width).reshape(out.shape)
        return out

    def _marked(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], int]:
        """Elements in [start, stop) of held rows that move, and how many marks lie before. `start` begins a row."""
        if start >= stop:
            return np.zeros(0, np.int64), 0
        gap, mark, place = (int(n) for n in self.index[start // self.width // self.block])
        if self.form == "bitmap":
            begin = start // self.width // self.block * self.block * self.width
            bits = np.unpackbits(self.places[begin // 8 : -(-stop // 8)], bitorder="little")
            at = np.flatnonzero(bits) + begin // 8 * 8
            at = at[(at >= begin) & (at < stop)]
        else:
            own, most = np.arange(gap, self.gaps), _MOST[self.form]
            gaps = _fields(self.places, 4 if self.form == "nibbles" else 8, own)
            ends = np.flatnonzero(gaps != most)
            at = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(len(ends)) + place
            at = at[: np.searchsorted(at, stop)]
        before = int(np.searchsorted(at, start))
        return at[before:], mark + before


Share = tuple[PackedRows | None, Tensor | None, int, int]
"""What a task adds to a layer's weight, its bias if that is not the base's, and the tokens [a, b) that it is for."""


@dataclass(frozen=True)
class LevelChunk:
    """One chunk's elements as levels."""

    codes: Bytes
    """Shape (n,): an index into the table for each element."""
    table: Singles
    """float32, shape (K,): K is 3 for signed symbols, 2 for binary ones, up to 256 else."""


def pack_rows(
    chunks: Iterable[LevelChunk],
    shape: tuple[int, int],
    dtype: torch.dtype,
    chunk: int,
    *,
    steps: bool = False,
    vector: SharedVector | None = None,
    form: str | None = None,
) -> PackedRows:
    """Pack a tensor's levels, chunk by chunk, in the form that takes the fewest bytes.

    Args:
        chunks: all elements, in order; each but the last has `chunk` elements.
        shape: rows and width.
        dtype: the task's type D.
        chunk: elements a chunk: a power of two, at least 8.
        steps: see `PackedRows.steps`.
        vector: what levels are factors of.
        form: one of `FORMS`, in place of the smallest.
    """
    rows, width = shape
    flags, levels, every, tables = [], [], [], []
    for each in chunks:
        on = (each.table != 0)[each.codes]
        flags.append(on)
        levels.append(each.codes[on])
        every.append(each.codes)
        tables.append(each.table)
    own = np.concatenate(levels) if levels else np.zeros(0, np.uint8)
    values, own, bits = _tables(tables, own)
    marked = np.concatenate(flags).reshape(rows, width) if flags else np.zeros((rows, width), bool)
    numbers: npt.NDArray[np.int32] | None = np.flatnonzero(marked.any(1)).astype(np.int32)
    if numbers is not None and len(numbers) < _SPARSE * rows:
        marked = marked[numbers]
    else:
        numbers = None
    at, count = np.flatnonzero(marked), len(marked)
    code_bits = next(each for each in (1, 2, 4, 8) if max(map(len, tables), default=1) <= 1 << each)
    gaps = np.diff(at, prepend=-1) - 1
    sizes = {
        "gaps": len(at) + int((gaps // 255).sum()),
        "nibbles": -(-(len(at) + int((gaps // 15).sum())) // 2),
        "bitmap": -(-count * width // 8),
        "codes": -(-rows * width * code_bits // 8) - -(-len(own) * bits // 8),
    }
    form = form or min(FORMS, key=lambda name: sizes[name])
    block = TILE_ROWS * max(1, _BLOCK // max(TILE_ROWS * width, 1))
    packed = _packed(own, bits) if bits else np.zeros(0, np.uint8)
    tiles, gap_count = None, 0
    if form == "codes":
        values = np.zeros((max(len(tables), 1), 1 << code_bits), np.float32)
        for row, table in zip(values, tables, strict=False):
            row[: len(table)] = table
        numbers, bits, packed = None, code_bits, np.zeros(0, np.uint8)
        places = _packed(np.concatenate(every) if every else own, code_bits)
    elif form == "bitmap":
        places = np.packbits(marked.reshape(-1), bitorder="little")
    else:
        places = _gaps(gaps, _MOST[form])
        gap_count = len(places)
        places = _packed(places, 4) if form == "nibbles" else places
    if numbers is not None:
        tiles = np.searchsorted(numbers, np.arange(-(-rows // TILE_ROWS) + 1) * TILE_ROWS).astype(np.int32)
    return PackedRows(
        form=form,
        rows=rows,
        width=width,
        dtype=dtype,
        places=_spared(places),
        levels=_spared(packed) if len(packed) else packed,
        bits=bits,
        tables=values,
        chunk=chunk,
        marks=len(at),
        steps=steps,
        block=block,
        index=_index(at, count, width, block, _MOST.get(form, 255)),
        gaps=gap_count,
        numbers=numbers,
        tiles=tiles,
        vector=vector,
    )


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
    own = torch.where(own < 0, own ^ low, own) + steps
    own = torch.where(own < 0, own ^ low, own)
    return own.to(word).view(start.dtype)


def _fields(codes: Bytes, bits: int, at: npt.NDArray[np.int64]) -> Bytes:
    """Fields of so many bits, by number."""
    if bits == 8:
        return codes[at]
    shifted: Bytes = codes[at * bits // 8] >> (at * bits % 8).astype(np.uint8)
    return shifted & np.uint8((1 << bits) - 1)


def _packed(fields: Bytes, bits: int) -> Bytes:
    """Fields of so many bits, packed, the first in the lowest bits."""
    if bits == 8:
        return fields
    each = 8 // bits
    padded = np.zeros(-(-len(fields) // each) * each, np.uint8)
    padded[: len(fields)] = fields
    four = padded.reshape(-1, each) << (np.arange(each, dtype=np.uint8) * bits)
    out: Bytes = np.bitwise_or.reduce(four, axis=1).astype(np.uint8)
    return out


def _tables(tables: Sequence[Singles], levels: Bytes) -> tuple[Singles, Bytes, int]:
    """Tables of the levels that marks have, the marks' levels in them, and bits of a level."""
    used = np.zeros(256, bool)
    used[levels] = True
    number = np.cumsum(used) - 1
    count = max(int(used.sum()), 1)
    bits = next(each for each in (0, 1, 2, 4, 8) if count <= 1 << each)
    full = np.zeros((max(len(tables), 1), 256), np.float32)
    for row, table in zip(full, tables, strict=False):
        row[: len(table)] = table
    out = np.zeros((len(full), 1 << bits), np.float32)
    out[:, : int(used.sum())] = full[:, used]
    return out, number[levels].astype(np.uint8), bits


def _gaps(gaps: npt.NDArray[np.int64], most: int) -> Bytes:
    """Gaps of marks, one field each: `most` stands for so many zeros, and that the gap goes on."""
    out = np.full(len(gaps) + int((gaps // most).sum()), most, np.uint8)
    out[np.cumsum(gaps // most + 1) - 1] = gaps % most
    return out


def _index(at: npt.NDArray[np.int64], rows: int, width: int, block: int, most: int) -> npt.NDArray[np.int64]:
    """See `PackedRows.index`."""
    starts = np.arange(0, max(rows, 1), block, dtype=np.int64) * width
    marks = np.searchsorted(at, starts)
    ends = np.cumsum((np.diff(at, prepend=-1) - 1) // most + 1) if len(at) else np.zeros(0, np.int64)
    before = np.maximum(marks - 1, 0)
    some = marks > 0
    gap, place = np.zeros_like(starts), np.zeros_like(starts)
    gap[some], place[some] = ends[before[some]], at[before[some]] + 1
    return np.ascontiguousarray(np.stack([gap, marks, place], axis=1))


def _spared(data: Bytes) -> Bytes:
    return np.concatenate([data, np.zeros(_SPARE, np.uint8)])


def unpacked(packed: Bytes, bits: int, n: int) -> Bytes:
    """n indices, one a byte (8 bits) or two (4), as one a byte."""
    return packed[:n] if bits == 8 else NIBBLES[packed].astype(np.uint8).reshape(-1)[:n]
