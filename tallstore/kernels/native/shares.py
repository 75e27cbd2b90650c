"""What a task adds to the base in one chunk, as the native kernels are told of it."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int32, c_int64, c_void_p

__all__ = ["GAPS", "LEVELS", "MASK", "VALUES", "Cursor", "Delta"]

GAPS, MASK, LEVELS, VALUES = 1, 2, 3, 4
"""As `src/steps.h` numbers kinds."""


class Delta(ctypes.Structure):
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


class Cursor(ctypes.Structure):
    """`ts_cursor` of `src/gaps.h`."""

    _fields_ = tuple((name, c_int64) for name in ("at", "mark", "place", "first"))
