"""Drop and rescale on the lattice of numbers of a type of few bits: the reference.

DARE (L. Yu et al. 2023, arXiv 2311.03099) keeps a share p of a task's changes, drawn at random, and takes what it kept
1/p times. Here a hash of an element's place draws, so that which ones were kept costs nothing; the share depends on the
exponent of the base's element, as the size of a change and its price do; and 1/p is a whole number, drawn by the same
hash between the two that are nearest: changes of one unit in the last place, which most are, come back as whole units
and are right on the average. A mean of many elements that a matrix product takes is right with little noise.

The native kernels (`native/src/dare.c`) do the same, bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.kernels.conversion import from_bf16, to_bf16
from tallstore.kernels.lattice import Bytes, Lattice, Words
from tallstore.kernels.place_hash import DRAWN, drawn_at

__all__ = ["NOTHING", "TYPES", "KeptElements", "as_float", "rescale", "select", "share_of", "thresholds"]

TYPES = ("BF16", "F16")
"""Element types that have a lattice of few bits and float32 arithmetic that is exact enough on it."""
_OCTAVE = tuple(round(2 ** (DRAWN - step / 8)) for step in range(8))
"""2^24 · 2^(−step/8), rounded."""
_NAN = {"BF16": np.uint16(0x7FC0), "F16": np.uint16(0x7E00)}
NOTHING = 8 * DRAWN
"""The rate from which on nothing is kept."""


class KeptElements(NamedTuple):
    """The elements of a chunk that were kept."""

    places: npt.NDArray[np.uint32]
    """Ascending: shape (K,)."""
    times: npt.NDArray[np.uint32]
    """How often each one's change is taken: shape (K,), at least 1."""


def thresholds(rates: Bytes) -> npt.NDArray[np.uint32]:
    """Of rates, which stand for shares of 2^(−rate/8), those shares times 2^24: 0 from `NOTHING` on."""
    octave = np.array(_OCTAVE, np.uint32)[rates & 7] >> (rates >> 3)
    kept: npt.NDArray[np.uint32] = np.where(rates < NOTHING, octave, 0).astype(np.uint32)
    return kept


def share_of(rates: Bytes) -> npt.NDArray[np.float64]:
    """The same as shares."""
    return thresholds(rates) / float(1 << DRAWN)


def select(lattice: Lattice, base: Words, low: int, first: int, rates: Bytes) -> KeptElements:
    """Which elements are kept, and how often each is taken.

    Args:
        lattice: of the type.
        base: the base's elements as words, shape (n,).
        low: the exponent of level 0.
        first: what is mixed for the first element: see `place_hash.first_of`.
        rates: of each level, shape (LEVELS,).
    """
    below = thresholds(rates)
    drawn = drawn_at(np.arange(len(base), dtype=np.uint32), first)
    share = below[lattice.levels(base, low)]
    places = np.flatnonzero(drawn < share)
    share, drawn = share[places], drawn[places]
    times, rest = np.divmod(np.uint32(1 << DRAWN), share)
    return KeptElements(places.astype(np.uint32), times + (drawn < rest))


def rescale(dtype: str, words: Words, kept: KeptElements, after: Words) -> None:
    """Turn the base's elements into the task's, in place.

    Where the change is taken once, or is none, an element is what `after` has. Else it is
    base + times · (after − base), each operation rounded to float32, and the sum to the type, ties to even. A NaN is
    the quiet one without a sign.

    Args:
        dtype: one of `TYPES`.
        words: the base's elements, shape (n,).
        kept: see there.
        after: the task's elements at these places, shape (K,).
    """
    base = words[kept.places]
    start, stop = as_float(base, dtype), as_float(after, dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        moved = start + kept.times.astype(np.float32) * (stop - start)
        rounded = to_bf16(moved) if dtype == "BF16" else moved.astype("<f2").view("<u2")
    rounded = np.where(np.isnan(moved), _NAN[dtype], rounded)
    words[kept.places] = np.where((kept.times == 1) | (base == after), after, rounded)


def as_float(words: Words, dtype: str) -> npt.NDArray[np.float32]:
    """The numbers of words."""
    return from_bf16(words) if dtype == "BF16" else words.view("<f2").astype(np.float32)
