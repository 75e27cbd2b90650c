"""Where a chunk's elements come from and go to, for kernels that read, check and change it in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.kernels.reference import Bytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ChunkMemory", "FillSource", "Target", "part_of"]


class FillSource(ctypes.Structure):
    """`ts_source` of `native/src/decode.c`: a file, or planes of rotated words, least significant first."""

    _fields_ = (
        ("item", ctypes.c_int32),  # bytes of a word in planes; 0: a file
        ("handle", ctypes.c_int32),  # the file's descriptor
        ("at", ctypes.c_int64),  # the file's byte that is the chunk's first
        ("planes", ctypes.c_void_p * 4),
        ("hash", ctypes.c_uint64),  # XXH3-64 of all that came out of the file, once it was read
    )
    item: int
    hash: int
    held: Sequence[Bytes] = ()
    """The planes, which live as long as the source."""

    @property
    def digest(self) -> bytes | None:
        """The xxh3-64 of all that came out of the file, most significant byte first; of planes None."""
        return None if self.item else self.hash.to_bytes(8, "big")


class ChunkMemory(NamedTuple):
    """A chunk's place in memory."""

    address: int
    nbytes: int
    n: int
    """Elements."""
    memory: Any
    """Whose memory it is: kept as long as the part is."""


class Target:
    """A flat CPU tensor that chunks are filled into."""

    def __init__(self, out: Tensor) -> None:
        """Of a contiguous tensor."""
        self._out, self._address, self._item, self._n = out, out.data_ptr(), out.element_size(), out.numel()

    def part(self, a: int, b: int) -> ChunkMemory:
        """Elements [a, b), as far as there are so many."""
        n = max(0, min(b, self._n) - a)
        return ChunkMemory(self._address + a * self._item, n * self._item, n, self._out)


def part_of(memory: npt.NDArray[np.uint8]) -> ChunkMemory:
    """Contiguous bytes."""
    return ChunkMemory(memory.ctypes.data, len(memory), len(memory), memory)
