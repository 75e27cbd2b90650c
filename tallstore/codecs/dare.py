"""Codec `dare`: the steps of a share of a task's elements, drawn by a hash of their places, each taken several times.

    u8 0 | a chunk of `lattice`: nothing is dropped
    u8 1 | u8 low | u32 first | u8 rate of each level | a chunk of `lattice`, of what is kept

What comes back is the task on the average, and not bit for bit.
"""

from __future__ import annotations

import struct

import numpy as np

from tallstore.codecs.base import Buffer, Bytes, ConditionalCodec
from tallstore.codecs.lattice import LatticeCodec
from tallstore.errors import FormatError
from tallstore.kernels.dare import TYPES, KeptElements, as_float
from tallstore.kernels.dare_fast import rescale, select
from tallstore.kernels.lattice import LATTICES, LEVELS, Lattice, Words

__all__ = ["DareCodec"]

_ALL, _SOME = 0, 1
_HEAD = struct.Struct("<BBI")
_LEAST = 2.0**-100
"""Changes that are smaller are not rescaled: where a processor takes subnormal numbers for 0, they might be."""


class DareCodec(ConditionalCodec):
    """Spec: `spec/codecs/dare.md`."""

    id = "dare"
    _lattice = LatticeCodec()

    def encode(self, raw: Bytes, base: Bytes, dtype: str, low: int, rates: Bytes, first: int) -> bytes:
        """Code one chunk; all of its elements where the arithmetic of what is kept would not be safe.

        Args:
            raw: the task's elements: little-endian bytes of `dtype`.
            base: the base's elements in their place, of the same type: as many bytes.
            dtype: one of `kernels.dare.TYPES`.
            low: the exponent of level 0.
            rates: of each level: a share of 2^(−rate/8) is kept; none from `kernels.dare.NOTHING` on. Shape (LEVELS,).
            first: what draws for the first element: see `place_hash.first_of`.
        """
        lattice = LATTICES[dtype]
        words, after = base.view(lattice.word), raw.view(lattice.word)
        kept, before = select(lattice, words, low, first, rates)
        own = after[kept.places]
        if _has_infinite(lattice, words) or _has_infinite(lattice, after) or not _is_safe(dtype, kept, before, own):
            return bytes([_ALL]) + self._lattice.encode(raw, base, dtype)
        coded = self._lattice.encode(own.view(np.uint8), before.view(np.uint8), dtype)
        return _HEAD.pack(_SOME, low, first) + rates.tobytes() + coded

    def decode(self, data: Buffer, out: Bytes, dtype: str, origin: Bytes | None = None) -> None:
        """By the first byte."""
        if dtype not in TYPES:
            raise FormatError(f"codec 'dare' is for {' and '.join(TYPES)}, not for {dtype}")
        view, lattice = memoryview(data).cast("B"), LATTICES[dtype]
        mode = view[0] if len(view) else None
        if mode == _ALL:
            self._lattice.decode(view[1:], out, dtype, origin)
            return
        if mode != _SOME or len(view) < _HEAD.size + LEVELS:
            raise FormatError(f"a chunk of which some is kept, of mode {mode}, is unknown or cut off")
        _, low, first = _HEAD.unpack_from(view)
        if low > lattice.mask:
            raise FormatError(f"the lowest level's exponent, {low}, is above {lattice.mask}")
        rates = np.frombuffer(view[_HEAD.size : _HEAD.size + LEVELS], np.uint8)
        words = out.view(lattice.word)
        kept, after = select(lattice, words, low, first, rates)
        self._lattice.decode(view[_HEAD.size + LEVELS :], after.view(np.uint8), dtype)
        rescale(dtype, words, kept, after)


def _has_infinite(lattice: Lattice, words: Words) -> bool:
    """Whether an element is a NaN or infinite: neither what it turns into nor what turned into it must be dropped."""
    infinite = words.dtype.type(lattice.mask << lattice.shift)
    return bool((words & infinite == infinite).any())


def _is_safe(dtype: str, kept: KeptElements, base: Words, after: Words) -> bool:
    """Whether what is taken several times is finite, and far from subnormal numbers."""
    several = (kept.times > 1) & (base != after)
    start, stop = as_float(base[several], dtype), as_float(after[several], dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        changes = np.abs(stop - start)
        reached = start + kept.times[several].astype(np.float32) * (stop - start)
    most = np.float32(65504 if dtype == "F16" else 3.3895314e38)
    return bool((changes >= _LEAST).all() and (np.abs(reached) <= most).all())
