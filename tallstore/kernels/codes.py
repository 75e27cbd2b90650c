"""The reference of what is done to codes of masks, codebooks and byte planes while they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels import reference
from tallstore.kernels.reference import Bytes

__all__ = ["gaps_to_packed", "join", "spread", "sum_gaps"]

_MORE = 255


def sum_gaps(gaps: Bytes) -> tuple[int, int]:
    """What gaps add up to, and how many of them end (255 is a continuation byte)."""
    return int(gaps.sum(dtype=np.int64)), int(np.count_nonzero(gaps != _MORE))


def gaps_to_packed(gaps: Bytes, signs: Bytes, kind: str, n: int) -> Bytes:
    """n packed symbols from the gaps between marks, all of them within n, and their packed signs."""
    ends = gaps != _MORE
    steps = gaps.astype(np.int32)
    steps += ends
    places = np.cumsum(steps, dtype=np.int32)[ends] - 1
    symbols = np.zeros(n, np.uint8)
    symbols[places] = 1
    if kind == "signed":
        symbols[places] += np.unpackbits(signs, count=len(places), bitorder="little")
    return reference.pack(symbols, kind)


def spread(on: Bytes, n: int, rest: Bytes, bits: int) -> Bytes:
    """Packed indices of n elements, from those of the elements that are not 0, less 1.

    Args:
        on: packed bits, one per element: which are not 0.
        n: elements.
        rest: packed indices, `bits` each, one for every element that is on.
        bits: 4 or 8.
    """
    marked = np.unpackbits(on, count=n, bitorder="little").view(bool)
    indices = np.zeros(n + n % 2, np.uint8)
    each = rest if bits == 8 else np.stack([rest & 15, rest >> 4], axis=1).reshape(-1)
    indices[:n][marked] = each[: int(np.count_nonzero(marked))] + 1
    if bits == 8:
        return indices[:n]
    packed: Bytes = indices[0::2] | (indices[1::2] << 4).astype(np.uint8)
    return packed


def join(words: npt.NDArray[Any], planes: Sequence[Bytes], *, rotated: bool) -> None:
    """Words from planes of their bytes, least significant first; `rotated`: rotated right by one bit then."""
    np.copyto(words, planes[-1])
    for plane in planes[-2::-1]:
        words <<= 8
        words |= plane
    if rotated:
        sign = words << (8 * words.itemsize - 1)
        words >>= 1
        words |= sign
