"""Memory that is used again and again: it stays in the cache, and the system need not hand out pages."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["scratch"]

_Kind = TypeVar("_Kind", bound=np.generic)
_local = threading.local()


def scratch(name: str, n: int, kind: type[_Kind] | np.dtype[_Kind]) -> npt.NDArray[_Kind]:
    """This thread's memory of a name and type: n elements, which hold anything.

    Whoever asks for the same name and type again gets the same memory.
    """
    buffers: dict[Any, npt.NDArray[Any]] = _local.__dict__
    key = name, kind
    buffer = buffers.get(key)
    if buffer is None or len(buffer) < n:
        buffer = buffers[key] = np.empty(n, kind)
    return buffer[:n]
