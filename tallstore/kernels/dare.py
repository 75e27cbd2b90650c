"""Drop, rescale and round on the lattice of numbers of a float type: the reference.

DARE (L. Yu et al. 2023, arXiv 2311.03099) keeps a share p of a task's changes, drawn at random, and takes what it
kept 1/p times. Here a hash of an element's place draws, so that which ones were kept costs nothing, and the share
depends on the exponent of the base's element, as the size of a change and its price do. Beside the noise of what is
dropped, that of rounding what is kept is small: a change is rounded to a multiple of a step, up or down by the same
hash, so that it is right on the average (dither: L. Roberts 1962). The decoder knows the hash too: given it, next to
nothing is left to tell of a change of about a step. An element's class is a sixteenth of what was drawn for it; level
and class give the context in which its multiple is coded.

The native kernels (`native/src/dare.c`) do the same, bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.kernels.conversion import from_bf16, to_bf16
from tallstore.kernels.lattice import LATTICES, LEVELS, Bytes, Lattice, Words
from tallstore.kernels.place_hash import DRAWN, drawn_at

__all__ = [
    "LEAST",
    "MOST",
    "MOST_CHANGE",
    "SHARES",
    "TYPES",
    "KeptElements",
    "Sampling",
    "apply",
    "as_float",
    "as_words",
    "class_factors",
    "multiples",
    "select",
    "starts",
    "steps",
    "thresholds",
    "units",
    "widened",
]

TYPES = ("F32", "BF16", "F16")
"""Element types that are computed with in float32."""
SHARES = 1 << 16
"""Shares are multiples of one by this, from one to all of them."""
MOST = 1 << 14
"""Multiples that are larger are not written."""
LEAST = 2.0**-100
"""Changes that are smaller are not rescaled: where a processor takes subnormal numbers for 0, they might be."""
MOST_CHANGE = {"F32": np.float32(3.4028235e38), "BF16": np.float32(3.3895314e38), "F16": np.float32(65504)}
"""The largest number of each type."""
_FLOATS = {"F32": "<f4", "F16": "<f2"}
"""Types that numpy has."""
_NAN = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}
"""What every NaN becomes."""
_BEHIND = LATTICES["BF16"].shift
"""Contexts are exponents of the elements that `lattice` is told to start from."""


class Sampling(NamedTuple):
    """How the elements of each level are drawn and rounded."""

    low: int
    """The exponent of level 0; the first and the last level have all that lie beyond."""
    shares: npt.NDArray[np.uint16]
    """One less than the share that is kept, by `SHARES`: shape (LEVELS,)."""
    widths: npt.NDArray[np.uint16]
    """What a multiple of 1 changes an element by, as a bfloat16: shape (LEVELS,)."""
    nearest: bool = False
    """Whether changes of a step and more are rounded to the nearest multiple, with half of the noise: where hardly two
    of them are equal, they are not wrong alike. Readers need not know."""


class KeptElements(NamedTuple):
    """The elements of a chunk that were kept."""

    places: npt.NDArray[np.uint32]
    """Ascending: shape (K,)."""
    tags: Bytes
    """Of each the level, plus 16 times the context: shape (K,)."""


def thresholds(shares: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
    """Below what an element is kept, by level."""
    return (shares.astype(np.uint32) + np.uint32(1)) << np.uint32(DRAWN - 16)


def class_factors(shares: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
    """What makes a class of the upper 16 bits that are drawn, by level."""
    return np.uint32(1 << 20) // (shares.astype(np.uint32) + np.uint32(1))


def steps(sampling: Sampling) -> npt.NDArray[np.float64]:
    """What changes are rounded to multiples of, by level: the width times the share."""
    share = (sampling.shares.astype(np.float64) + 1) / SHARES
    return from_bf16(sampling.widths).astype(np.float64) * share


def units(dtype: str, low: int) -> npt.NDArray[np.float64]:
    """A unit in the last place of each level, if its elements have its own exponent: shape (LEVELS,)."""
    lattice = LATTICES[dtype]
    exponents = np.clip(low + np.arange(LEVELS), 1, lattice.mask - 1)
    return np.ldexp(1.0, exponents - lattice.mask // 2 - lattice.shift)


def select(lattice: Lattice, base: Words, sampling: Sampling, contexts: Bytes, first: int) -> KeptElements:
    """Which elements are kept, and in what contexts.

    Args:
        lattice: of the type.
        base: the base's elements as words, shape (n,).
        sampling: see there.
        contexts: of each level, that of class 0, plus 16 times how far classes are shifted down; shape (LEVELS,).
        first: what is mixed for the first element: see `place_hash.first_of`.
    """
    drawn = drawn_at(np.arange(len(base), dtype=np.uint32), first)
    levels = lattice.levels(base, sampling.low)
    places = np.flatnonzero(drawn < thresholds(sampling.shares)[levels])
    drawn, levels = drawn[places], levels[places]
    classes = (drawn >> np.uint32(8)) * class_factors(sampling.shares)[levels] >> np.uint32(16)
    context = (contexts[levels] & 15) + (classes >> (contexts[levels] >> 4))
    return KeptElements(places.astype(np.uint32), (levels | context << 4).astype(np.uint8))


def starts(tags: Bytes) -> npt.NDArray[np.uint16]:
    """What `lattice` is to start from, of elements with these tags."""
    return ((tags >> 4).astype(np.uint16) + np.uint16(1)) << np.uint16(_BEHIND)


def multiples(
    dtype: str, words: Words, after: Words, kept: KeptElements, sampling: Sampling, first: int
) -> npt.NDArray[np.int16] | None:
    """What the changes of elements that are kept are rounded to; None where the arithmetic of it would not be safe.

    That is so where something is not finite, where a multiple or what is reached is too large, or a change too small:
    see `MOST`, `MOST_CHANGE` and `LEAST`. Shape (K,).

    Args:
        dtype: one of `TYPES`.
        words: the base's elements, shape (n,).
        after: the task's, shape (n,).
        kept: see there.
        sampling: see there.
        first: see `select`.
    """
    levels, base, own = kept.tags & 15, words[kept.places], after[kept.places]
    start, stop, width = as_float(base, dtype), as_float(own, dtype), from_bf16(sampling.widths)[levels]
    drawn = drawn_at(kept.places, first) / thresholds(sampling.shares)[levels]
    with np.errstate(all="ignore"):
        change = stop - start
        size = np.abs(change)
        exact = size.astype(np.float64) / steps(sampling)[levels]
        exact -= np.where(exact >= 1, 0.5, drawn) if sampling.nearest else drawn
        few = exact <= MOST
        times = np.ceil(np.maximum(np.where(few, exact, 0.0), 0.0)).astype(np.float32)
        reached = start + np.copysign(times, change) * width
        safe = few & ((base == own) | (size >= np.float32(LEAST)))
        safe &= (times == 0) | ((times * width >= np.float32(LEAST)) & (np.abs(reached) <= MOST_CHANGE[dtype]))
    return np.copysign(times, change).astype(np.int16) if safe.all() else None


def widened(dtype: str, words: Words, after: Words, kept: KeptElements, sampling: Sampling) -> Sampling:
    """The same with wider levels where a multiple would be larger than `MOST`: arguments as those of `multiples`."""
    levels, largest = kept.tags & 15, np.zeros(LEVELS)
    with np.errstate(all="ignore"):
        change = np.abs(as_float(after[kept.places], dtype) - as_float(words[kept.places], dtype))
    if not np.isfinite(change).all():
        return sampling
    np.maximum.at(largest, levels, change.astype(np.float64))
    least = largest * SHARES / ((sampling.shares.astype(np.float64) + 1) * (MOST - 1))
    up = np.minimum(to_bf16(least.astype(np.float32)).astype(np.int64) + 1, 0x7F7F)
    widths = np.where(least > from_bf16(sampling.widths), up, sampling.widths)
    return sampling._replace(widths=widths.astype(np.uint16))


def apply(dtype: str, words: Words, kept: KeptElements, after: Words, sampling: Sampling) -> None:
    """Turn the base's elements into the task's, in place.

    An element whose multiple q is not 0 becomes base + q · width, product and sum each rounded to float32, and the sum
    to the type, ties to even. A NaN is the quiet one without a sign.

    Args:
        dtype: one of `TYPES`.
        words: the base's elements, shape (n,).
        kept: see there.
        after: what `lattice` made of their starts: shape (K,).
        sampling: see there.
    """
    lattice = LATTICES["BF16"]
    times = (lattice.turned(after) - starts(kept.tags)).view(np.int16).astype(np.float32)
    base = words[kept.places]
    with np.errstate(all="ignore"):
        moved = as_float(base, dtype) + times * from_bf16(sampling.widths)[kept.tags & 15]
    words[kept.places] = np.where(times == 0, base, as_words(moved, dtype))


def as_words(values: npt.NDArray[np.float32], dtype: str) -> Words:
    """Numbers rounded to a type, ties to even; every NaN is the same."""
    with np.errstate(all="ignore"):
        words: Words = to_bf16(values) if dtype == "BF16" else values.astype(_FLOATS[dtype]).view(LATTICES[dtype].word)
    words[np.isnan(values)] = _NAN[dtype]
    return words


def as_float(words: Words, dtype: str) -> npt.NDArray[np.float32]:
    """The numbers of words."""
    return from_bf16(words) if dtype == "BF16" else words.view(_FLOATS[dtype]).astype(np.float32, copy=False)
