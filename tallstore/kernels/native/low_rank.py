"""The kernel of products of thin matrices (`src/low_rank.c`) as a function of arrays: see `kernels.low_rank`."""

from __future__ import annotations

from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels.native import library
from tallstore.kernels.native.library import Function, address

__all__ = ["FORMS", "add_product"]

_P, _I, _N = c_void_p, c_int32, c_int64
_TABLE: dict[str, Function] = {"add_product": (None, (_P, _N, _P, _P, _I, _N, _N, _N, c_float, _I))}
FORMS = {"F32": 0, "BF16": 1, "F16": 2}
"""As `src/common.h` numbers them; `native_types`, which does too, needs torch."""
_kernels = library.kernels_of(_TABLE, needed=True)


def add_product(
    dtype: str,
    words: npt.NDArray[Any],
    scale: np.float32,
    rows: npt.NDArray[np.int8],
    shifts: npt.NDArray[np.uint8],
    columns: npt.NDArray[np.int8],
    gone: int,
) -> None:
    """Add scale · (2^shifts · rows).T @ columns to words: `rows` has the shape (rank, R), `columns` (rank, width)."""
    rank, height = rows.shape
    across = np.zeros((height, rank + rank % 2), np.int16)
    np.left_shift(rows.T, shifts, out=across[:, :rank], dtype=np.int16)
    along = np.ascontiguousarray(columns)
    arrays = (address(words), len(words), address(across), address(along))
    shape = (*rows.shape, columns.shape[1], gone)
    _kernels().add_product(*arrays, *shape, float(scale), FORMS[dtype])
