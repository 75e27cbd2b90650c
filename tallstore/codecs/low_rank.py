"""A product of two thin matrices as bytes: what begins a chunk of `dare` of mode 3, behind the mode.

    u8 rank | u32 width | u32 gone | f32 scale | shifts, u8 each | u32 a | u32 b | a bytes: rows | b bytes: columns

Numbers of a component, of rows or of columns, are steps of `lattice` in a context that four components share. Where b
is 0, columns are those that the tensor's first chunk tells.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.codecs.base import Buffer, Columns
from tallstore.codecs.lattice import LatticeCodec
from tallstore.errors import FormatError
from tallstore.kernels.lattice import LATTICES
from tallstore.kernels.low_rank import LARGEST, MOST_AN_ELEMENT, MOST_NUMBERS, MOST_RANK, MOST_SHIFT, LowRank

__all__ = ["read_columns", "read_low_rank", "write_low_rank"]

_HEAD = struct.Struct("<BIIf")
_SIZES = struct.Struct("<II")
_LATTICE, _STEPS = LatticeCodec(), "BF16"
_SHARING = 4
"""Components that have a context together."""


class _Head(NamedTuple):
    """What is said before the numbers, and where they are."""

    width: int
    gone: int
    scale: float
    shifts: npt.NDArray[np.uint8]
    rows: memoryview
    """As they are coded; likewise: """
    columns: memoryview
    rest: memoryview
    """What is behind them."""

    @property
    def rank(self) -> int:
        return len(self.shifts)


def write_low_rank(of: LowRank, *, with_columns: bool = True) -> bytes:
    """The inverse of `read_low_rank`; without columns, of a chunk that is not its tensor's first one."""
    rows, columns = _encode(of.rows), _encode(of.columns) if with_columns else b""
    head = _HEAD.pack(len(of.shifts), of.columns.shape[1], of.gone, of.scale)
    return head + of.shifts.tobytes() + _SIZES.pack(len(rows), len(columns)) + rows + columns


def read_low_rank(
    data: Buffer, n: int, columns: Callable[[], Columns | None] | None = None
) -> tuple[LowRank, memoryview]:
    """What is added to n elements, and the bytes behind it. `columns`: see `Given`."""
    head = _read_head(data)
    height = -(-(head.gone + n) // head.width)
    if head.rank * height > n:
        raise FormatError(f"a product of rank {head.rank} has more numbers of {height} rows than {n}")
    if head.rank * head.width > MOST_AN_ELEMENT * n:
        most = f"{MOST_AN_ELEMENT} for each of {n} elements"
        raise FormatError(f"a product of rank {head.rank} has more numbers of {head.width} columns than {most}")
    rows = _decode(head.rows, head.rank, height)
    along = _columns(head) if len(head.columns) else _told(head, columns)
    return LowRank(np.float32(head.scale), head.shifts, rows, along, head.gone), head.rest


def read_columns(data: Buffer) -> Columns | None:
    """Of what `write_low_rank` wrote, the columns, if there are any: shape (rank, width)."""
    head = _read_head(data)
    return _columns(head) if len(head.columns) else None


def _read_head(data: Buffer) -> _Head:
    view = memoryview(data).cast("B")
    rank, width, gone, scale = _HEAD.unpack_from(view) if len(view) >= _HEAD.size else (0, 0, 0, 0.0)
    begin = _HEAD.size + rank + _SIZES.size
    if not 0 < rank <= MOST_RANK or not gone < width or len(view) < begin:
        raise FormatError(f"a product of rank {rank}, from element {gone} of {width} on, is out of range, or cut off")
    if rank * width > MOST_NUMBERS:
        raise FormatError(f"a product of rank {rank} has more numbers of {width} columns than {MOST_NUMBERS}")
    if not (math.isfinite(scale) and scale > 0):
        raise FormatError(f"the scale of a product, {scale}, is not a number above 0")
    shifts = np.frombuffer(view[_HEAD.size : _HEAD.size + rank], np.uint8)
    if shifts.max() > MOST_SHIFT:
        raise FormatError(f"a component's shift, {shifts.max()}, is more than {MOST_SHIFT}")
    of_rows, of_columns = _SIZES.unpack_from(view, _HEAD.size + rank)
    ends = begin + of_rows, begin + of_rows + of_columns
    if ends[1] > len(view):
        raise FormatError("the numbers of a product are cut off")
    return _Head(width, gone, scale, shifts, view[begin : ends[0]], view[ends[0] : ends[1]], view[ends[1] :])


def _columns(head: _Head) -> Columns:
    return _decode(head.columns, head.rank, head.width)


def _told(head: _Head, columns: Callable[[], Columns | None] | None) -> Columns:
    """The first of the columns that the tensor's first chunk tells."""
    if columns is None:
        raise FormatError("a product of a tensor's first chunk has no columns")
    found = columns()
    if found is None:
        raise FormatError("the tensor's first chunk tells of no columns")
    if found.shape[1] != head.width or len(found) < head.rank:
        raise FormatError(
            f"a product of rank {head.rank} of {head.width} columns does not fit the tensor's first chunk, which tells "
            f"{len(found)} of {found.shape[1]}"
        )
    return found[: head.rank]


def _encode(numbers: npt.NDArray[np.int8]) -> bytes:
    rank, count = numbers.shape
    flat = np.ascontiguousarray(numbers).reshape(-1)
    contexts = np.repeat(np.arange(rank, dtype=np.uint8) // np.uint8(_SHARING), count)
    largest = int(np.abs(numbers.astype(np.int16)).max())
    return _LATTICE.encode_numbers(flat, contexts, 1, largest)  # a context's exponent is one more


def _decode(view: memoryview, rank: int, count: int) -> npt.NDArray[np.int8]:
    """Shape (rank, count)."""
    lattice = LATTICES[_STEPS]
    before = np.repeat(np.arange(rank, dtype=np.uint16) // np.uint16(_SHARING) + np.uint16(1), count) << np.uint16(
        lattice.shift
    )
    after = before.copy()
    _LATTICE.decode(view, after.view(np.uint8), _STEPS)
    numbers = (lattice.turned(after) - before).view(np.int16)
    if numbers.max(initial=0) > LARGEST or numbers.min(initial=0) < -LARGEST:
        raise FormatError(f"a number of a product is beyond {LARGEST}")
    small: npt.NDArray[np.int8] = numbers.astype(np.int8).reshape(rank, count)
    return small
