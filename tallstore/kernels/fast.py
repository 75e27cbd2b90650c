"""Whether the compiled kernels are there."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from types import ModuleType

__all__ = ["kernels"]


@cache
def kernels() -> ModuleType | None:
    """`tallstore.kernels.compiled`, or None where numba is not installed, or `TALLSTORE_COMPILED` is 0."""
    if os.environ.get("TALLSTORE_COMPILED", "1") == "0" or importlib.util.find_spec("numba") is None:
        return None
    from tallstore.kernels import compiled

    return compiled
