"""Values as 4-bit indices into a table, looked up two at a time."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from tallstore.kernels.reference import Bytes

__all__ = ["NIBBLES", "Pairs", "Singles"]

Singles = npt.NDArray[np.float32]
NIBBLES = np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1)
"""Shape (256, 2): the 4-bit indices of a byte."""


class Pairs:
    """A chunk's values: looked up where they are used, a run at a time (the native kernels), or whole."""

    def __init__(self, packed: Bytes, table: Singles) -> None:
        """Of a chunk.

        Args:
            packed: indices below K, two a byte, the first in the low half.
            table: float32, shape (K,), K at most 16.
        """
        full = np.zeros(16, np.float32)
        full[: len(table)] = table
        self.packed, self.table = packed, full

    @cached_property
    def values(self) -> Singles:
        """As many as there are indices: perhaps one more than were meant."""
        two: npt.NDArray[np.uint64] = self.table[NIBBLES].view(np.uint64)[:, 0]
        return two[self.packed].view(np.float32)
