"""Codec `dare`: the changes of a share of a task's elements, drawn and rounded by a hash of places, and rescaled.

    u8 0 | a chunk of `lattice`: nothing is dropped
    u8 2 | u8 low | u32 first | shares, u16 each | widths, u16 each | contexts, u8 each | a chunk of `lattice`
    u8 3 | what is added to the base's elements (see `codecs.low_rank`) | a chunk of mode 0 or 2, given the sums

The first chunk of a tensor tells columns of what is added for all of them.

What comes back is the task on the average, and not bit for bit.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.codecs.base import ALONE, Buffer, Bytes, Columns, ConditionalCodec, Given
from tallstore.codecs.codebook import pack_indices
from tallstore.codecs.dare_contexts import CONTEXTS, choose_contexts
from tallstore.codecs.lattice import LatticeCodec
from tallstore.codecs.low_rank import read_columns, read_low_rank, write_low_rank
from tallstore.errors import FormatError
from tallstore.kernels.conversion import from_bf16
from tallstore.kernels.dare import TYPES, KeptElements, Sampling, starts, widened
from tallstore.kernels.dare_fast import apply, multiples, select
from tallstore.kernels.lattice import LATTICES, LEVELS, Lattice, Words
from tallstore.kernels.low_rank import LowRank, add_product

__all__ = ["Added", "Apart", "DareCodec"]

_ALL, _SOME, _ADDED = 0, 2, 3
_HEAD = struct.Struct("<BBI")
_START = _HEAD.size + 5 * LEVELS
"""Where the chunk of `lattice` begins."""
_STEPS = "BF16"
"""The type whose exponents stand for contexts."""
_LEAST = 1 << LATTICES[_STEPS].shift
"""What the least context starts from: it takes larger multiples to change a sign."""
_WIDEST, _DOWN = 0x7F7F, 4
"""The largest width, and the largest shift of classes."""


class Added(NamedTuple):
    """What is added to the base's elements of a chunk: of rank · rows numbers no more than there are elements."""

    of: LowRank
    columns_told: bool = True
    """Whether columns are told here, whatever the elements are: a tensor's first chunk must, if others take them from
    there. Else they are those that it tells, or the first of them."""


class Apart(NamedTuple):
    """A chunk's parts, where none of them depends on the base's elements."""

    added: LowRank | None
    """What is added to the base's elements first."""
    multiples: npt.NDArray[np.int16]
    """Of each element: shape (n,); 0 where it is not kept."""
    width: np.float32
    """What a multiple of 1 changes an element by, after that."""


class _ChunkHead(NamedTuple):
    """What a chunk of which some is kept says first."""

    sampling: Sampling
    contexts: Bytes
    first: int


class DareCodec(ConditionalCodec):
    """Spec: `spec/codecs/dare.md`."""

    id = "dare"
    _lattice = LatticeCodec()

    def encode(
        self, raw: Bytes, base: Bytes, dtype: str, sampling: Sampling, first: int, added: Added | None = None
    ) -> bytes:
        """Code one chunk; all of its elements where the arithmetic of what is kept would not be safe.

        Args:
            raw: the task's elements: little-endian bytes of `dtype`.
            base: the base's elements in their place, of the same type: as many bytes.
            dtype: one of `kernels.dare.TYPES`.
            sampling: what is kept.
            first: what draws for the first element: see `place_hash.first_of`.
            added: what is added to the base's elements before anything is kept.
        """
        return self.coded(raw, base, dtype, sampling, first, added)[0]

    def coded(
        self, raw: Bytes, base: Bytes, dtype: str, sampling: Sampling, first: int, added: Added | None = None
    ) -> tuple[bytes, Words]:
        """The same, and what becomes of the base's elements: what `decode` makes of them, at less than it takes."""
        lattice = LATTICES[dtype]
        words, after = base.view(lattice.word).copy(), raw.view(lattice.word)
        safe = not (_has_large(dtype, words) or _has_large(dtype, after))
        head = b""
        if added is not None:
            of, sums = added.of, _sums(dtype, words, added.of) if safe else None
            if sums is None:
                of = of._replace(rows=np.zeros_like(of.rows))  # adds nothing, bit for bit
            if added.columns_told or sums is not None:
                head = bytes([_ADDED]) + write_low_rank(of, with_columns=added.columns_told)
            words = words if sums is None else sums
        kept, begun = select(lattice, words, sampling, np.zeros(LEVELS, np.uint8), first)
        times = multiples(dtype, words, after, kept, sampling, first)
        if times is None:  # a change may be far beyond those that widths were chosen by
            sampling = widened(dtype, words, after, kept, sampling)
            times = multiples(dtype, words, after, kept, sampling, first)
        if times is None or not safe:
            return head + bytes([_ALL]) + self._lattice.encode(raw, words.view(np.uint8), dtype), after.copy()
        largest = max(int(times.max(initial=0)), -int(times.min(initial=0)))
        contexts = choose_contexts(kept.tags, times)
        tag = np.arange(256)
        begin, down = contexts[tag & 15] & 15, contexts[tag & 15] >> 4
        context = pack_indices(kept.tags, 8, (begin + (tag >> 4 >> down)).astype(np.uint8))
        coded = self._lattice.encode_numbers(times, context, 1, largest)  # a context's exponent is one more
        begun += times.view(np.uint16)
        apply(dtype, words, kept, begun if largest < _LEAST else LATTICES[_STEPS].turned(begun), sampling)
        parts = (sampling.shares.astype("<u2"), sampling.widths.astype("<u2"), contexts)
        head += _HEAD.pack(_SOME, sampling.low, first) + b"".join(each.tobytes() for each in parts)
        return head + coded, words

    def columns(self, first: Buffer) -> Columns | None:
        """Of a chunk of mode 3."""
        view = memoryview(first).cast("B")
        return read_columns(view[1:]) if len(view) and view[0] == _ADDED else None

    def decode(self, data: Buffer, out: Bytes, dtype: str, given: Given = ALONE) -> None:
        """By the first byte."""
        lattice = _lattice_of(dtype)
        words = out.view(lattice.word)
        added, view = _read_added(data, len(words), given)
        if added is not None:
            add_product(dtype, words, added)
        if view[:1] == bytes([_ALL]):
            self._lattice.decode(view[1:], out, dtype)
            return
        head = _read_head(view, lattice)
        kept, after = self._kept(view, lattice, words, head)
        apply(dtype, words, kept, after, head.sampling)

    def apart(self, data: Buffer, n: int, dtype: str, given: Given = ALONE) -> Apart | None:
        """A chunk of n elements, taken apart: what `decode` makes of the base's is base + product, then + q · width.

        Each product with a number, and each sum, is rounded to float32, and the sum to the type; where the whole-number
        product, or q, is 0, nothing is added. A NaN is the quiet one without a sign. See `decode` for the arguments.

        Returns:
            None where what is kept, or by how much it changes, depends on the base's elements.
        """
        lattice = _lattice_of(dtype)
        added, view = _read_added(data, n, given)
        if view[:1] == bytes([_ALL]):
            return None
        head = _read_head(view, lattice)
        if head.sampling.low < lattice.mask:
            return None
        any_words = np.zeros(n, lattice.word)  # all of them are of level 0
        kept, after = self._kept(view, lattice, any_words, head)
        multiples = np.zeros(n, np.int16)
        multiples[kept.places] = (LATTICES[_STEPS].turned(after) - starts(kept.tags)).view(np.int16)
        return Apart(added, multiples, from_bf16(head.sampling.widths)[0])

    def _kept(self, view: memoryview, lattice: Lattice, words: Words, head: _ChunkHead) -> tuple[KeptElements, Words]:
        """Of a chunk of which some is kept, which elements, and what `lattice` made of their starts."""
        kept, after = select(lattice, words, head.sampling, head.contexts, head.first)
        self._lattice.decode(view[_START:], after.view(np.uint8), _STEPS)
        return kept, after


def _lattice_of(dtype: str) -> Lattice:
    if dtype not in TYPES:
        raise FormatError(f"codec 'dare' is for {', '.join(TYPES)}, not for {dtype}")
    return LATTICES[dtype]


def _read_added(data: Buffer, n: int, given: Given) -> tuple[LowRank | None, memoryview]:
    """What is added to a chunk's n elements first, if anything, and the bytes behind it."""
    view = memoryview(data).cast("B")
    if view[:1] != bytes([_ADDED]):
        return None, view
    added, view = read_low_rank(view[1:], n, given.columns)
    if view[:1] == bytes([_ADDED]):
        raise FormatError("a product is added to another one")
    return added, view


def _read_head(view: memoryview, lattice: Lattice) -> _ChunkHead:
    mode = view[0] if len(view) else None
    if mode != _SOME or len(view) < _START:
        raise FormatError(f"a chunk of which some is kept, of mode {mode}, is unknown or cut off")
    _, low, first = _HEAD.unpack_from(view)
    told = np.frombuffer(view[_HEAD.size : _START], "<u2")
    sampling = Sampling(low, *told[: 2 * LEVELS].astype(np.uint16).reshape(2, LEVELS))
    contexts = told[2 * LEVELS :].view(np.uint8)
    _check(lattice, sampling, contexts)
    return _ChunkHead(sampling, contexts, first)


def _check(lattice: Lattice, sampling: Sampling, contexts: npt.NDArray[np.uint8]) -> None:
    """Refuse a head that says what it must not."""
    if sampling.low > lattice.mask:
        raise FormatError(f"the lowest level's exponent, {sampling.low}, is above {lattice.mask}")
    if (widest := int(sampling.widths.max())) > _WIDEST:
        raise FormatError(f"a level's width, {widest:04X}, is negative or not finite")
    begin, down = contexts & 15, contexts >> 4
    if (down > _DOWN).any() or (begin + (15 >> down) >= CONTEXTS).any():
        raise FormatError(f"levels' contexts, {contexts.tobytes().hex()}, are not {CONTEXTS}")


def _sums(dtype: str, words: Words, added: LowRank) -> Words | None:
    """Elements with what is added to them; None where some are too large."""
    sums = words.copy()
    add_product(dtype, sums, added)
    return None if _has_large(dtype, sums) else sums


def _has_large(dtype: str, words: Words) -> bool:
    """Whether an element is a NaN or infinite, or so large that a change may be: nothing of it must be dropped."""
    lattice = LATTICES[dtype]
    large, signed = lattice.mask - (dtype != "F16") << lattice.shift, words.view(f"i{words.itemsize}")
    return bool(len(words)) and bool(signed.max() >= large or words.max() >= large | 1 << lattice.bits - 1)
