"""Lossless codec `drift`: steps on the lattice, of a task that starts from others rather than from the base.

As `lattice`, with one mode more, whose layout is that of mode 3. There the grade and the direction of an element's
prediction are told by its drift: how many steps the start is away from the base. Training goes on where it was going,
and what never moved mostly stays; so a later checkpoint is coded in fewer bits, and an earlier one, which lies between
its start and the base, in many fewer.
"""

from __future__ import annotations

from tallstore.codecs.base import Buffer, Bytes, Row
from tallstore.codecs.lattice import DRIFT, LatticeCodec, take_steps
from tallstore.kernels.lattice import LATTICES

__all__ = ["DriftCodec"]


class DriftCodec(LatticeCodec):
    """Spec: `spec/codecs/drift.md`."""

    id = "drift"
    needs_origin = True

    def encode(self, raw: Bytes, base: Bytes, dtype: str, row: Row = (0, 0), origin: Bytes | None = None) -> bytes:
        """Whichever mode is the smallest, as far as samples and counts tell."""
        return self._encode(raw, base, dtype, row, origin)

    def decode(self, data: Buffer, out: Bytes, dtype: str, origin: Bytes | None = None) -> None:
        """By the first byte."""
        view = memoryview(data).cast("B")
        if len(view) and view[0] == DRIFT and dtype in LATTICES and origin is not None:
            take_steps(LATTICES[dtype], out, view, origin)
        else:
            super().decode(data, out, dtype)
