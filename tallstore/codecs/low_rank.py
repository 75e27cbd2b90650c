"""A product of two thin matrices as bytes: what begins a chunk of `dare` of mode 3, behind the mode.

    u8 rank | u32 width | u32 gone | f32 scale | shifts, u8 each | u32 a | u32 b | a bytes: rows | b bytes: columns

Numbers of a component, of rows or of columns, are steps of `lattice` in a context that four components share.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from tallstore.codecs.base import Buffer
from tallstore.codecs.lattice import LatticeCodec
from tallstore.errors import FormatError
from tallstore.kernels.lattice import LATTICES
from tallstore.kernels.low_rank import LARGEST, MOST_RANK, MOST_SHIFT, LowRank

__all__ = ["read_low_rank", "write_low_rank"]

_HEAD = struct.Struct("<BIIf")
_SIZES = struct.Struct("<II")
_LATTICE, _STEPS = LatticeCodec(), "BF16"
_SHARING = 4
"""Components that have a context together."""


def write_low_rank(of: LowRank) -> bytes:
    """The inverse of `read_low_rank`."""
    rows, columns = (_encode(each) for each in (of.rows, of.columns))
    head = _HEAD.pack(len(of.shifts), of.columns.shape[1], of.gone, of.scale)
    return head + of.shifts.tobytes() + _SIZES.pack(len(rows), len(columns)) + rows + columns


def read_low_rank(data: Buffer, n: int) -> tuple[LowRank, memoryview]:
    """What is added to n elements, and the bytes behind it."""
    view = memoryview(data).cast("B")
    rank, width, gone, scale = _HEAD.unpack_from(view) if len(view) >= _HEAD.size else (0, 0, 0, 0.0)
    begin = _HEAD.size + rank + _SIZES.size
    if not 0 < rank <= MOST_RANK or not gone < width or len(view) < begin:
        raise FormatError(f"a product of rank {rank}, from element {gone} of {width} on, is out of range, or cut off")
    height = -(-(gone + n) // width)
    if rank * (height + width) > n:
        raise FormatError(f"a product of rank {rank} has more numbers, of {height} rows and {width} columns, than {n}")
    if not (math.isfinite(scale) and scale > 0):
        raise FormatError(f"the scale of a product, {scale}, is not a number above 0")
    shifts = np.frombuffer(view[_HEAD.size : _HEAD.size + rank], np.uint8)
    if shifts.max() > MOST_SHIFT:
        raise FormatError(f"a component's shift, {shifts.max()}, is more than {MOST_SHIFT}")
    of_rows, of_columns = _SIZES.unpack_from(view, _HEAD.size + rank)
    ends = begin + of_rows, begin + of_rows + of_columns
    if ends[1] > len(view):
        raise FormatError("the numbers of a product are cut off")
    rows, columns = _decode(view[begin : ends[0]], rank, height), _decode(view[ends[0] : ends[1]], rank, width)
    return LowRank(np.float32(scale), shifts, rows, columns, gone), view[ends[1] :]


def _encode(numbers: npt.NDArray[np.int8]) -> bytes:
    rank, count = numbers.shape
    contexts = np.repeat(np.arange(rank, dtype=np.uint8) // np.uint8(_SHARING), count)
    largest = int(np.abs(numbers.astype(np.int16)).max())
    return _LATTICE.encode_numbers(numbers.reshape(-1), contexts, 1, largest)  # a context's exponent is one more


def _decode(view: memoryview, rank: int, count: int) -> npt.NDArray[np.int8]:
    """Shape (rank, count)."""
    lattice = LATTICES[_STEPS]
    before = np.repeat(np.arange(rank, dtype=np.uint16) // np.uint16(_SHARING) + np.uint16(1), count) << np.uint16(
        lattice.shift
    )
    after = before.copy()
    _LATTICE.decode(view, after.view(np.uint8), _STEPS)
    numbers = (lattice.turned(after) - before).view(np.int16)
    if (np.abs(numbers.astype(np.int32)) > LARGEST).any():
        raise FormatError(f"a number of a product is beyond {LARGEST}")
    small: npt.NDArray[np.int8] = numbers.astype(np.int8).reshape(rank, count)
    return small
