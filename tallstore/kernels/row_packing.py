"""Packing of what a task adds to a tensor: its levels, chunk by chunk, in the form that takes the fewest bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tallstore.kernels.packed_rows import TILE_ROWS, PackedRows, RareLevels, SharedVector
from tallstore.kernels.pairs import NIBBLES, Singles
from tallstore.kernels.reference import Bytes

__all__ = ["LevelChunk", "pack_rows", "unpacked"]

_SPARE = 16
"""Bytes of zero behind packed ones: kernels load so many at once."""
_BLOCK = 4096
"""Marks between two entries of the index, about: it takes a tenth of a bit a mark."""
_GAP_BITS = range(3, 13)
"""Of fields of gaps."""
_LONG = 1 << 13
"""Gaps from which on they are counted one by one."""
_ALONE = 1 << 62
"""Elements a chunk where all chunks have one table."""


@dataclass(frozen=True)
class LevelChunk:
    """One chunk's elements as levels."""

    codes: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """Shape (n,): an index into the table for each element."""
    table: Singles
    """float32, shape (K,): K is 3 for signed symbols, 2 for binary ones, up to 256 else; of steps up to 65536."""


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
    if vector is None and len(tables) > 1 and all(np.array_equal(each, tables[0]) for each in tables):
        tables, chunk = tables[:1], _ALONE
    own = np.concatenate(levels) if levels else np.zeros(0, np.uint8)
    chosen = _levels(tables, own, steps=steps)
    values, packed, bits, rare = chosen.tables, chosen.packed, chosen.bits, chosen.rare
    marked = np.concatenate(flags).reshape(rows, width) if flags else np.zeros((rows, width), bool)
    marks, held = len(own), np.flatnonzero(marked.any(1)).astype(np.int32)
    numbers: npt.NDArray[np.int32] | None = None
    gaps = _gaps_of(marked)
    gap_bits, gap_bytes = _gap_bits(gaps)
    sizes = {"gaps": gap_bytes, "bitmap": -(-rows * width // 8)}
    if len(held) < rows:
        fewer = _gaps_of(marked[held])
        fewer_bits, fewer_bytes = _gap_bits(fewer)
        more = 4 * (len(held) + -(-rows // TILE_ROWS))
        less = {"gaps": fewer_bytes + more, "bitmap": -(-len(held) * width // 8) + more}
        form_without = form if form in less else min(less, key=less.__getitem__)
        if less[form_without] < min(sizes.values() if form is None else [sizes.get(form, 0)]):
            numbers, marked, gaps, gap_bits, sizes = held, marked[held], fewer, fewer_bits, less
    code_bits = next((each for each in (1, 2, 4, 8) if max(map(len, tables), default=1) <= 1 << each), None)
    if code_bits is not None:
        sizes["codes"] = -(-rows * width * code_bits // 8) - chosen.nbytes
    form = form or min(sizes, key=sizes.__getitem__)
    field_count = 0
    if form == "codes":
        assert code_bits is not None
        values = np.zeros((max(len(tables), 1), 1 << code_bits), np.float32)
        for row, table in zip(values, tables, strict=False):
            row[: len(table)] = table
        numbers, bits, packed, rare = None, code_bits, np.zeros(0, np.uint8), None
        places = _packed(np.concatenate(every) if every else own, code_bits)
    elif form == "bitmap":
        places = np.packbits(marked.reshape(-1), bitorder="little")
    else:
        fields = _fields_of_gaps(gaps, (1 << gap_bits) - 1)
        field_count, places = len(fields), _packed(fields, gap_bits)
    count = rows if numbers is None else len(numbers)
    block = TILE_ROWS * max(1, _BLOCK * count // max(marks * TILE_ROWS, 1))
    tiles = None
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
        marks=marks,
        steps=steps,
        block=block,
        index=_index(marked, count, block, (1 << gap_bits) - 1 if form == "gaps" else 1 << 62, rare, chosen.at),
        gaps=field_count,
        gap_bits=gap_bits,
        numbers=numbers,
        tiles=tiles,
        rare=None if rare is None else replace(rare, fields=_spared(rare.fields)),
        vector=vector,
    )


def _packed(fields: npt.NDArray[Any], bits: int) -> Bytes:
    """Fields of so many bits, packed, the first in the lowest bits."""
    if bits == 8:
        return fields.astype(np.uint8, copy=False)
    if bits < 8 and not 8 % bits:
        each = 8 // bits
        padded = np.zeros(-(-len(fields) // each) * each, np.uint8)
        padded[: len(fields)] = fields
        together = padded.reshape(-1, each) << (np.arange(each, dtype=np.uint8) * bits)
        out: Bytes = np.bitwise_or.reduce(together, axis=1).astype(np.uint8)
        return out
    apart = fields.astype("<u2").view(np.uint8).reshape(-1, 2)
    return np.packbits(np.unpackbits(apart, axis=1, bitorder="little")[:, :bits].reshape(-1), bitorder="little")


class _Levels(NamedTuple):
    """What marks' levels are packed as: see `PackedRows`."""

    tables: Singles
    packed: Bytes
    bits: int
    rare: RareLevels | None = None
    at: npt.NDArray[np.int64] = np.zeros(0, np.int64)
    """Marks with rare levels."""

    @property
    def nbytes(self) -> int:
        """Of the marks' own."""
        return len(self.packed) + (0 if self.rare is None else len(self.rare.fields))


def _levels(tables: Sequence[Singles], levels: npt.NDArray[Any], *, steps: bool) -> _Levels:
    """Pack levels, an index into each chunk's table for every mark; the commonest in as many bits as pays."""
    size = max(map(len, tables), default=1)
    often = np.bincount(levels, minlength=size)
    count = max(int(np.count_nonzero(often)), 1)
    whole = next((each for each in (0, 1, 2, 4, 8) if count <= 1 << each), 16)
    if steps and len(tables) == 1 and (whole == 16 or len(levels) < 4 << whole):
        direct = tables[0][levels].astype(np.int32).astype("<i2")
        return _Levels(np.zeros((1, 1), np.float32), direct.view(np.uint8), 16)
    assert whole < 16
    table_bits = (count - 1).bit_length()
    order = np.argsort(-often, kind="stable")[:count]
    full = np.zeros((max(len(tables), 1), size), np.float32)
    for row, table in zip(full, tables, strict=False):
        row[: len(table)] = table
    out = np.zeros((len(full), 1 << table_bits), np.float32)
    out[:, :count] = full[:, order]
    number = np.zeros(size, np.uint8)
    number[order] = np.arange(count)
    own = number[levels]
    best = _Levels(out, _packed(own, whole) if whole else np.zeros(0, np.uint8), whole)
    for bits in (each for each in (0, 1, 2, 4) if each < whole):
        at = np.flatnonzero(own >> bits)
        if bits * len(own) // 8 + len(at) * table_bits // 8 >= best.nbytes:
            continue
        gaps = np.diff(at, prepend=-1) - 1
        gap_bits, taken = _gap_bits(gaps, table_bits)
        if -(-bits * len(own) // 8) + taken < best.nbytes:
            fields = _fields_of_gaps(gaps, (1 << gap_bits) - 1)
            fields[np.cumsum(gaps // ((1 << gap_bits) - 1) + 1) - 1] |= own[at].astype(np.uint16) << gap_bits
            rare = RareLevels(fields=_packed(fields, gap_bits + table_bits), count=len(fields), gap_bits=gap_bits)
            packed = _packed(own & ((1 << bits) - 1), bits) if bits else np.zeros(0, np.uint8)
            best = _Levels(out, packed, bits, rare, at)
    return best


def _gaps_of(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The zeros before each mark."""
    return np.diff(np.flatnonzero(marked), prepend=-1) - 1


def _gap_bits(gaps: npt.NDArray[np.int64], beside: int = 0) -> tuple[int, int]:
    """Bits of gaps whose fields, with so many other bits in each, take the fewest bytes, and how many these are."""
    often = np.bincount(np.minimum(gaps, _LONG), minlength=_LONG + 1)[:_LONG]
    lengths, long = np.arange(_LONG), gaps[gaps >= _LONG]
    fields = {
        bits: len(gaps) + int(often @ (lengths // ((1 << bits) - 1))) + int((long // ((1 << bits) - 1)).sum())
        for bits in _GAP_BITS
        if bits + beside <= _GAP_BITS[-1]
    }
    best = min(fields, key=lambda bits: (bits + beside) * fields[bits])
    return best, -(-(best + beside) * fields[best] // 8)


def _fields_of_gaps(gaps: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.uint16]:
    """Gaps of marks, one field each: `most` stands for so many zeros, and that the gap goes on."""
    out = np.full(len(gaps) + int((gaps // most).sum()), most, np.uint16)
    out[np.cumsum(gaps // most + 1) - 1] = gaps % most
    return out


def _index(
    marked: npt.NDArray[np.bool_],
    rows: int,
    block: int,
    most: int,
    rare: RareLevels | None,
    rare_marks: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """See `PackedRows.index`."""
    at, width = np.flatnonzero(marked), marked.shape[1]
    starts = np.arange(0, max(rows, 1), block, dtype=np.int64) * width
    marks = np.searchsorted(at, starts)
    gap, place = _behind(at, marks, most)
    field, common = _behind(rare_marks, np.searchsorted(rare_marks, marks), (1 << rare.gap_bits) - 1 if rare else 1)
    return np.ascontiguousarray(np.stack([gap, marks, place, field, common], axis=1))


def _behind(
    at: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64], most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of the first so many of ascending places: fields of their gaps, and the place behind the last of them."""
    ends = np.concatenate([[0], np.cumsum((np.diff(at, prepend=-1) - 1) // most + 1)])
    return ends[numbers], np.concatenate([[0], at + 1])[numbers]


def _spared(data: Bytes) -> Bytes:
    return np.concatenate([data, np.zeros(_SPARE, np.uint8)])


def unpacked(packed: Bytes, bits: int, n: int) -> Bytes:
    """n indices, one a byte (8 bits) or two (4), as one a byte."""
    return packed[:n] if bits == 8 else NIBBLES[packed].astype(np.uint8).reshape(-1)[:n]
