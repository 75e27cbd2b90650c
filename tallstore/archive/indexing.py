"""Any index that torch takes of a tensor, as what has to be read of it and what is left to do with that.

`TensorSlice` reads boxes: a range of each dimension. An index (integers, slices, lists, masks, tensors, None, `...`) is
split into the rows and ranges that it touches, and the same index shifted into what was read. Torch itself says which
indices there are, and with which errors: it is asked with a tensor of the same shape that takes no memory.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tallstore.errors import OptionError

__all__ = ["Selection", "select"]

_TOGETHER = 1 << 18
"""Elements between two rows, up to which they are read with what lies in between."""


class _IndexingError(OptionError, IndexError):
    """An index that torch has an IndexError for."""


class _IndexValueError(OptionError, ValueError):
    """An index that torch has a ValueError for."""


class _IndexTypeError(OptionError, TypeError):
    """An index that torch has a TypeError for."""


_ERRORS = {IndexError: _IndexingError, ValueError: _IndexValueError, TypeError: _IndexTypeError}


@dataclass(frozen=True)
class Selection:
    """What to read, and how to index it."""

    rows: tuple[tuple[int, int], ...]
    """Runs of the first dimension that are read, one behind the other; none of a tensor without dimensions."""
    ranges: tuple[tuple[int, int], ...]
    """What is read of the other dimensions."""
    index: Any
    """The index into what was read."""

    def of(self, read: Tensor) -> Tensor:
        """What was asked for, of what was read. Numbers are moved as they are, whatever their type."""
        bits = read.view(_BITS[read.element_size()]) if read.dtype not in _MOVABLE else read
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch said it when it was asked the first time
            return bits[self.index].view(read.dtype)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
_MOVABLE = {torch.float64, torch.float32, torch.bool, torch.complex64, torch.complex128}
"""Types that torch can index; others are seen as integers of their size."""


def select(index: Any, shape: Sequence[int], what: str) -> Selection:
    """Split an index of a tensor.

    Args:
        index: as in `tensor[index]`.
        shape: the tensor's.
        what: how messages name it.

    Raises:
        OptionError: torch has no such index; also an IndexError, ValueError or TypeError, as torch's.
    """
    try:
        torch.zeros((), dtype=torch.uint8).expand(tuple(shape))[index]
    except (IndexError, ValueError, TypeError) as error:
        kind = next(each for each in _ERRORS if isinstance(error, each))
        raise _ERRORS[kind](f"{error} ({what})") from error
    except RuntimeError as error:
        raise _IndexingError(f"{str(error).splitlines()[0]} ({what})") from error
    everything = Selection(tuple((0, size) for size in shape[:1]), tuple((0, size) for size in shape[1:]), index)
    items = _items(index, len(shape))
    if items is None or not shape:
        return everything
    rows, ranges = list(everything.rows), [(0, shape[0]), *everything.ranges]
    left: list[Any] = []
    dimension = 0
    for item in items:
        if item is Ellipsis:
            dimension += len(shape) - sum(map(_dimensions, items))
        elif _dimensions(item) == 1:
            wanted = _wanted(item, shape[dimension])
            if dimension == 0:
                rows = wanted.runs(max(1, _TOGETHER // max(1, math.prod(shape[1:]))))
            ranges[dimension] = wanted.bounds
            left.append(wanted.within([wanted.bounds] if dimension else rows))
            dimension += 1
            continue
        else:
            dimension += _dimensions(item)
        left.append(item)
    return Selection(tuple(rows), tuple(ranges[1:]), tuple(left))


def _items(index: Any, dimensions: int) -> tuple[Any, ...] | None:
    """The parts of an index, lists and arrays as tensors; None where only torch knows what is meant."""
    items: list[Any] = []
    for item in index if isinstance(index, tuple) else (index,):
        plain = _plain(item)
        if plain is _UNKNOWN:
            return None
        items.append(plain)
    if sum(item is Ellipsis for item in items) > 1 or sum(map(_dimensions, items)) > dimensions:
        return None
    return tuple(items)


_UNKNOWN = object()


def _plain(item: Any) -> Any:
    if item is None or item is Ellipsis or isinstance(item, bool | slice):
        return item
    if isinstance(item, Tensor | np.ndarray):
        tensor = torch.as_tensor(item)
        if tensor.dtype in {torch.int64, torch.int32} and not tensor.dim():
            return int(tensor)
        return tensor if tensor.dtype in {torch.bool, torch.int64, torch.int32} and tensor.dim() else _UNKNOWN
    if isinstance(item, list):
        flat = all(isinstance(each, bool) for each in item) or all(type(each) is int for each in item)
        return torch.tensor(item, dtype=None if item else torch.int64) if flat else _UNKNOWN
    try:
        return operator.index(item)
    except TypeError:
        return _UNKNOWN


def _dimensions(item: Any) -> int:
    """How many dimensions of the tensor a part of an index speaks of."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.dim() if isinstance(item, Tensor) and item.dtype == torch.bool else 1


class _Range:
    """A slice of one dimension."""

    def __init__(self, item: slice, size: int) -> None:
        self._places = range(*item.indices(size))

    @property
    def bounds(self) -> tuple[int, int]:
        """The first index, and the one behind the last."""
        return (self._places[0], self._places[-1] + 1) if self._places else (0, 0)

    def runs(self, gap: int) -> list[tuple[int, int]]:
        """Runs that hold all of them, with gaps of more than so many between."""
        if self._places.step <= gap:
            return [self.bounds]
        return [(place, place + 1) for place in self._places] or [(0, 0)]

    def within(self, runs: Sequence[tuple[int, int]]) -> slice:
        """The same, in what was read of such runs."""
        return slice(None, None, self._places.step) if len(runs) == 1 else slice(None)


class _Places:
    """Indices of one dimension."""

    def __init__(self, item: int | Tensor, size: int) -> None:
        self._one = isinstance(item, int)
        places = torch.as_tensor(item)
        places = places.nonzero().reshape(-1) if places.dtype == torch.bool else places.to(torch.int64)
        self._places = places.remainder(max(size, 1))

    @property
    def bounds(self) -> tuple[int, int]:
        """The first index, and the one behind the last."""
        return (int(self._places.min()), int(self._places.max()) + 1) if self._places.numel() else (0, 0)

    def runs(self, gap: int) -> list[tuple[int, int]]:
        """Runs that hold all of them, with gaps of more than so many between."""
        ordered = torch.unique(self._places)
        if not len(ordered):
            return [(0, 0)]
        ends = (ordered.diff() > gap).nonzero().reshape(-1)
        starts = ordered[torch.cat([torch.zeros(1, dtype=torch.int64), ends + 1])]
        stops = ordered[torch.cat([ends, torch.tensor([len(ordered) - 1])])] + 1
        return list(zip(starts.tolist(), stops.tolist(), strict=True))

    def within(self, runs: Sequence[tuple[int, int]]) -> int | Tensor:
        """The same, in what was read of such runs."""
        starts = torch.tensor([start for start, _ in runs])
        lengths = torch.tensor([stop - start for start, stop in runs])
        run = torch.searchsorted(starts, self._places, right=True) - 1
        moved = self._places - (starts - lengths.cumsum(0) + lengths)[run]
        return int(moved) if self._one else moved


def _wanted(item: int | slice | Tensor, size: int) -> _Range | _Places:
    return _Range(item, size) if isinstance(item, slice) else _Places(item, size)
