"""Load the native library and choose its CPU variant, once per process.

The environment variable `TALLSTORE_KERNELS` decides: unset, the best variant that the processor has, or the reference
path if the library cannot be used; `reference`: that path; `native`, or a variant's name: that, or an error.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy.typing as npt

from tallstore.errors import DeviceError, OptionError
from tallstore.kernels.native import build

__all__ = [
    "VARIABLE",
    "Function",
    "Library",
    "address",
    "bind",
    "chosen",
    "describe",
    "held",
    "open_library",
    "why_not",
]

VARIABLE = "TALLSTORE_KERNELS"
Function = tuple[Any, tuple[Any, ...]]
"""Type of the result, and of the arguments, as ctypes names them."""
_BITS = {"plain": 1, "avx2": 2, "avx512": 4, "neon": 8}
"""Variants by the bit of `ts_variants`, each better than those before it."""


@dataclass(frozen=True, kw_only=True, eq=False)  # one is looked up by what it is, before each call
class Library:
    """A library that can be used, and one of its variants."""

    handle: ctypes.CDLL
    variant: str
    there: tuple[str, ...]
    """Variants that this processor has, the best one last."""
    hashes: bool
    """Whether it has XXH3: kernels that check a file's bytes need it."""


_REMEDY = (
    "(python -m tallstore.kernels.native.build builds it anew)"
    if build.SOURCES.is_dir()
    else "(pip install --force-reinstall --no-deps tallstore brings it anew)"
)
_STALE = f"was built from other sources {_REMEDY}"


class _UnusableError(Exception):
    """The library cannot be used; the message says why."""


def chosen() -> Library | None:
    """The library, with the variant in use; None for the reference path.

    Raises:
        OptionError: `TALLSTORE_KERNELS` has a value that is none of those above.
        DeviceError: it asks for a library or a variant that cannot be used here.
    """
    choice: tuple[Library | None] | None = getattr(_held, "choice", None)
    return _choose(os.environ.get(VARIABLE, ""))[0] if choice is None else choice[0]


@contextmanager
def held() -> Iterator[None]:
    """Within this, this thread looks the choice up once: kernels are called thousands of times, each for little."""
    before = getattr(_held, "choice", None)
    _held.choice = before or (_choose(os.environ.get(VARIABLE, ""))[0],)
    try:
        yield
    finally:
        _held.choice = before


_held = threading.local()


def why_not() -> str:
    """Why the reference path is in use; empty where it is not."""
    return _choose(os.environ.get(VARIABLE, ""))[1]


def describe() -> str:
    """Which kernels are in use on the CPU, for people to read."""
    library = chosen()
    return f"kernels: reference ({why_not()})" if library is None else f"kernels: native, {library.variant}"


@cache
def _choose(asked: str) -> tuple[Library | None, str]:
    if asked == "reference":
        return None, f"{VARIABLE}=reference"
    if asked not in {"", "native", *_BITS}:
        raise OptionError(f"{VARIABLE}={asked}: expected reference, native, {', '.join(_BITS)}, or nothing")
    try:
        return open_library(build.library_path(), "" if asked == "native" else asked), ""
    except _UnusableError as error:
        if asked:
            raise DeviceError(f"{VARIABLE}={asked}: {error}") from error
        return None, str(error)


def open_library(path: Path, variant: str = "") -> Library:
    """Load a library; `variant`: by default the best that the processor has."""
    if not path.exists():
        raise _UnusableError("the native library was not built (python -m tallstore.kernels.native.build builds it)")
    _check(path)
    try:
        handle = ctypes.CDLL(str(path))
        handle.ts_stamp.restype, handle.ts_variants.restype = ctypes.c_uint64, ctypes.c_uint32
        handle.ts_set_xxh3.argtypes, handle.ts_set_xxh3.restype = (ctypes.POINTER(_Hashing),), None
    except (OSError, AttributeError) as error:
        raise _UnusableError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error
    if handle.ts_stamp() != build.stamp():
        raise _UnusableError(f"{path} {_STALE}")
    there = [name for name, bit in _BITS.items() if handle.ts_variants() & bit]
    if variant and variant not in there:
        raise _UnusableError(f"this processor has {', '.join(there)}")
    hashing = _xxh3()
    if hashing is not None:
        handle.ts_set_xxh3(ctypes.byref(hashing))
    return Library(handle=handle, variant=variant or there[-1], there=tuple(there), hashes=hashing is not None)


def _check(path: Path) -> None:
    """Raise for a file that must not be loaded: a system's loader takes what is damaged, and crashes."""
    try:
        stamp, digest = build.sum_path(path).read_bytes().decode().split()
        if digest != build.digest(path):
            raise _UnusableError(f"{path} is damaged: its digest differs {_REMEDY}")
        if stamp != f"{build.stamp():016x}":
            raise _UnusableError(f"{path} {_STALE}")
    except (OSError, ValueError) as error:
        raise _UnusableError(f"{path} was not built to the end, or cannot be read {_REMEDY}") from error


def bind(table: Mapping[str, Function], library: Library | None = None) -> Any:
    """The functions of a table, by name, of a library's variant: by default the one in use; None if that is none."""
    library = library or chosen()
    if library is None:
        return None
    bound = SimpleNamespace()
    for name, (result, arguments) in table.items():
        function: Callable[..., Any] = getattr(library.handle, f"ts_{name}_{library.variant}")
        function.restype, function.argtypes = result, arguments  # type: ignore[attr-defined]
        setattr(bound, name, function)
    return bound


def kernels_of(table: Mapping[str, Function], *, needed: bool = False) -> Callable[[], Any]:
    """What gives the functions of a table, of the variant in use when it is called; they are bound once for each.

    `needed`: who asks has seen that there is one. Otherwise None is given for the reference path.
    """
    bound = cache(partial(bind, table))

    def kernels() -> Any:
        library = chosen()
        assert library is not None or not needed, "asked for where it is not available"
        return None if library is None else bound(library)

    return kernels


def address(array: npt.NDArray[Any]) -> int:
    """Where a contiguous array begins. Whoever passes it on keeps the array."""
    try:  # what is asked of a buffer takes a fraction of the time that `ctypes.data` takes
        return _address(_begin(array))
    except (TypeError, ValueError):  # of one that is not contiguous, or that nobody may write to
        if not array.flags.c_contiguous:
            raise ValueError("kernels take contiguous arrays alone") from None
    pointer: int = array.ctypes.data
    return pointer


_address = ctypes.addressof
_begin: Callable[[Any], ctypes.Array[ctypes.c_char]] = (ctypes.c_char * 0).from_buffer


class _Hashing(ctypes.Structure):
    """`ts_hashing` of `src/common.h`: addresses of xxhash's functions, by the names that it exports them under."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("hash", "create", "destroy", "reset", "update", "digest"))
    names = (
        ("XXH3_64bits_dispatch", "XXH3_64bits"),
        ("XXH3_createState",),
        ("XXH3_freeState",),
        ("XXH3_64bits_reset",),
        ("XXH3_64bits_update_dispatch", "XXH3_64bits_update"),
        ("XXH3_64bits_digest",),
    )
    """The first of each that is there is taken: `dispatch` chooses the processor's widest vectors."""


def _xxh3() -> _Hashing | None:
    """XXH3's functions in the package xxhash; None where it does not show them, or another function has their name."""
    import importlib

    try:
        handle = ctypes.CDLL(importlib.import_module("xxhash._xxhash").__file__)
    except (ImportError, OSError):
        return None
    candidates = [
        next((getattr(handle, name) for name in names if hasattr(handle, name)), None) for names in _Hashing.names
    ]
    functions = [function for function in candidates if function is not None]
    if len(functions) < len(candidates) or not _hashes(functions[0]):
        return None
    return _Hashing(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))


def _hashes(function: Any) -> bool:
    """Whether it is the function that its name says."""
    import xxhash

    function.restype, function.argtypes = ctypes.c_uint64, (ctypes.c_char_p, ctypes.c_size_t)
    data = bytes(range(256)) * 3
    return bool(function(data, len(data)) == xxhash.xxh3_64_intdigest(data))
