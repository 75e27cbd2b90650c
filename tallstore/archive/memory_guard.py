"""Memory that cannot be had is said in our words, and before it is asked for where that can be known.

An honest archive may be larger than a machine, and a small one from a stranger may say that it is: what is asked for is
compared with all the memory that there is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

from tallstore.archive.reader import Place
from tallstore.errors import DeviceError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.humanize import size

__all__ = ["bytes_of", "room_for"]

_FULL = ("can't allocate memory", "not enough memory")
"""How torch says it on the CPU: it has no exception of its own for this."""


def bytes_of(places: Iterable[Place]) -> int:
    """What tensors take when they are decoded."""
    return sum(place.entry.numel * ITEM_BYTES[place.entry.dtype] for place in places if place.entry.dtype is not None)


@contextmanager
def room_for(needed: int, what: str) -> Iterator[None]:
    """Run a block that takes so many bytes.

    Raises:
        DeviceError: this machine has not so much memory, or did not give it.
    """
    there = _memory()
    if there is not None and needed > there:
        raise DeviceError(f"{what}: {size(needed)} of memory are needed, and this machine has {size(there)}: {_REMEDY}")
    try:
        yield
    except MemoryError as error:
        raise DeviceError(f"{what}: {size(needed)} of memory could not be had: {_REMEDY}") from error
    except RuntimeError as error:
        if not any(text in str(error) for text in _FULL):
            raise
        raise DeviceError(f"{what}: {size(needed)} of memory could not be had: {_REMEDY}") from error


_REMEDY = "ask for fewer tensors at once (names=…), or use a machine with more"


@cache
def _memory() -> int | None:
    """Bytes of this machine's memory, where the system says it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
