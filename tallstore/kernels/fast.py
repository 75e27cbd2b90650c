"""Whether the compiled kernels are there."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
        with _uninterrupted():
            return importlib.import_module(name)
    except (ImportError, OSError):  # it is there, and cannot be loaded: the same bits come without it
        return None
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect afterwards: numba's own code loses it, and fails of what was left half done."""
    elsewhere = threading.current_thread() is not threading.main_thread()
    if elsewhere or signal.getsignal(signal.SIGINT) is None:  # the main thread gets it; or no Python does
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)
