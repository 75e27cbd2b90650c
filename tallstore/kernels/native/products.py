"""Rows and products of packed rows by the native library (`src/products.c`, `src/own_outputs.c`)."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import Structure, addressof, byref, c_int32, c_int64, c_void_p
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tallstore.kernels.native.library import Function, Library, address, bind
from tallstore.kernels.native_types import FLOAT64, FORMS
from tallstore.kernels.packed_rows import FORMS as PLACES
from tallstore.kernels.packed_rows import TILE_ROWS, PackedRows, Share
from tallstore.kernels.scratch import scratch

__all__ = ["NativeProducts"]

_P, _N, _I = c_void_p, c_int64, c_int32
_TABLE: dict[str, Function] = {
    "packed_rows": (None, (_P, _P, _I, _P, _P, _N, _N, _P, _P)),
    "token_columns": (None, (_P, _P, _N, _P, _N)),
    "packed_product": (None, (_P, _N, _P, _P, _P, _I, _P, _P, _N, _N, _N, _N, _N, _P, _P, _P, _P)),
    "own_outputs": (None, (_P, _N, _P, _P, _P, _P, _N, _N, _N, _N, _P, _P, _P, _P)),
}
_TOKENS, _TOGETHER = 16, 512
"""As `src/packed_walk.h` has them."""
_APART = 16
"""As `src/own_outputs.c` has it."""
_ONCE = 16
"""Tokens up to which the base's outputs are computed tile by tile with what tasks add: the base is read once then."""
_WIDE = 1 << 26
"""Elements of a row from which on places of a tile's marks could take more than 32 bits."""
_FEW = 4
"""Tokens below which they are taken one by one."""
_FINDING = 12
"""What it takes to find a mark, in marks times tokens."""
_SHARED = 1_000_000
"""Marks times tokens from which on threads share the work."""
_WIDE_TILE = 1 << 14
"""Elements of a row up to which a tile of own rows stays in the processor's caches."""
_BY_VECTORS = ("avx2", "avx512")
"""Variants whose tiles are multiplied as quickly as torch multiplies: elsewhere its library may use what C cannot."""
_ORDER = np.zeros((256, 8), np.uint8)
"""Of each byte: the places of its bits that are 1, in order."""
for _byte in range(256):
    _places = [place for place in range(8) if _byte >> place & 1]
    _ORDER[_byte, : len(_places)] = _places


class _Packed(Structure):
    """`ts_packed_rows` of `src/packed_walk.h`."""

    _fields_ = (
        *((name, c_int32) for name in ("form", "bits", "type", "steps")),
        *((name, c_int64) for name in ("rows", "width", "block", "shift")),
        ("places", c_void_p),
        ("levels", c_void_p),
        ("gaps", c_int64),
        ("gap_bits", c_int64),
        ("rare", c_void_p),
        *((name, c_int64) for name in ("rare_count", "rare_gap_bits", "table_bits")),
        ("numbers", c_void_p),
        ("tiles", c_void_p),
        ("tables", c_void_p),
        ("index", c_void_p),
        ("vector", c_void_p),
        ("vector_tables", c_void_p),
        ("order", c_void_p),
        ("vector_bits", c_int64),
    )


class _Run(Structure):
    """`ts_run` of `src/packed_walk.h`."""

    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        *((name, c_int64) for name in ("first", "count", "columns")),
    )


class NativeProducts:
    """Of a library that can be used. See `kernels.products.Products`."""

    name = "native"

    def __init__(self, library: Library) -> None:
        self._functions = bind(_TABLE, library)
        self._variant = library.variant
        self._told: weakref.WeakKeyDictionary[PackedRows, _Packed] = weakref.WeakKeyDictionary()

    def takes(self, packed: PackedRows, base: Tensor) -> bool:
        """Whether types and memory are those of the kernels."""
        form = FORMS.get(base.dtype, FLOAT64)
        known = form != FLOAT64 and packed.dtype in FORMS and packed.dtype != torch.float64
        return known and packed.width < _WIDE and base.is_contiguous()

    def rows(self, out: Tensor, base: Tensor, packed: PackedRows, index: Tensor | None, first: int = 0) -> None:
        """`ts_packed_rows`."""
        places, values = self._room(packed.width)
        self._functions.packed_rows(
            out.data_ptr(),
            base.data_ptr(),
            FORMS[base.dtype],
            byref(self._tell(packed)),
            None if index is None else index.data_ptr(),
            first,
            len(out),
            places,
            values,
        )

    def outputs(self, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Share]) -> Tensor | None:
        """Of few tokens: the base is read once, for its outputs and for what tasks add."""
        same = x.dtype == base.dtype and base.dtype != torch.float64 and base.dtype in FORMS
        if not same or len(x) > _ONCE or not base.is_contiguous():
            return None
        y = x.new_empty(len(x), len(base), dtype=torch.float32)
        self._product(y, x.float().contiguous(), base, bias, runs, whole=True)
        return y

    def add(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Share]) -> None:
        """`ts_packed_product`."""
        self._product(y, x, base, bias, runs, whole=False)

    def _product(
        self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Share], *, whole: bool
    ) -> None:
        """whole: y, which may hold anything, is given the base's outputs too."""
        _check(y, x, base)
        own, size, longest, work = self._runs(runs, x.shape[1], _FEW)
        turned = self._turned(x, own, size)
        share = partial(self._share, y, x, turned, base, bias, own, longest, len(x) if whole else 0)
        work += base.numel() if whole else 0
        _shared(share, y.shape[1], torch.get_num_threads() if work > _SHARED else 1)

    def makes(self, packed: PackedRows, base: Tensor) -> bool:
        """Whether tiles stay in the caches, and are multiplied as quickly as torch does it."""
        quick = self._variant in _BY_VECTORS and base.dtype == torch.float32
        return quick and packed.width <= _WIDE_TILE and self.takes(packed, base)

    def own(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[Share]) -> None:
        """`ts_own_outputs`."""
        _check(y, x, base)
        if not y.dtype == x.dtype == base.dtype == torch.float32:
            raise ValueError(f"own rows are multiplied in float32, not in {base.dtype} and {x.dtype}")
        own, size, _, _ = self._runs(runs, x.shape[1], 0)
        turned = self._turned(x, own, size)
        tokens = sum(each.count for each in own)
        share = partial(self._own_share, y, turned, base, bias, own)
        _shared(share, y.shape[1], torch.get_num_threads() if tokens * base.numel() > _SHARED else 1)

    def _own_share(
        self, y: Tensor, turned: int, base: Tensor, bias: Tensor | None, runs: Any, first: int, last: int
    ) -> None:
        width = base.shape[1]
        places, values = self._room(width)
        self._functions.own_outputs(
            y.data_ptr(),
            y.stride(0),
            turned,
            base.data_ptr(),
            None if bias is None else bias.data_ptr(),
            runs,
            len(runs),
            first,
            last,
            width,
            address(scratch("walks", 5 * len(runs), np.int64)),
            places,
            values,
            address(scratch("tile", TILE_ROWS * (width + _APART), np.float32)),
        )

    def _runs(self, runs: Sequence[Share], width: int, few: int) -> tuple[Any, int, int, int]:
        """What the kernels are told of runs; elements of their columns; the longest run; and the work of its marks.

        few: tokens from which on a run's columns are laid out.
        """
        own = (_Run * len(runs))()
        size = longest = work = 0
        for each, (packed, more, a, b) in zip(own, runs, strict=True):
            n = b - a
            each.first, each.count, each.columns = a, n, -1
            if more is not None:
                each.bias = more.data_ptr()
            longest = max(longest, n)
            if packed is not None:
                each.packed = addressof(self._tell(packed))
                work += packed.marks * (n + _FINDING)
            if n >= few and (packed is not None or not few):
                each.columns = size
                size += width * (n // _TOKENS * _TOKENS + -(-(n % _TOKENS) // 8) * 8)
        return own, size, longest, work

    def _turned(self, x: Tensor, runs: Any, size: int) -> int:
        """Columns of tokens, as runs have them."""
        where = address(scratch("columns", max(size, 1), np.float32))
        if size:
            self._functions.token_columns(where, x.data_ptr(), x.shape[1], runs, len(runs))
        return where

    def _share(
        self,
        y: Tensor,
        x: Tensor,
        turned: int,
        base: Tensor,
        bias: Tensor | None,
        runs: Any,
        longest: int,
        tokens: int,
        first: int,
        last: int,
    ) -> None:
        places, values = self._room(x.shape[1])
        self._functions.packed_product(
            y.data_ptr(),
            y.stride(0),
            x.data_ptr(),
            turned,
            base.data_ptr(),
            FORMS[base.dtype],
            None if bias is None else bias.data_ptr(),
            runs,
            len(runs),
            tokens,
            first,
            last,
            x.shape[1],
            address(scratch("walks", 5 * len(runs), np.int64)),
            places,
            values,
            address(scratch("sums", longest * TILE_ROWS, np.float32)),
        )

    @staticmethod
    def _room(width: int) -> tuple[int, int]:
        size = _TOGETHER + width + 16
        return address(scratch("at", size, np.int32)), address(scratch("values", 2 * size, np.float32))

    def _tell(self, packed: PackedRows) -> _Packed:
        """What the kernels are told of packed rows; made once."""
        told = self._told.get(packed)
        if told is None:
            vector, rare = packed.vector, packed.rare
            told = self._told[packed] = _Packed(
                form=PLACES.index(packed.form),
                bits=packed.bits,
                type=FORMS[packed.dtype],
                steps=packed.steps,
                rows=packed.held,
                width=packed.width,
                block=packed.block,
                shift=packed.chunk.bit_length() - 1,
                places=address(packed.places),
                levels=address(packed.levels),
                gaps=packed.gaps,
                gap_bits=packed.gap_bits,
                rare=None if rare is None else address(rare.fields),
                rare_count=0 if rare is None else rare.count,
                rare_gap_bits=0 if rare is None else rare.gap_bits,
                table_bits=packed.table_bits,
                numbers=None if packed.numbers is None else address(packed.numbers),
                tiles=None if packed.tiles is None else address(packed.tiles),
                tables=address(packed.tables),
                index=address(packed.index),
                vector=None if vector is None else address(vector.codes),
                vector_tables=None if vector is None or vector.tables is None else address(vector.tables),
                order=address(_ORDER),
                vector_bits=0 if vector is None else vector.bits,
            )
        return told


def _check(*tensors: Tensor) -> None:
    if not all(each.is_contiguous() for each in tensors):
        raise ValueError("kernels take contiguous tensors alone")


def _shared(work: Callable[[int, int], None], rows: int, threads: int) -> None:
    """Do work on rows [first, last), shared out among threads by whole tiles; this thread is one of them."""
    step = -(-rows // (threads * TILE_ROWS)) * TILE_ROWS
    cuts = [*range(0, rows, step), rows]
    shares = [(a, b) for a, b in pairwise(cuts) if a < b]
    others = [_pool(os.getpid(), threads).submit(work, *share) for share in shares[1:]]
    if shares:
        work(*shares[0])
    for other in others:
        other.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a process that was forked has no threads
    return ThreadPoolExecutor(threads, "tallstore-serving")
