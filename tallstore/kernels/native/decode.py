"""The decoder's kernels in the native library (`src/decode.c`, `codes.c`, `merge.c`), as the backend that uses them.

The steps of a chunk are in `native.steps`, which is loaded with the first that are asked for: it needs torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_double, c_int32, c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels import codes, reference
from tallstore.kernels.fill import ChunkMemory, FillSource, Target
from tallstore.kernels.native.library import Function, Library, address, bind
from tallstore.kernels.native.shares import Cursor, Delta
from tallstore.kernels.pairs import Pairs, Singles
from tallstore.kernels.reference import Bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tallstore.kernels.steps import Steps

__all__ = ["NativeDecoding"]

_RUN = 4096
"""Elements of a row that `src/merge.c` has in memory at a time."""
_DTYPES = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
_ALIGNED = 8
"""Bytes by which tensors that are filled begin."""


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
    "apply": (_N, (_P, _P, _N, _N, _I, POINTER(Delta), POINTER(Cursor))),
    "fill": (_I, (_P, _N, POINTER(FillSource), _I, POINTER(Delta))),
    "check": (_I, (_N, POINTER(FillSource))),
    "gather": (_I, (_P, _N, _I, _N, _N, _P, _N)),
    "join": (None, (_P, _N, POINTER(FillSource))),
    "sum_gaps": (None, (_P, _P, _N)),
    "gaps_to_packed": (None, (_P, _N, _P, _N, _P, _N, _I)),
    "spread": (None, (_P, _P, _N, _P, _N, _I)),
    **_of_both("merge_rows", None, _P, _P, _N, _N, _I, c_double, c_double),
    **_of_both("measure_rows", c_double, _P, _P, _N, _N, _I, c_double),
    **_of_both("merge_gaps", None, _P, _N, POINTER(_Rows), _P, _P, _I, c_double, c_double),
    **_of_both("measure_gaps", c_double, _P, _N, POINTER(_Rows), _P, _P, _I, c_double),
    **_of_both("merge_masks", None, _P, _P, _N, _P, _N, _N, _I, _P, _I, _I, c_double, c_double),
}


class NativeDecoding:
    """The native library's part of decoding; see `decoding_backends.Decoding`."""

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
        from tallstore.kernels.native.steps import NativeMaskSteps

        return NativeMaskSteps(self._functions, packed, kind, n, scale, dtype, vector)

    def gaps(self, gaps: Bytes, signs: Bytes, kind: str, n: int, scale: float, dtype: torch.dtype) -> Steps:  # noqa: ARG002
        """By gaps."""
        from tallstore.kernels.native.steps import GapSteps

        return GapSteps(self._functions, gaps, signs, n, scale, dtype)

    def levels(self, packed: Bytes, bits: int, n: int, table: Singles, dtype: torch.dtype) -> Steps:
        """By indices."""
        from tallstore.kernels.native.steps import LevelSteps

        return LevelSteps(self._functions, packed, bits, n, table, dtype)

    def values(self, values: Singles, dtype: torch.dtype) -> Steps:
        """By values."""
        from tallstore.kernels.native.steps import NativeValueSteps

        return NativeValueSteps(self._functions, values, dtype)

    # ----------------------------------------------------------------------------------------------- whole chunks

    def target(self, out: Tensor) -> Target | None:
        """Of a contiguous tensor of two elements or more."""
        alone = out.numel() < 2  # whose stride may be anything
        return None if alone or not out.is_contiguous() or out.data_ptr() % _ALIGNED else Target(out)

    def file(self, handle: int, at: int) -> FillSource | None:
        """Where the library has a hash."""
        return FillSource(handle=handle, at=at) if self._hashes else None

    def planes(self, planes: Sequence[Bytes]) -> FillSource | None:
        """Of words of two or four bytes."""
        if len(planes) not in {2, 4}:
            return None
        source = FillSource(item=len(planes), handle=-1)
        source.held = [np.ascontiguousarray(plane) for plane in planes]
        for place, plane in enumerate(source.held):
            source.planes[place] = address(plane)
        return source

    def whole(self, part: ChunkMemory, source: FillSource) -> bool:
        """`ts_fill`, nothing added."""
        return bool(self._functions.fill(part.address, part.nbytes, source, 0, None))

    def check(self, source: FillSource, size: int) -> bool:
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
        out = np.zeros(reference.packed_size(kind, n), np.uint8)
        own, bits = np.ascontiguousarray(signs), reference.SYMBOL_BITS[kind]
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
        error: float = self._real("measure_rows", rows)(address(squares), address(rows), *rows.shape, least, inner)
        return error

    def merge_gaps(self, out: npt.NDArray[Any], given: Sequence[Any], least: int, inner: float, outer: float) -> None:
        """`ts_merge_gaps`: the same of rows ± s at marks. given: gaps, where each row's begin, signs, likewise, s."""
        rows, room, cursors = _rows(given)
        call = self._real("merge_gaps", out)
        call(address(out), len(out), byref(rows), address(room), address(cursors), least, inner, outer)

    def measure_gaps(self, squares: npt.NDArray[Any], n: int, given: Sequence[Any], least: int, inner: float) -> float:
        """`ts_measure_gaps`: the same of n elements of such rows."""
        rows, room, cursors = _rows(given)
        call = self._real("measure_gaps", given[4])
        error: float = call(address(squares), n, byref(rows), address(room), address(cursors), least, inner)
        return error

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
        function: Callable[..., Any] = getattr(self._functions, f"{name}_{_DTYPES[numbers.dtype]}")
        return function


def _rows(given: Sequence[Any]) -> tuple[_Rows, npt.NDArray[Any], npt.NDArray[np.int64]]:
    """What the kernels of gaps take, and the memory that they use: rows, and where each is in its gaps."""
    gaps, gap_at, signs, sign_at, scales = given
    count = len(scales)
    rows = _Rows(count, *(address(each) for each in (gaps, gap_at, signs, sign_at, scales)))
    return rows, np.empty((count, _RUN), scales.dtype), np.zeros((count, 4), np.int64)
