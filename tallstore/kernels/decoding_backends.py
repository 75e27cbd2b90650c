"""Who decodes: one table of backends, and the choice between them, made once for every chunk or tensor.

The reference backend is numpy and torch, and the truth; the native one is the library in C, where it can be used. On a
CUDA device whole tensors are Triton's (`kernels.devices`). All of them give the same bits.

Torch is loaded with the first steps that are asked for: whoever only reads and checks codes does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from tallstore.kernels import codes
from tallstore.kernels.fill import ChunkMemory, FillSource, Target
from tallstore.kernels.native import library
from tallstore.kernels.native.decode import NativeDecoding
from tallstore.kernels.pairs import Pairs, Singles
from tallstore.kernels.reference import Bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tallstore.kernels.steps import Steps

__all__ = ["Decoding", "Merging", "ReferenceDecoding", "decoding", "merging"]

_Numbers = npt.NDArray[Any]


class Decoding(Protocol):
    """What a backend does for the decoder."""

    name: str
    """reference or native."""
    by_gaps: bool
    """Whether there is `gaps`, and merging by it and by rows: the reference has packed symbols in place of these."""

    def mask(
        self,
        packed: Bytes,
        kind: str,
        n: int,
        scale: float,
        dtype: torch.dtype,
        vector: Singles | Pairs | None = None,
    ) -> Steps:
        """A mask over a vector.

        Args:
            packed: n symbols as `reference.pack` packs them, valid.
            kind: binary or signed.
            n: elements of the chunk.
            scale: s, exactly a float32.
            dtype: of the output.
            vector: v, float32, n elements or more; None where it is 1 everywhere.
        """

    def gaps(self, gaps: Bytes, signs: Bytes, kind: str, n: int, scale: float, dtype: torch.dtype) -> Steps:
        """A mask over a vector that is 1 everywhere, by its gaps.

        Args:
            gaps: zeros before each mark: bytes 255 (continuation bytes), then one below 255; all marks in the chunk.
            signs: of a signed mask: a bit per mark, little-endian, 1 for −.
            kind: binary or signed.
            n: elements of the chunk.
            scale: s, exactly a float32.
            dtype: of the output.
        """

    def levels(self, packed: Bytes, bits: int, n: int, table: Singles, dtype: torch.dtype) -> Steps:
        """A delta on levels of its own.

        Args:
            packed: n indices, one per byte (`bits` = 8) or two (4, the first in the low half), valid.
            bits: 4 or 8.
            n: elements of the chunk.
            table: levels, float32, shape (K,).
            dtype: of the output.
        """

    def values(self, values: Singles, dtype: torch.dtype) -> Steps:
        """A delta that is there as values, float32, of the whole chunk."""

    def target(self, out: Tensor) -> Target | None:
        """A flat tensor that whole chunks can be filled into; None where this backend fills none."""

    def file(self, handle: int, at: int) -> FillSource | None:
        """An open file, from byte `at` on, as a source; None where this backend reads none."""

    def planes(self, planes: Sequence[Bytes]) -> FillSource | None:
        """Planes of equal length, of rotated words, as a source; None where this backend takes none."""

    def whole(self, part: ChunkMemory, source: FillSource) -> bool:
        """Fill a chunk out of a source, and add nothing. Whether all of it was there."""

    def check(self, source: FillSource, size: int) -> bool:
        """Read and hash all `size` bytes of a file's source, and keep nothing. Whether they were there."""

    def gather(self, out: Bytes, handle: int, first: int, item: int, runs: Sequence[tuple[int, int]]) -> bool:
        """Read runs of a file's elements, one behind the other, in one call. Whether it was done, and all were there.

        Args:
            out: as many bytes as the runs have.
            handle: the file's descriptor.
            first: the file's byte that is element 0's first.
            item: bytes of an element.
            runs: of each its first element and the one behind its last.
        """

    def sum_gaps(self, gaps: Bytes) -> tuple[int, int]:
        """See `codes.sum_gaps`."""

    def gaps_to_packed(self, gaps: Bytes, signs: Bytes, kind: str, n: int) -> Bytes:
        """See `codes.gaps_to_packed`."""

    def spread(self, on: Bytes, n: int, rest: Bytes, bits: int) -> Bytes:
        """See `codes.spread`."""

    def join(self, words: npt.NDArray[Any], planes: Sequence[Bytes], *, rotated: bool) -> None:
        """See `codes.join`."""


class ReferenceDecoding:
    """The reference backend: a cache-sized tile at a time, and nothing in one call."""

    name = "reference"
    by_gaps = False
    sum_gaps = staticmethod(codes.sum_gaps)
    gaps_to_packed = staticmethod(codes.gaps_to_packed)
    spread = staticmethod(codes.spread)
    join = staticmethod(codes.join)

    def mask(
        self,
        packed: Bytes,
        kind: str,
        n: int,  # noqa: ARG002 - as `Decoding` has it
        scale: float,
        dtype: torch.dtype,
        vector: Singles | Pairs | None = None,
    ) -> Steps:
        """By tiles."""
        from tallstore.kernels.tiled import MaskSteps

        return MaskSteps(packed, kind, scale, dtype, vector)

    def gaps(self, gaps: Bytes, signs: Bytes, kind: str, n: int, scale: float, dtype: torch.dtype) -> Steps:
        """By packed symbols."""
        return self.mask(codes.gaps_to_packed(gaps, signs, kind, n), kind, n, scale, dtype)

    def levels(self, packed: Bytes, bits: int, n: int, table: Singles, dtype: torch.dtype) -> Steps:  # noqa: ARG002
        """By tiles."""
        from tallstore.kernels.tiled import DeltaSteps

        return DeltaSteps(packed, bits, table, dtype)

    def values(self, values: Singles, dtype: torch.dtype) -> Steps:
        """By tiles."""
        from tallstore.kernels.tiled import ValueSteps

        return ValueSteps(values, dtype)

    def target(self, out: Tensor) -> Target | None:  # noqa: ARG002 - as `Decoding` has it
        """None."""
        return None

    def file(self, handle: int, at: int) -> FillSource | None:  # noqa: ARG002 - likewise
        """None."""
        return None

    def planes(self, planes: Sequence[Bytes]) -> FillSource | None:  # noqa: ARG002 - likewise
        """None."""
        return None

    def whole(self, part: ChunkMemory, source: FillSource) -> bool:  # noqa: ARG002 - likewise
        """Nothing."""
        return False

    def check(self, source: FillSource, size: int) -> bool:  # noqa: ARG002 - likewise
        """Nothing."""
        return False

    def gather(self, out: Bytes, handle: int, first: int, item: int, runs: Sequence[tuple[int, int]]) -> bool:  # noqa: ARG002
        """Nothing."""
        return False


def decoding() -> Decoding:
    """The backend in use on the CPU: see `native.library` for what decides."""
    chosen = library.chosen()
    return _REFERENCE if chosen is None else _native(chosen)


_REFERENCE = ReferenceDecoding()


@cache
def _native(chosen: library.Library) -> NativeDecoding:
    return NativeDecoding(chosen)


class Merging(Protocol):
    """Merging kernels that take a window's rows in one pass. inner, outer: factors, exact in the type of the rows."""

    def merge_rows(self, out: _Numbers, rows: _Numbers, least: int, inner: float, outer: float) -> None:
        """out += outer · (inner · Σ rows where that many rows are not 0, else 0), summed as by `recipes.ordered_sum`.

        Args:
            out: shape (n,), float32 or float64. Elements to which 0 is added keep every bit.
            rows: shape (T, n), of the same type.
            least: the number of rows; 0: everywhere.
            inner: a factor.
            outer: another one.
        """

    def measure_rows(self, squares: _Numbers, rows: _Numbers, least: int, inner: float) -> float:
        """The sum of squares of what that adds, outer factor 1; each row's own is added to `squares`, float64 (T,)."""

    def merge_gaps(self, out: _Numbers, given: Sequence[Any], least: int, inner: float, outer: float) -> None:
        """What `merge_rows` does, of rows that are ± s at marks and 0 elsewhere.

        `given`: gaps of all rows, one behind the other, uint8; where each row's begin, int64, shape (T + 1,); signs and
        where they begin, likewise; s, shape (T,), of the type of `out`. A row without gaps is 0.
        """

    def measure_gaps(self, squares: _Numbers, n: int, given: Sequence[Any], least: int, inner: float) -> float:
        """What `measure_rows` does, of n elements of such rows."""

    def merge_masks(
        self,
        out: _Numbers,
        vector: _Numbers,
        packed: Bytes,
        bits: int,
        scales: _Numbers,
        whole: bool,
        least: int,
        inner: float,
        outer: float,
    ) -> None:
        """The same of rows s·m·v that are still packed; those that are on are counted, whatever v is.

        Args:
            out: shape (n,), float32 or float64.
            vector: v: shape (n,), of the same type.
            packed: shape (T, bytes of n symbols).
            bits: of a symbol.
            scales: s: shape (T,), of the type of `out`.
            whole: v itself is added, in place of the sum of the rows.
            least: as in `merge_rows`.
            inner: likewise.
            outer: likewise.
        """


def merging() -> Merging | None:
    """The backend's kernels for merging; None: a tile at a time, in torch."""
    chosen = library.chosen()
    return None if chosen is None else _native(chosen)
