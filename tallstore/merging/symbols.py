"""Masks of kind `signed` as masks of one bit: which parameters a task uses, whatever the sign."""

from __future__ import annotations

import numpy as np

from tallstore.merging.counting import Bytes
from tallstore.recipes.base import Kind

__all__ = ["used_bits"]


def _fold(byte: int) -> int:
    """Four 2-bit symbols to four bits."""
    return sum(1 << place for place in range(4) if byte >> 2 * place & 3)


_FOLDED = np.array([_fold(byte) for byte in range(256)], np.uint8)


def used_bits(packed: Bytes, kind: Kind) -> Bytes:
    """One bit a parameter, on where the packed symbol is not 0. A binary mask is returned as it is."""
    if kind == "binary":
        return packed
    even = np.zeros(-(-len(packed) // 2) * 2, np.uint8)
    even[: len(packed)] = _FOLDED[packed]
    return np.bitwise_or(even[0::2], np.left_shift(even[1::2], 4, dtype=np.uint8))
