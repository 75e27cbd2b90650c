"""How kernels are compiled. Only modules that need numba import this one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.extending import intrinsic

__all__ = ["compiled", "wide"]


def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled when it is first called, and kept on disk where that can be. It runs without the interpreter's lock."""
    try:
        made: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(kernel)
    except RuntimeError:  # nowhere to keep it
        made = numba.njit(nogil=True, error_model="numpy")(kernel)
    # Kernels call those of other files, and numba looks whether the kernel's own file has changed, and at no other.
    kept: Any = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if hasattr(kept, "_source_stamp"):
        kept._source_stamp = _stamp()
    found: Callable[..., Any] = made
    return found


@cache
def _stamp() -> tuple[tuple[str, float, int], ...]:
    """Name, time of the last change and size of every file of kernels: what is kept is of these."""
    found = [(path.name, path.stat()) for path in sorted(Path(__file__).parent.glob("*.py"))]
    return tuple((name, facts.st_mtime, facts.st_size) for name, facts in found)


@compiled
def _begin() -> None:
    """Nothing. Before its first kernel numba gets itself ready, which belongs to loading it."""


_begin()


def _widen(typing: Any) -> Any:  # noqa: ARG001 - numba's interface
    """Vectors of 512 bits in the function that calls it, where the processor has them."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001 - likewise
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own `add` knows a few names
        return context.get_dummy_value()

    return types.none(), code


wide: Any = intrinsic(_widen)
"""Called first in a kernel that computes much for what it reads: LLVM takes vectors half as wide as it could on
processors that were once slowed down by wide ones. Kernels that wait for memory gain nothing."""
