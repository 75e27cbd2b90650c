"""Whether the compiled kernels are there."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
from functools import cache
from types import ModuleType

__all__ = ["choice_kernels", "encode_kernels", "fill_kernels", "gap_kernels", "kernels", "pack_kernels"]


_BY_POSITION = hasattr(os, "pread")


def kernels() -> ModuleType | None:
    """`tallstore.kernels.compiled`, or None where numba is not installed, or `TALLSTORE_COMPILED` is 0."""
    return _load("tallstore.kernels.compiled")


def encode_kernels() -> ModuleType | None:
    """The same of `tallstore.kernels.compiled_encode`."""
    return _load("tallstore.kernels.compiled_encode")


def gap_kernels() -> ModuleType | None:
    """The same of `tallstore.kernels.compiled_gaps`."""
    return _load("tallstore.kernels.compiled_gaps")


def choice_kernels() -> ModuleType | None:
    """The same of `tallstore.kernels.compiled_choices`."""
    return _load("tallstore.kernels.compiled_choices")


def fill_kernels() -> ModuleType | None:
    """The same of `tallstore.kernels.compiled_fill`; None too where the system does not read by position."""
    return _load("tallstore.kernels.compiled_fill") if _BY_POSITION else None


def pack_kernels() -> ModuleType | None:
    """The same of `tallstore.kernels.compiled_pack`."""
    return _load("tallstore.kernels.compiled_pack") if _BY_POSITION else None


@cache
def _load(name: str) -> ModuleType | None:
    if os.environ.get("TALLSTORE_COMPILED", "1") == "0" or importlib.util.find_spec("numba") is None:
        return None
    # Loading numba makes many objects, none of them garbage, and in each collection all of torch's are looked at again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # it is there, and cannot be loaded: the same bits come without it
        return None
    finally:
        if collecting:
            gc.enable()
