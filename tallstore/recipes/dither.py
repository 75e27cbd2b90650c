"""Numbers that look random and are not: a hash of a parameter's place, the same on every machine and in any order.

With u uniform in [0, 1), a threshold a + u·b marks a magnitude x with probability (x − a)/b, clipped to 0 and 1. What
is kept is then right on the average for every parameter by itself, and not for the tensor alone, so that the errors of
a matrix product's terms cancel (dither; Schuchman 1964). Decoders know it too, where what was drawn is coded given it:
see `kernels.known_dither`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from tallstore.kernels.place_hash import DRAWN, drawn_at, first_of

__all__ = ["seed_of", "uniform", "uniform_at"]


def seed_of(task: int, tensor: str) -> int:
    """A seed of 32 bits for one task's tensor."""
    return int(xxhash.xxh32_intdigest(tensor.encode(), seed=task))


def uniform(start: int, n: int, seed: int) -> npt.NDArray[np.float32]:
    """Numbers for elements [start, start + n) of a tensor: multiples of 2^-24 in [0, 1), shape (n,)."""
    out = np.empty(n, np.float32)
    at = 0
    while at < n:
        run = min(n - at, (1 << 32) - (start + at) % (1 << 32))
        out[at : at + run] = uniform_at(np.arange(run, dtype=np.uint32), first_of(start + at, seed))
        at += run
    return out


def uniform_at(places: npt.NDArray[np.uint32], first: int) -> npt.NDArray[np.float32]:
    """The same of elements at places that are counted from one of which `first_of` is `first`."""
    drawn = drawn_at(places, first)
    numbers: npt.NDArray[np.float32] = np.multiply(drawn, np.float32(2.0**-DRAWN), dtype=np.float32, casting="unsafe")
    return numbers
