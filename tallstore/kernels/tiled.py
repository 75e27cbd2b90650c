"""The reference's arithmetic at the speed of memory: a cache-sized tile at a time, straight from packed symbols.

A byte of packed symbols is looked up as the float32 steps it stands for (four of a signed mask, two of 4-bit levels),
so that what is left for each element is one addition. A step is subtracted with its sign turned: x − (+0) is x for
every x, −0 too, so parameters whose symbol is 0 need no branch. NaN is the one exception (an addition may change its
bits): a tile whose base has one goes to the reference.

This is the reference backend's way. Everything here equals `kernels.reference` bit for bit. No threads: callers
share tensors out.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.kernels import reference
from tallstore.kernels.pairs import NIBBLES, Pairs, Singles
from tallstore.kernels.reference import Bytes
from tallstore.kernels.scratch import scratch
from tallstore.kernels.steps import TILE, Run, Steps

__all__ = ["TILE", "DecodedSteps", "DeltaSteps", "MaskSteps", "Pairs", "Run", "Steps", "Tiled", "ValueSteps"]

_Array = npt.NDArray[Any]
_FOUR = ((np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3).astype(np.uint8)
"""Shape (256, 4): the signed symbols of a byte."""
_EIGHT = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(np.uint8)
"""Shape (256, 8): the binary symbols of a byte."""
_WORD: dict[Any, Any] = {np.dtype(np.float32): np.uint32, np.dtype(np.float64): np.uint64}
_WIDE = {torch.float32, torch.float64}


class DecodedSteps(Steps):
    """A chunk that is decoded already: whatever the base holds, it is written."""

    def __init__(self, values: Tensor) -> None:
        """`values`: the task's elements, in its type."""
        super().__init__(values.dtype)
        self._values = values
        self.nbytes = values.nbytes

    def begin(self) -> Run:
        """Copies."""
        at = 0

        def run(out: Tensor, base: Tensor) -> None:  # noqa: ARG001 - it has its part already
            nonlocal at
            out.copy_(self._values[at : at + len(out)])
            at += len(out)

        return run


class Tiled(Steps):
    """Steps of which any run can be made by itself."""

    def begin(self) -> Run:
        at = 0

        def run(out: Tensor, base: Tensor) -> None:
            nonlocal at
            self.apply(out, base, at)
            at += len(out)

        return run

    def apply(self, out: Tensor, base: Tensor, start: int) -> None:
        """A run from the chunk's element `start` on."""
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            if base.dtype == out.dtype and out.dtype in _WIDE:
                odd = self._add(base.detach().numpy(), out.detach().numpy(), start)
                self._leave(out, base, start, odd)
                return
            for a in range(0, len(out), TILE):
                before = scratch("wide", min(TILE, len(out) - a), self._wide)
                wide = torch.from_numpy(before)
                wide.copy_(base[a : a + TILE])
                odd = self._add(before, before, start + a)
                if odd is None:
                    out[a : a + TILE].copy_(wide)
                else:
                    self._by_reference(out[a : a + TILE], base[a : a + TILE], start + a)

    @abstractmethod
    def _add(self, before: _Array, after: _Array, start: int) -> int | None:
        """after = before + step, from the chunk's element `start` on. Where it met a NaN, and stopped; None if not."""

    def _leave(self, out: Tensor, base: Tensor, start: int, odd: int | None) -> None:
        """Go on where a NaN was met: that run by the reference, what follows as usual."""
        while odd is not None:
            end = min(odd + TILE, len(out))
            self._by_reference(out[odd:end], base[odd:end], start + odd)
            if end == len(out):
                return
            more = self._add(base.detach().numpy()[end:], out.detach().numpy()[end:], start + end)
            odd = None if more is None else end + more

    def _by_reference(self, out: Tensor, base: Tensor, start: int) -> None:
        raise NotImplementedError


class MaskSteps(Tiled):
    """A mask over a vector."""

    def __init__(
        self, packed: Bytes, kind: str, scale: float, dtype: torch.dtype, vector: Singles | Pairs | None = None
    ) -> None:
        """Of one chunk.

        Args:
            packed: symbols as `reference.pack` packs them, valid.
            kind: binary or signed.
            scale: s, exactly a float32.
            dtype: of the output.
            vector: v, float32; None where it is 1 everywhere.
        """
        held = () if vector is None else (vector.packed,) if isinstance(vector, Pairs) else (vector,)
        super().__init__(dtype, packed, *held)
        self._packed, self._kind, self._scale, self._given = packed, kind, scale, vector
        self._each = 8 // reference.SYMBOL_BITS[kind]
        s = self._wide.type(scale)
        symbols = _FOUR if kind == "signed" else _EIGHT
        if vector is None:
            self._table = np.array([0, -s, s, 0], self._wide)[symbols]
        else:
            word = _WORD[self._wide]
            self._table = np.array([0, ~word(0), ~word(0), 0], word)[symbols]
            self._signs = np.array([-s, -s, s, -s], self._wide)[symbols] if kind == "signed" else None

    @property
    def _vector(self) -> Singles | None:
        return self._given.values if isinstance(self._given, Pairs) else self._given

    def _add(self, before: _Array, after: _Array, start: int) -> int | None:
        for a in range(0, len(before), TILE):
            run = slice(a, a + TILE)
            if np.isnan(np.maximum.reduce(before[run])):
                return a
            self._subtract(before[run], after[run], start + a)
        return None

    def _subtract(self, before: _Array, after: _Array, start: int) -> None:
        n, vector = len(before), self._vector
        if vector is None:
            np.subtract(before, self._look_up("step", self._table, start, n), out=after)
            return
        step = scratch("product", n, self._wide)
        factor = -self._wide.type(self._scale) if self._signs is None else self._look_up("sign", self._signs, start, n)
        np.multiply(vector[start : start + n], factor, out=step, dtype=self._wide)
        words = step.view(_WORD[self._wide])
        np.bitwise_and(words, self._look_up("mask", self._table, start, n), out=words)
        np.subtract(before, step, out=after)

    def _look_up(self, name: str, table: _Array, start: int, n: int) -> _Array:
        each = self._each
        packed = self._packed[start // each : -(-(start + n) // each)]
        out = scratch(name, len(packed) * each, table.dtype)
        np.take(table, packed, axis=0, out=out.reshape(-1, each), mode="clip")
        return out[:n]

    def _by_reference(self, out: Tensor, base: Tensor, start: int) -> None:
        n = len(out)
        symbols = reference.unpack(self._packed[start // self._each : -(-(start + n) // self._each)], self._kind, n)
        v = np.ones(n, np.float32) if self._vector is None else np.array(self._vector[start : start + n])
        reference.apply_mask(out, base, torch.from_numpy(v), torch.from_numpy(symbols), self._scale)


class DeltaSteps(Tiled):
    """A delta on levels of its own."""

    def __init__(self, packed: Bytes, bits: int, table: npt.NDArray[np.float32], dtype: torch.dtype) -> None:
        """Of one chunk.

        Args:
            packed: indices, one a byte (`bits` = 8) or two (4, the first in the low half), valid.
            bits: 4 or 8.
            table: levels, float32, shape (K,).
            dtype: of the output.
        """
        super().__init__(dtype, packed, table)
        self._packed, self._bits = packed, bits
        self._table = np.zeros(256 if bits == 8 else 16, self._wide)
        self._table[: len(table)] = table
        self._pairs = self._table[NIBBLES] if bits == 4 else None

    def _add(self, before: _Array, after: _Array, start: int) -> None:
        n = len(before)
        packed = self._packed[start * self._bits // 8 : -(-(start + n) * self._bits // 8)]
        table = self._table if self._pairs is None else self._pairs
        each = 1 if self._pairs is None else 2
        for a in range(0, n, TILE):
            own = packed[a // each : -(-min(n, a + TILE) // each)]
            step = scratch("step", len(own) * each, self._wide)
            np.take(table, own, axis=0, out=step.reshape(len(own), *table.shape[1:]), mode="clip")
            run = slice(a, min(n, a + TILE))
            np.add(before[run], step[: run.stop - a], out=after[run])


class ValueSteps(Tiled):
    """A delta that is there as values."""

    def __init__(self, values: npt.NDArray[np.float32], dtype: torch.dtype) -> None:
        """`values`: float32, the chunk's."""
        super().__init__(dtype, values)
        self._values = values

    def _add(self, before: _Array, after: _Array, start: int) -> None:
        np.add(before, self._values[start : start + len(before)], out=after, dtype=self._wide)
