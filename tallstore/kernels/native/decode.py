"""The decoder's kernels in the native library (`src/decode.c`, `codes.c`, `merge.c`), as the backend that uses them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_double, c_int32, c_int64, c_void_p
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.kernels import codes, cpu, tiled
from tallstore.kernels.cpu import Bytes
from tallstore.kernels.fill import Part, Source, Target
from tallstore.kernels.forms import FORMS
from tallstore.kernels.native.library import Function, Library, address, bind
from tallstore.kernels.pairs import Pairs, Singles
from tallstore.kernels.scratch import scratch
from tallstore.kernels.steps import TILE, Run, Steps

__all__ = ["GapSteps", "NativeDecoding"]

_GAPS, _MASK, _LEVELS, _VALUES = 1, 2, 3, 4
"""As `src/steps.h` numbers kinds."""
_RUN = 4096
"""Elements of a row that `src/merge.c` has in memory at a time."""
_DTYPES = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
_ALIGNED = 8
"""Bytes by which tensors that are filled begin."""


class _Delta(ctypes.Structure):
    """`ts_delta` of `src/steps.h`."""

    _fields_ = (
        ("kind", c_int32),
        ("bits", c_int32),
        ("n", c_int64),
        ("scale", c_double),
        ("codes", c_void_p),
        ("code_bytes", c_int64),
        ("signs", c_void_p),
        ("sign_bytes", c_int64),
        ("values", c_void_p),
        ("levels", c_void_p),
        ("table", c_void_p),
    )


class _Cursor(ctypes.Structure):
    """`ts_cursor` of `src/gaps.h`."""

    _fields_ = tuple((name, c_int64) for name in ("at", "mark", "place", "first"))


class _Rows(ctypes.Structure):
    """`ts_rows` of `src/merge.c`."""

    _fields_ = (
        ("count", c_int64),
        *((name, c_void_p) for name in ("gaps", "gap_at", "signs", "sign_at", "scales")),
    )


def _of_both(name: str, result: Any, *arguments: Any) -> dict[str, Function]:
    return {f"{name}_{form}": (result, arguments) for form in ("f32", "f64")}


_P, _N, _I = c_void_p, c_int64, c_int32
FUNCTIONS: dict[str, Function] = {
    "apply": (_N, (_P, _P, _N, _N, _I, POINTER(_Delta), POINTER(_Cursor))),
    "fill": (_I, (_P, _N, POINTER(Source), _I, POINTER(_Delta))),
    "check": (_I, (_N, POINTER(Source))),
    "gather": (_I, (_P, _N, _I, _N, _N, _P, _N)),
    "join": (None, (_P, _N, POINTER(Source))),
    "sum_gaps": (None, (_P, _P, _N)),
    "gaps_to_packed": (None, (_P, _N, _P, _N, _P, _N, _I)),
    "spread": (None, (_P, _P, _N, _P, _N, _I)),
    **_of_both("merge_rows", None, _P, _P, _N, _N, _I, c_double, c_double),
    **_of_both("measure_rows", c_double, _P, _P, _N, _N, _I, c_double),
    **_of_both("merge_gaps", None, _P, _N, POINTER(_Rows), _P, _P, _I, c_double, c_double),
    **_of_both("measure_gaps", c_double, _P, _N, POINTER(_Rows), _P, _P, _I, c_double),
    **_of_both("merge_masks", None, _P, _P, _N, _P, _N, _N, _I, _P, _I, _I, c_double, c_double),
}


class NativeSteps(Steps):
    """Steps that the library adds in one pass: see `ts_apply`."""

    kind: ClassVar[int]

    def __init__(self, functions: Any, dtype: torch.dtype, n: int, held: Sequence[npt.NDArray[Any]]) -> None:
        """Of a chunk of n elements; `held`: what the share points to."""
        super().__init__(dtype, *held)
        self._functions, self._dtype, self._held = functions, dtype, held
        self._reference: Callable[[], tiled.Tiled] | None = None
        self._share = _Delta(kind=self.kind, n=n)
        self.fills = dtype in FORMS

    def begin(self) -> Run:
        """As everywhere."""
        at, cursor = 0, _Cursor()

        def run(out: Tensor, base: Tensor) -> None:
            nonlocal at
            self._apply(out, base, at, cursor)
            at += len(out)

        return run

    def fill(self, part: Part, source: Source) -> bool:
        """Unless a NaN of the base needs the reference."""
        form = FORMS[self._dtype]
        return bool(self._functions.fill(part.address, part.nbytes, source, form, byref(self._share)))

    def _apply(self, out: Tensor, base: Tensor, start: int, cursor: _Cursor) -> None:
        """A run from the chunk's element `start` on."""
        if base.dtype == out.dtype and out.dtype in FORMS and _is_plain(out) and _is_plain(base):
            self._in_place(out, base, start, cursor)
            return
        kind = FORMS[cpu.wide(out.dtype)]
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

    def _in_place(self, out: Tensor, base: Tensor, start: int, cursor: _Cursor) -> None:
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

    def _call(self, out: int, base: int, start: int, n: int, form: int, cursor: _Cursor) -> int:
        done: int = self._functions.apply(out, base, start, n, form, byref(self._share), byref(cursor))
        return done

    def _by_reference(self, out: Tensor, base: Tensor, start: int, cursor: _Cursor) -> None:  # noqa: ARG002
        """A run with a NaN: what becomes of its bits."""
        assert self._reference is not None
        self._reference().apply(out, base, start)


class MaskSteps(NativeSteps):
    """A mask over a vector, as packed symbols."""

    kind = _MASK

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
        """See `dispatch.Decoding.mask`."""
        pairs = vector if isinstance(vector, Pairs) else None
        values = None if vector is None or pairs is not None else np.ascontiguousarray(vector, np.float32)
        if (values is not None and len(values) < n) or (pairs is not None and 2 * len(pairs.packed) < n):
            raise ValueError(f"a vector shorter than the chunk's {n} elements")
        held: list[npt.NDArray[Any]] = [np.ascontiguousarray(packed)]
        held += [] if pairs is None else [np.ascontiguousarray(pairs.packed), pairs.table]
        super().__init__(functions, dtype, n, held if values is None else [*held, values])
        share = self._share
        share.bits, share.scale = cpu.SYMBOL_BITS[kind], scale
        share.codes, share.code_bytes = address(held[0]), len(held[0])
        if pairs is not None:
            share.levels, share.table = address(held[1]), address(pairs.table)
        elif values is not None:
            share.values = address(values)
        self._reference = lambda: tiled.MaskSteps(packed, kind, scale, dtype, vector)


class LevelSteps(NativeSteps):
    """A delta by its levels."""

    kind = _LEVELS

    def __init__(self, functions: Any, packed: Bytes, bits: int, n: int, table: Singles, dtype: torch.dtype) -> None:
        """See `dispatch.Decoding.levels`."""
        full = np.zeros(16 if bits == 4 else 256, np.float32)
        full[: len(table)] = table
        held: list[npt.NDArray[Any]] = [np.ascontiguousarray(packed), full]
        super().__init__(functions, dtype, n, held)
        share = self._share
        share.bits, share.codes, share.code_bytes, share.table = bits, address(held[0]), len(packed), address(full)
        self._reference = lambda: tiled.DeltaSteps(packed, bits, table, dtype)


class ValueSteps(NativeSteps):
    """A delta that is there as values."""

    kind = _VALUES

    def __init__(self, functions: Any, values: Singles, dtype: torch.dtype) -> None:
        """See `dispatch.Decoding.values`."""
        own = np.ascontiguousarray(values, np.float32)
        super().__init__(functions, dtype, len(own), [own])
        self._share.values = address(own)
        self._reference = lambda: tiled.ValueSteps(values, dtype)


class GapSteps(NativeSteps):
    """A mask over a vector that is 1 everywhere, by gaps: what is not marked is never looked at."""

    kind = _GAPS

    def __init__(self, functions: Any, gaps: Bytes, signs: Bytes, n: int, scale: float, dtype: torch.dtype) -> None:
        """See `dispatch.Decoding.gaps`."""
        held = [np.ascontiguousarray(gaps), np.ascontiguousarray(signs)]
        super().__init__(functions, dtype, n, held)
        self.gaps, self.signs, self.scale = gaps, signs, scale
        share = self._share
        share.scale, share.codes, share.code_bytes = scale, address(held[0]), len(gaps)
        share.signs, share.sign_bytes = address(held[1]), len(signs)

    def _by_reference(self, out: Tensor, base: Tensor, start: int, cursor: _Cursor) -> None:
        marks = np.zeros(len(out), np.float32)
        plain = _Delta.from_buffer_copy(self._share)
        plain.scale = 1  # so that marks become 1 and −1
        where = address(marks)
        self._functions.apply(where, where, start, len(out), FORMS[torch.float32], byref(plain), byref(cursor))
        symbols = np.where(marks < 0, 2, marks).astype(np.uint8)
        cpu.apply_mask(out, base, torch.ones(len(out)), torch.from_numpy(symbols), self.scale)


class NativeDecoding:
    """The native library's part of decoding; see `dispatch.Decoding`."""

    name = "native"
    by_gaps = True

    def __init__(self, library: Library) -> None:
        """Of a library that can be used."""
        self._functions, self._hashes = bind(FUNCTIONS, library), library.hashes

    # ------------------------------------------------------------------------------------------------------- steps

    def mask(
        self,
        packed: Bytes,
        kind: str,
        n: int,
        scale: float,
        dtype: torch.dtype,
        vector: Singles | Pairs | None = None,
    ) -> Steps:
        """By packed symbols."""
        return MaskSteps(self._functions, packed, kind, n, scale, dtype, vector)

    def gaps(self, gaps: Bytes, signs: Bytes, kind: str, n: int, scale: float, dtype: torch.dtype) -> Steps:  # noqa: ARG002
        """By gaps."""
        return GapSteps(self._functions, gaps, signs, n, scale, dtype)

    def levels(self, packed: Bytes, bits: int, n: int, table: Singles, dtype: torch.dtype) -> Steps:
        """By indices."""
        return LevelSteps(self._functions, packed, bits, n, table, dtype)

    def values(self, values: Singles, dtype: torch.dtype) -> Steps:
        """By values."""
        return ValueSteps(self._functions, values, dtype)

    # ----------------------------------------------------------------------------------------------- whole chunks

    def target(self, out: Tensor) -> Target | None:
        """Of a contiguous tensor of two elements or more."""
        alone = out.numel() < 2  # whose stride may be anything
        return None if alone or not out.is_contiguous() or out.data_ptr() % _ALIGNED else Target(out)

    def file(self, handle: int, at: int) -> Source | None:
        """Where the library has a hash."""
        return Source(handle=handle, at=at) if self._hashes else None

    def planes(self, planes: Sequence[Bytes]) -> Source | None:
        """Of words of two or four bytes."""
        if len(planes) not in {2, 4}:
            return None
        source = Source(item=len(planes), handle=-1)
        source.held = [np.ascontiguousarray(plane) for plane in planes]
        for place, plane in enumerate(source.held):
            source.planes[place] = address(plane)
        return source

    def whole(self, part: Part, source: Source) -> bool:
        """`ts_fill`, nothing added."""
        return bool(self._functions.fill(part.address, part.nbytes, source, 0, None))

    def check(self, source: Source, size: int) -> bool:
        """`ts_check`."""
        return bool(self._functions.check(size, source))

    def gather(self, out: Bytes, handle: int, first: int, item: int, runs: Sequence[tuple[int, int]]) -> bool:
        """`ts_gather`."""
        pairs = np.array(runs, np.int64).reshape(-1, 2)
        return bool(self._functions.gather(address(out), len(out), handle, first, item, address(pairs), len(pairs)))

    # ------------------------------------------------------------------------------------------------------- codes

    def sum_gaps(self, gaps: Bytes) -> tuple[int, int]:
        """`ts_sum_gaps`."""
        totals = np.zeros(2, np.int64)
        self._functions.sum_gaps(address(totals), address(gaps), len(gaps))
        return int(totals[0]), int(totals[1])

    def gaps_to_packed(self, gaps: Bytes, signs: Bytes, kind: str, n: int) -> Bytes:
        """`ts_gaps_to_packed`."""
        out = np.zeros(cpu.packed_size(kind, n), np.uint8)
        own, bits = np.ascontiguousarray(signs), cpu.SYMBOL_BITS[kind]
        self._functions.gaps_to_packed(address(out), n, address(gaps), len(gaps), address(own), len(own), bits)
        return out

    def spread(self, on: Bytes, n: int, rest: Bytes, bits: int) -> Bytes:
        """`ts_spread`."""
        out = np.zeros(-(-n * bits // 8), np.uint8)
        self._functions.spread(address(out), address(on), n, address(rest), len(rest), bits)
        return out

    def join(self, words: npt.NDArray[Any], planes: Sequence[Bytes], *, rotated: bool) -> None:
        """`ts_join` of rotated words of two or four bytes; of others the reference."""
        source = self.planes(planes) if rotated else None
        if source is None:
            codes.join(words, planes, rotated=rotated)
        else:
            self._functions.join(address(words), len(words), source)

    # ----------------------------------------------------------------------------------------------------- merging

    def merge_rows(self, out: npt.NDArray[Any], rows: npt.NDArray[Any], least: int, inner: float, outer: float) -> None:
        """`ts_merge_rows`."""
        self._real("merge_rows", out)(address(out), address(rows), *rows.shape, least, inner, outer)

    def measure_rows(self, squares: npt.NDArray[Any], rows: npt.NDArray[Any], least: int, inner: float) -> float:
        """`ts_measure_rows`: the sum of squares of what that adds, outer factor 1; each row's is added to `squares`."""
        found: float = self._real("measure_rows", rows)(address(squares), address(rows), *rows.shape, least, inner)
        return found

    def merge_gaps(self, out: npt.NDArray[Any], given: Sequence[Any], least: int, inner: float, outer: float) -> None:
        """`ts_merge_gaps`: the same of rows ± s at marks. given: gaps, where each row's begin, signs, likewise, s."""
        rows, room, cursors = _rows(given)
        call = self._real("merge_gaps", out)
        call(address(out), len(out), byref(rows), address(room), address(cursors), least, inner, outer)

    def measure_gaps(self, squares: npt.NDArray[Any], n: int, given: Sequence[Any], least: int, inner: float) -> float:
        """`ts_measure_gaps`: the same of n elements of such rows."""
        rows, room, cursors = _rows(given)
        call = self._real("measure_gaps", given[4])
        found: float = call(address(squares), n, byref(rows), address(room), address(cursors), least, inner)
        return found

    def merge_masks(
        self,
        out: npt.NDArray[Any],
        vector: npt.NDArray[Any],
        packed: Bytes,
        bits: int,
        scales: npt.NDArray[Any],
        whole: bool,
        least: int,
        inner: float,
        outer: float,
    ) -> None:
        """`ts_merge_masks`: the same of rows s·m·v, still packed. packed: shape (T, bytes)."""
        count, size = packed.shape
        own = address(out), address(vector), len(out), address(packed), size, count, bits, address(scales)
        self._real("merge_masks", out)(*own, whole, least, inner, outer)

    def _real(self, name: str, numbers: npt.NDArray[Any]) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self._functions, f"{name}_{_DTYPES[numbers.dtype]}")
        return found


def _rows(given: Sequence[Any]) -> tuple[_Rows, npt.NDArray[Any], npt.NDArray[np.int64]]:
    """What the kernels of gaps take, and the memory that they use: rows, and where each is in its gaps."""
    gaps, gap_at, signs, sign_at, scales = given
    count = len(scales)
    rows = _Rows(count, *(address(each) for each in (gaps, gap_at, signs, sign_at, scales)))
    return rows, np.empty((count, _RUN), scales.dtype), np.zeros((count, 4), np.int64)


def _is_plain(tensor: Tensor) -> bool:
    """Whether kernels can take its memory: elements follow each other, and begin where their type may."""
    return tensor.is_contiguous() and not tensor.data_ptr() % tensor.element_size()
