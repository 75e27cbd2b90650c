"""Memory for what is loaded: blocks that were given up are taken again.

New memory costs a load more than all else: each page is made, and emptied, when it is first touched. Who loads one task
after the other, and lets go of each, gets the last one's pages. Meanwhile they are the system's, if it wants them.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

__all__ = ["blocks", "release"]

Bytes = npt.NDArray[np.uint8]
_LEAST = 1 << 22
"""Bytes from which on a block is one of the system's own, with huge pages; smaller ones are numpy's."""
_HUGE = 1 << 21
"""Bytes that blocks are multiples of."""
MOST_KEPT = 1 << 31
"""Bytes that are kept at hand at most."""
_IS_THERE = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")

# Blocks come back wherever the last array over them dies, within another call of these functions perhaps: what adds one
# and what takes one is a single step, and nothing is locked.
_given_up: deque[mmap.mmap] = deque()


def blocks(sizes: Sequence[int]) -> list[Bytes]:
    """Memory of so many bytes each, uint8, which hold anything; their views keep them.

    Of what was given up before, blocks of the same sizes are taken. Where that is not enough, the others go before new
    ones are made: with what lies at hand a process has no more than it had, or needs now.
    """
    if not _IS_THERE or all(size < _LEAST for size in sizes):
        return [np.empty(size, np.uint8) for size in sizes]
    mapped = [-(-size // _HUGE) * _HUGE if size >= _LEAST else 0 for size in sizes]
    there = _taken()
    reused: list[mmap.mmap | None] = [there[size].pop() if there.get(size) else None for size in mapped]
    if all(again is not None or not size for again, size in zip(reused, mapped, strict=True)):
        _given_up.extend(chain.from_iterable(there.values()))
    there.clear()
    return [
        _over(again or _new(whole), size) if whole else np.empty(size, np.uint8)
        for again, whole, size in zip(reused, mapped, sizes, strict=True)
    ]


def release() -> None:
    """Give the system all that lies at hand."""
    _taken()


def _taken() -> dict[int, list[mmap.mmap]]:
    """All that was given up, by size."""
    by_size: dict[int, list[mmap.mmap]] = {}
    with contextlib.suppress(IndexError):
        while True:
            block = _given_up.popleft()
            by_size.setdefault(len(block), []).append(block)
    return by_size


def _new(size: int) -> mmap.mmap:
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size:,} bytes: {error.strerror}") from None
    with contextlib.suppress(OSError):  # a system without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _over(block: mmap.mmap, size: int) -> Bytes:
    array = np.frombuffer(block, np.uint8, size)
    weakref.finalize(array, _give_up, block).atexit = False
    return array


def _give_up(block: mmap.mmap) -> None:
    if sum(map(len, tuple(_given_up))) + len(block) > MOST_KEPT:
        return
    with contextlib.suppress(OSError):
        block.madvise(mmap.MADV_FREE)
        _given_up.append(block)
