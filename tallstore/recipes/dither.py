"""Numbers that look random and are not: a hash of a parameter's place, the same on every machine and in any order.

With u uniform in [0, 1), a threshold a + u·b marks a magnitude x with probability (x − a)/b, clipped to 0 and 1. What
is kept is then right on the average for every parameter by itself, and not for the tensor alone, so that the errors of
a matrix product's terms cancel (dither; Schuchman 1964). Only the encoder needs to know.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["seed_of", "uniform", "uniform_at", "unmixed"]

_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
"""Shifts and factors of a mixing function of 32 bits with little bias (Wellons 2018, "lowbias32")."""
_GOLDEN = 0x9E3779B1


def seed_of(task: int, tensor: str) -> int:
    """A seed of 32 bits for one task's tensor."""
    return int(xxhash.xxh32_intdigest(tensor.encode(), seed=task))


def unmixed(place: int, seed: int) -> int:
    """What is mixed for a place: it counts up by one from place to place, modulo 2^32, as far as 2^32 divides none."""
    high, low = divmod(place, 1 << 32)
    return (low + (seed ^ (high * 0x85EBCA6B & 0xFFFFFFFF)) * _GOLDEN) & 0xFFFFFFFF


def uniform(start: int, n: int, seed: int) -> npt.NDArray[np.float32]:
    """Numbers for elements [start, start + n) of a tensor: multiples of 2^-24 in [0, 1), shape (n,).

    x = (place + seed · 0x9E3779B1) mod 2^32, mixed. Elements 2^32 places apart differ, since the upper half of the
    place joins the seed.
    """
    out = np.empty(n, np.float32)
    at = 0
    while at < n:
        run = min(n - at, (1 << 32) - (start + at) % (1 << 32))
        out[at : at + run] = uniform_at(np.arange(run, dtype=np.uint32), unmixed(start + at, seed))
        at += run
    return out


def uniform_at(places: npt.NDArray[np.uint32], first: int) -> npt.NDArray[np.float32]:
    """The same of elements at places that are counted from one whose unmixed place is `first`."""
    x = places + np.uint32(first)
    spare = np.empty_like(x)
    for shift, factor in _ROUNDS:
        x ^= np.right_shift(x, shift, out=spare)
        x *= np.uint32(factor)
    x ^= np.right_shift(x, 16, out=spare)
    x >>= 8
    numbers: npt.NDArray[np.float32] = np.multiply(x, np.float32(2.0**-24), dtype=np.float32, casting="unsafe")
    return numbers
