"""Lossless codec `lattice`: a task's elements as steps on the lattice of numbers that their type can hold.

u8 0: the base's elements
u8 1 | the differences as integers, zigzag, coded by `planes+zstd`
u8 2 | the task's own elements, coded by `planes+zstd`
"""

from __future__ import annotations

import numpy as np

from tallstore.codecs.base import Buffer, Bytes, LosslessCodec
from tallstore.codecs.planes import Planes
from tallstore.errors import FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels import cpu

_SAME, _DIFFERENCES, _WHOLE = 0, 1, 2
_WORDS = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}
"""Unsigned integers by bytes an element."""


class Lattice(LosslessCodec):
    """Spec: `spec/codecs/lattice.md`."""

    id = "lattice"
    _planes = Planes()

    def encode(self, raw: Bytes, base: Bytes, dtype: str) -> bytes:
        """Whichever is smaller."""
        if np.array_equal(raw, base):
            return bytes([_SAME])
        item = ITEM_BYTES[dtype]
        differences = self._planes.encode(cpu.difference(raw, base, item), _WORDS[item])
        whole = self._planes.encode(raw, dtype)
        if len(differences) < len(whole):
            return bytes([_DIFFERENCES]) + differences
        return bytes([_WHOLE]) + whole

    def decode(self, data: Buffer, out: Bytes, dtype: str) -> None:
        """By the first byte."""
        view = memoryview(data).cast("B")
        if not len(view) or view[0] > _WHOLE:
            raise FormatError("a chunk coded against the base is of an unknown mode, or cut off")
        if view[0] == _SAME:
            if len(view) != 1:
                raise FormatError("a chunk that is the base's is followed by something")
        elif view[0] == _WHOLE:
            self._planes.decode(view[1:], out, dtype)
        else:
            item = ITEM_BYTES[dtype]
            stored = np.empty(len(out), np.uint8)
            self._planes.decode(view[1:], stored, _WORDS[item])
            out[:] = cpu.undo_difference(stored, out, item)
