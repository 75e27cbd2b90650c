"""What chunks of steps have in common, of codecs `lattice` and `drift`: the head, and where its parts lie.

u8 mode | u8 bits | u8 log2 of the lanes | u8 low | u32 width | u32 first | u32 bytes of the model | u32 words |
u32 bytes of open bits | the model in a zstd frame | the lanes' states | words | open bits | what else a mode has
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tallstore.codecs import zstd
from tallstore.codecs.base import Bytes
from tallstore.errors import FormatError
from tallstore.kernels.lattice import MOST_BITS, Lattice, LatticeSymbols

__all__ = ["CodedSymbols", "Head", "checked_weights", "coded_chunk", "read_head"]

_HEAD = struct.Struct("<BBBBIIIII")
_BITS = range(8, MOST_BITS + 1)
_LANES = range(3, 9)
_WEIGHTS = 64


class CodedSymbols(Protocol):
    """Coded symbols: see `LatticeSymbols`."""

    @property
    def states(self) -> npt.NDArray[np.uint32]:
        """Of the lanes."""

    @property
    def words(self) -> npt.NDArray[np.uint16]:
        """The stream that they share."""

    @property
    def extra(self) -> Bytes:
        """Open bits."""


class Head(NamedTuple):
    """What a chunk begins with, in range."""

    mode: int
    bits: int
    log_lanes: int
    low: int
    width: int
    first: int
    model: int
    """Bytes of the frame."""
    words: int
    extra: int
    """Bytes of open bits."""

    def frame(self, view: memoryview) -> memoryview:
        """What the model is told by."""
        return view[_HEAD.size : _HEAD.size + self.model]

    def parts(self, view: memoryview, after: int | None) -> tuple[LatticeSymbols, memoryview]:
        """Coded symbols, and what lies behind them; `after`: of which so many bytes there must be."""
        ends = np.cumsum([_HEAD.size + self.model, 4 << self.log_lanes, 2 * self.words, self.extra]).tolist()
        if ends[-1] > len(view) or (after is not None and ends[-1] + after != len(view)):
            raise FormatError(f"coded steps do not fit {len(view)} bytes")
        states, words, extra = (view[a:b] for a, b in pairwise(ends))
        symbols = LatticeSymbols(np.frombuffer(states, "<u4"), np.frombuffer(words, "<u2"), np.frombuffer(extra, "u1"))
        return symbols, view[ends[-1] :]


def read_head(lattice: Lattice, view: memoryview) -> Head:
    """The head of a chunk, everything in range."""
    if len(view) < _HEAD.size:
        raise FormatError("coded steps are cut off")
    head = Head(*_HEAD.unpack_from(view))
    if not (0 < head.first <= head.width or head.first == head.width == 0):
        raise FormatError(f"segments of {head.width} elements cannot begin with one of {head.first}")
    if head.bits not in _BITS or head.log_lanes not in _LANES or head.low > lattice.mask:
        raise FormatError(
            f"steps of {head.bits} bits in 2^{head.log_lanes} lanes from exponent {head.low} on: out of range"
        )
    return head


def coded_chunk(mode: int, told: tuple[int, int, int, int], model: bytes, steps: CodedSymbols) -> bytes:
    """A chunk, up to its open bits. `told`: bits, low, width, first; `model`: not in its frame yet."""
    (bits, low, width, first), frame = told, zstd.compress(model)
    counts = len(frame), len(steps.words), len(steps.extra)
    head = _HEAD.pack(mode, bits, len(steps.states).bit_length() - 1, low, width, first, *counts)
    parts = (steps.states.astype("<u4"), steps.words.astype("<u2"), steps.extra)
    return head + frame + b"".join(part.tobytes() for part in parts)


def checked_weights(weights: Bytes, table: Bytes) -> Bytes:
    """The weights of a model, shape (tables, symbols), and its contexts' tables: everything in range."""
    if int(table.max()) >= len(weights) or int(weights.max()) >= _WEIGHTS:
        raise FormatError("a model of steps names a table or a weight that there is not")
    if not weights.any(1).all():
        raise FormatError("a table of steps has no symbols")
    return weights
