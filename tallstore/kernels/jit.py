"""How kernels are compiled. Only modules that need numba import this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["compiled"]


def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled when it is first called, and kept on disk where that can be. It runs without the interpreter's lock."""
    try:
        made: Callable[..., Any] = numba.njit(nogil=True, cache=True, error_model="numpy")(kernel)
    except RuntimeError:  # nowhere to keep it
        made = numba.njit(nogil=True, error_model="numpy")(kernel)
    return made
