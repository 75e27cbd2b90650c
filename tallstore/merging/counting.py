"""How many of T packed bit rows are on at each place: counters kept bit-sliced, one plane of bits per binary digit.

Adding a row to the counters is a ripple of XOR and AND over whole words, so 64 parameters are counted at once and
nothing is unpacked: 20 rows of 88 M bits take 0.1 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from bitarray import bitarray

__all__ = ["BLOCK", "Bytes", "Words", "add_rows", "as_words", "at_least", "count_on", "histogram"]

Bytes = npt.NDArray[np.uint8]
"""Packed bits, little-endian in each byte, zeros behind the last."""
Words = npt.NDArray[np.uint64]

BLOCK = 1 << 16
"""Bytes of a row to work on at a time, so that all rows stay in the cache."""
_WORD = 8


def as_words(rows: Sequence[Bytes], size: int) -> Words:
    """Copy packed rows of `size` bytes into whole 64-bit words, filled with zeros: shape (T, ceil(size / 8))."""
    words = np.zeros((len(rows), -(-size // _WORD)), np.uint64)
    for target, row in zip(words.view(np.uint8), rows, strict=True):
        target[:size] = row
    return words


def add_rows(rows: Words) -> list[Words]:
    """The planes of the counters, least digit first; as many as the number of rows has binary digits."""
    planes: list[Words] = []
    for count, row in enumerate(rows, start=1):
        carry = row
        for digit, plane in enumerate(planes):
            planes[digit], carry = plane ^ carry, plane & carry
        if count.bit_length() > len(planes):
            planes.append(carry)
    return planes


def at_least(planes: Sequence[Words], k: int) -> Words:
    """Where the count is k or more, for k ≥ 1. Compares digit by digit from the least."""
    result = np.full_like(planes[0], ~np.uint64(0))
    for digit, plane in enumerate(planes):
        result = plane & result if k >> digit & 1 else plane | result
    # A k with more digits than the counters have is above every count.
    return np.zeros_like(result) if k >> len(planes) else result


def count_on(words: Words) -> int:
    """The number of bits that are on."""
    return bitarray(buffer=words.view(np.uint8), endian="little").count()


def histogram(planes: Sequence[Words], n: int, n_rows: int) -> npt.NDArray[np.int64]:
    """How many of the n places have each count: shape (n_rows + 1,)."""
    counts = np.zeros(n_rows + 1, np.int64)
    for count, where in _split(planes, n_rows):
        counts[count] = count_on(where)
    # By difference, because the bits that fill the last word are 0 too.
    counts[0] = n - counts[1:].sum()
    return counts


def _split(
    planes: Sequence[Words], most: int, above: int = 0, where: Words | None = None
) -> Iterator[tuple[int, Words]]:
    """Halve the places by one digit after the other, the highest first: yields each count but 0, and where it is."""
    if not planes:
        if above and where is not None:
            yield above, where
        return
    *rest, plane = planes
    on = plane if where is None else where & plane
    off = ~plane if where is None else where ^ on
    higher = above | 1 << len(rest)
    if higher <= most:
        yield from _split(rest, most, higher, on)
    if rest or above:
        yield from _split(rest, most, above, off)
