"""A tensor of kind `sampled` as it is kept in memory to switch by: a product, and levels that are added after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tallstore.archive.resident import PackedTensor
from tallstore.archive.resident_product import ResidentProduct
from tallstore.codecs.base import IndexedValues
from tallstore.codecs.codebook import pack_indices
from tallstore.codecs.dare import Apart

__all__ = ["packed_apart"]

_MOST = 255
"""Different multiples of a chunk, other than 0, that indices of 8 bits tell apart."""


def packed_apart(chunks: Sequence[Apart], chunk: int) -> PackedTensor | None:
    """Chunks of so many elements, the last perhaps of fewer; None where one has too many different multiples."""
    levels = []
    for each in chunks:
        own = _levels_of(each)
        if own is None:
            return None
        levels.append(own)
    packed = PackedTensor.of_levels(levels, [len(each.multiples) for each in chunks], chunk)
    return replace(packed, product=ResidentProduct.of([each.added for each in chunks], chunk))


def _levels_of(apart: Apart) -> IndexedValues | None:
    """Multiples as indices into what they change an element by; None where there are too many different ones.

    The first index is that of elements that stay as they are: −0 is added to them, which changes none.
    """
    words, there = apart.multiples.view(np.uint16), np.zeros(1 << 16, bool)
    there[words] = True
    there[0] = False  # has the first index
    some = np.flatnonzero(there)
    if len(some) > _MOST:
        return None
    order = np.zeros(len(there), np.uint8)
    order[some] = np.arange(1, len(some) + 1)
    indices, multiples = order[words], some.astype(np.uint16).view(np.int16)
    with np.errstate(over="ignore"):
        table = np.concatenate([np.full(1, -0.0, np.float32), multiples.astype(np.float32) * apart.width])
    bits = 4 if len(table) <= 16 else 8
    packed = indices if bits == 8 else pack_indices(indices, 4)
    return IndexedValues(table, packed, bits)
