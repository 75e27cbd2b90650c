"""A hash of an element's place, which draws what looks random and is not: the same on every machine and in any order.

The mixing function is one of 32 bits with little bias (Wellons 2018, "lowbias32"); the upper 24 bits are what is drawn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["DRAWN", "drawn_at", "first_of"]

DRAWN = 24
"""Bits that are drawn."""
_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
"""Shifts and factors."""
_GOLDEN, _ODD = 0x9E3779B1, 0x85EBCA6B


def first_of(place: int, seed: int) -> int:
    """What is mixed for a place: it counts up by one from place to place, modulo 2^32, as far as 2^32 divides none.

    It is (place + seed · 0x9E3779B1) mod 2^32; elements 2^32 places apart differ, since the upper half of the place
    joins the seed.
    """
    high, low = divmod(place, 1 << 32)
    return (low + (seed ^ (high * _ODD & 0xFFFFFFFF)) * _GOLDEN) & 0xFFFFFFFF


def drawn_at(places: npt.NDArray[np.uint32], first: int) -> npt.NDArray[np.uint32]:
    """Numbers below 2^24 of elements at places that are counted from one of which `first_of` is `first`: same shape."""
    x = places + np.uint32(first)
    spare = np.empty_like(x)
    for shift, factor in _ROUNDS:
        x ^= np.right_shift(x, shift, out=spare)
        x *= np.uint32(factor)
    x ^= np.right_shift(x, 16, out=spare)
    x >>= 32 - DRAWN
    return x
