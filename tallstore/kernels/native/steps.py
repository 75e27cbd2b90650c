"""Steps of a chunk that the native library adds: `kernels.steps` by `src/steps.h` and `decode.c`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import byref
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.kernels import reference, tiled
from tallstore.kernels.fill import ChunkMemory, FillSource
from tallstore.kernels.native.library import address
from tallstore.kernels.native.shares import GAPS, LEVELS, MASK, VALUES, Cursor, Delta
from tallstore.kernels.native_types import FORMS
from tallstore.kernels.pairs import Pairs, Singles
from tallstore.kernels.reference import Bytes
from tallstore.kernels.scratch import scratch
from tallstore.kernels.steps import TILE, Run, Steps

__all__ = ["GapSteps", "LevelSteps", "NativeMaskSteps", "NativeSteps", "NativeValueSteps"]


class NativeSteps(Steps):
    """Steps that the library adds in one pass: see `ts_apply`."""

    kind: ClassVar[int]

    def __init__(self, functions: Any, dtype: torch.dtype, n: int, held: Sequence[npt.NDArray[Any]]) -> None:
        """Of a chunk of n elements; `held`: what the share points to."""
        super().__init__(dtype, *held)
        self._functions, self._dtype, self._held = functions, dtype, held
        self._reference: Callable[[], tiled.Tiled] | None = None
        self._share = Delta(kind=self.kind, n=n)
        self.fills = dtype in FORMS

    def begin(self) -> Run:
        """As everywhere."""
        at, cursor = 0, Cursor()

        def run(out: Tensor, base: Tensor) -> None:
            nonlocal at
            self._apply(out, base, at, cursor)
            at += len(out)

        return run

    def fill(self, part: ChunkMemory, source: FillSource) -> bool:
        """Unless a NaN of the base needs the reference."""
        form = FORMS[self._dtype]
        return bool(self._functions.fill(part.address, part.nbytes, source, form, byref(self._share)))

    def _apply(self, out: Tensor, base: Tensor, start: int, cursor: Cursor) -> None:
        """A run from the chunk's element `start` on."""
        if base.dtype == out.dtype and out.dtype in FORMS and _is_plain(out) and _is_plain(base):
            self._in_place(out, base, start, cursor)
            return
        kind = FORMS[reference.wide(out.dtype)]
        for a in range(0, len(out), TILE):
            before, after = base[a : a + TILE], out[a : a + TILE]
            wide = scratch("wide", len(after), self._wide)
            tensor = torch.from_numpy(wide)
            tensor.copy_(before)
            where = address(wide)
            # Types change in between: what is not marked may lose a NaN's bits.
            odd = bool(tensor.isnan().any())
            if odd or self._call(where, where, start + a, len(wide), kind, cursor) < len(wide):
                self._by_reference(after, before, start + a, cursor)
            else:
                after.copy_(tensor)

    def _in_place(self, out: Tensor, base: Tensor, start: int, cursor: Cursor) -> None:
        done, n, item, form = 0, len(out), out.element_size(), FORMS[out.dtype]
        while True:
            to, of = out.data_ptr() + done * item, base.data_ptr() + done * item
            done += self._call(to, of, start + done, n - done, form, cursor)
            if done == n:
                return
            end = min(done + TILE, n)
            self._by_reference(out[done:end], base[done:end], start + done, cursor)
            done = end
            if done == n:
                return

    def _call(self, out: int, base: int, start: int, n: int, form: int, cursor: Cursor) -> int:
        done: int = self._functions.apply(out, base, start, n, form, byref(self._share), byref(cursor))
        return done

    def _by_reference(self, out: Tensor, base: Tensor, start: int, cursor: Cursor) -> None:  # noqa: ARG002
        """A run with a NaN: what becomes of its bits."""
        assert self._reference is not None
        self._reference().apply(out, base, start)


class NativeMaskSteps(NativeSteps):
    """A mask over a vector, as packed symbols."""

    kind = MASK

    def __init__(
        self,
        functions: Any,
        packed: Bytes,
        kind: str,
        n: int,
        scale: float,
        dtype: torch.dtype,
        vector: Singles | Pairs | None,
    ) -> None:
        """See `decoding_backends.Decoding.mask`."""
        pairs = vector if isinstance(vector, Pairs) else None
        values = None if vector is None or pairs is not None else np.ascontiguousarray(vector, np.float32)
        if (values is not None and len(values) < n) or (pairs is not None and 2 * len(pairs.packed) < n):
            raise ValueError(f"a vector shorter than the chunk's {n} elements")
        held: list[npt.NDArray[Any]] = [np.ascontiguousarray(packed)]
        held += [] if pairs is None else [np.ascontiguousarray(pairs.packed), pairs.table]
        super().__init__(functions, dtype, n, held if values is None else [*held, values])
        share = self._share
        share.bits, share.scale = reference.SYMBOL_BITS[kind], scale
        share.codes, share.code_bytes = address(held[0]), len(held[0])
        if pairs is not None:
            share.levels, share.table = address(held[1]), address(pairs.table)
        elif values is not None:
            share.values = address(values)
        self._reference = lambda: tiled.MaskSteps(packed, kind, scale, dtype, vector)


class LevelSteps(NativeSteps):
    """A delta by its levels."""

    kind = LEVELS

    def __init__(self, functions: Any, packed: Bytes, bits: int, n: int, table: Singles, dtype: torch.dtype) -> None:
        """See `decoding_backends.Decoding.levels`."""
        full = np.zeros(16 if bits == 4 else 256, np.float32)
        full[: len(table)] = table
        held: list[npt.NDArray[Any]] = [np.ascontiguousarray(packed), full]
        super().__init__(functions, dtype, n, held)
        share = self._share
        share.bits, share.codes, share.code_bytes, share.table = bits, address(held[0]), len(packed), address(full)
        self._reference = lambda: tiled.DeltaSteps(packed, bits, table, dtype)


class NativeValueSteps(NativeSteps):
    """A delta that is there as values."""

    kind = VALUES

    def __init__(self, functions: Any, values: Singles, dtype: torch.dtype) -> None:
        """See `decoding_backends.Decoding.values`."""
        own = np.ascontiguousarray(values, np.float32)
        super().__init__(functions, dtype, len(own), [own])
        self._share.values = address(own)
        self._reference = lambda: tiled.ValueSteps(values, dtype)


class GapSteps(NativeSteps):
    """A mask over a vector that is 1 everywhere, by gaps: what is not marked is never looked at."""

    kind = GAPS

    def __init__(self, functions: Any, gaps: Bytes, signs: Bytes, n: int, scale: float, dtype: torch.dtype) -> None:
        """See `decoding_backends.Decoding.gaps`."""
        held = [np.ascontiguousarray(gaps), np.ascontiguousarray(signs)]
        super().__init__(functions, dtype, n, held)
        self.gaps, self.signs, self.scale = gaps, signs, scale
        share = self._share
        share.scale, share.codes, share.code_bytes = scale, address(held[0]), len(gaps)
        share.signs, share.sign_bytes = address(held[1]), len(signs)

    def _by_reference(self, out: Tensor, base: Tensor, start: int, cursor: Cursor) -> None:
        marks = np.zeros(len(out), np.float32)
        plain = Delta.from_buffer_copy(self._share)
        plain.scale = 1  # so that marks become 1 and −1
        where = address(marks)
        self._functions.apply(where, where, start, len(out), FORMS[torch.float32], byref(plain), byref(cursor))
        symbols = np.where(marks < 0, 2, marks).astype(np.uint8)
        reference.apply_mask(
            out, base, torch.ones(len(out), dtype=torch.float32), torch.from_numpy(symbols), self.scale
        )


def _is_plain(tensor: Tensor) -> bool:
    """Whether kernels can take its memory: elements follow each other, and begin where their type may."""
    return tensor.is_contiguous() and not tensor.data_ptr() % tensor.element_size()
