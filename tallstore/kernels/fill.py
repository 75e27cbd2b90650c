"""Where a chunk's elements come from, for kernels that fill, check and change it in one call (`compiled_fill`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.kernels import fast
from tallstore.kernels.cpu import Bytes

__all__ = ["Part", "Source", "Target", "checked", "filled", "gathered", "of_file", "of_planes", "target_of"]

_Array = npt.NDArray[Any]
_NONE: Bytes = np.empty(0, np.uint8)
_NO_STATE = np.empty(0, np.uint64)
_NUMBERS = {torch.float32, torch.float64}
_WORDS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
_ALIGNED = 8
"""Bytes by which kernels take memory."""


class Source(NamedTuple):
    """As the kernels take it: a file, or planes of rotated words, least significant first."""

    item: int
    """Bytes of a word in planes; 0: a file."""
    handle: int
    """The file's descriptor."""
    at: int
    """The file's byte that is the chunk's first."""
    state: _Array
    """Of the hash of what is read."""
    low: Bytes = _NONE
    second: Bytes = _NONE
    third: Bytes = _NONE
    high: Bytes = _NONE

    @property
    def digest(self) -> bytes | None:
        """The xxh3-64 of all that came out of the file, most significant byte first; of planes None."""
        return None if self.item else int(self.state[8]).to_bytes(8, "big")


class Part(NamedTuple):
    """A chunk's place in a tensor."""

    raw: Bytes
    """Its bytes."""
    values: _Array
    """The same memory as numbers: those of float32 and float64, else unsigned words; shape (n,)."""


class Target:
    """A flat CPU tensor that chunks are filled into: its memory as arrays, which are cut quicker than tensors."""

    def __init__(self, out: Tensor) -> None:
        """Of a contiguous tensor."""
        flat, self._item = out.detach(), out.element_size()
        self._values: _Array = (flat if out.dtype in _NUMBERS else flat.view(_WORDS[self._item])).numpy()
        self._raw: Bytes = self._values.view(np.uint8)  # numpy's views take a tenth of the time that torch's take

    def part(self, a: int, b: int) -> Part:
        """Elements [a, b), as far as there are so many."""
        return Part(self._raw[a * self._item : b * self._item], self._values[a:b])


def target_of(out: Tensor) -> Target | None:
    """A flat tensor as a target; None where kernels cannot fill it."""
    alone = out.numel() < 2  # whose stride may be anything
    if fast.fill_kernels() is None or alone or not out.is_contiguous() or out.data_ptr() % _ALIGNED:
        return None
    return Target(out)


def of_file(handle: int, at: int, size: int) -> Source | None:
    """`size` bytes of an open file; None where that needs another way."""
    compiled = fast.fill_kernels()
    if compiled is None or size < compiled.LEAST:
        return None
    return Source(0, handle, at, compiled.begin())


def of_planes(planes: Sequence[Bytes]) -> Source | None:
    """Planes of equal length, rotated words; None where that needs another way."""
    if fast.fill_kernels() is None or len(planes) not in {2, 4}:
        return None
    second, third = planes[1:-1] or (_NONE, _NONE)
    return Source(len(planes), -1, 0, _NO_STATE, planes[0], second, third, planes[-1])


def gathered(out: Bytes, handle: int, first: int, item: int, runs: Sequence[tuple[int, int]]) -> bool:
    """Read runs of a file's elements, one behind the other, in one call. Whether it was done, and all were there.

    Args:
        out: as many bytes as the runs have.
        handle: the file's descriptor.
        first: the file's byte that is element 0's first.
        item: bytes of an element.
        runs: of each its first element and the one behind its last.
    """
    compiled = fast.fill_kernels()
    if compiled is None:
        return False
    return bool(compiled.gather(out, handle, first, item, np.array(runs, np.int64).reshape(-1, 2)) == len(out))


def checked(source: Source, size: int) -> bool:
    """Read and hash all `size` bytes of a file's source, and keep nothing. Whether they were there."""
    check: Callable[..., int] = fast.fill_kernels().check  # type: ignore[union-attr]  # else there were no source
    return check(size, source.handle, source.at, source.state) == size


def filled(kernel: str, part: Part, source: Source, *codes: Any) -> bool:
    """Fill a chunk with a kernel of `compiled_fill`.

    Args:
        kernel: its name.
        part: what the chunk is written to.
        source: of its bytes.
        *codes: what the kernel adds, of a task's chunk; none for `whole`.

    Returns:
        whether all of it was.
    """
    raw, values = part
    into = (values,) if codes else ()
    return bool(getattr(fast.fill_kernels(), kernel)(raw, source, *into, *codes) == len(raw))
