"""A tensor that is not read yet, for engines that take slices of whole tensors: a rank of several reads its own part.

Engines give each rank all tensors, and its loaders of weights narrow each to the rows or columns that are the rank's,
then copy these. Slices of this tensor are such tensors again; what is done with one beside that reads it. Where the
engine copies to a tensor without memory, to count how much it will be, nothing is read. In inference mode, too, it is
an ordinary tensor, as torch asks of what is made of one that was there before that mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tallstore.archive import TensorSlice
from tallstore.tensors import TORCH, shape_of

__all__ = ["LazyWeight"]

Note = Callable[[tuple[tuple[int, int], ...], Tensor], object]
_aten = torch.ops.aten
_WHOLE: tuple[Any, ...] = (0, None, None, 1)
"""What a slice's dimension, start, stop and step are if they are not said."""


class LazyWeight(Tensor):
    """Ranges of every dimension of a stored tensor."""

    _stored: TensorSlice
    _ranges: tuple[tuple[int, int], ...]
    _note: Note

    @classmethod
    def of(cls, stored: TensorSlice, note: Note) -> Self:
        """The whole of a stored tensor. `note`: told the ranges of each part that is read, and what it is."""
        shape = shape_of(stored.get_dtype(), stored.get_shape())
        return cls._made(stored, tuple((0, size) for size in shape), note)

    @classmethod
    def _made(cls, stored: TensorSlice, ranges: tuple[tuple[int, int], ...], note: Note) -> Self:
        shape = [stop - start for start, stop in ranges]
        with torch.inference_mode(mode=False):
            made: Self = Tensor._make_wrapper_subclass(
                cls, shape, dtype=TORCH[stored.get_dtype()], device=torch.device("cpu")
            )
        made._stored, made._ranges, made._note = stored, ranges, note
        return made

    def read(self) -> Tensor:
        """The tensor itself."""
        value = self._stored[tuple(slice(start, stop) for start, stop in self._ranges)]
        self._note(self._ranges, value)
        return value

    def __repr__(self, **_: Any) -> str:  # type: ignore[override] # a tensor's own has words for its contents
        return f"LazyWeight(shape={list(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        first = args[0] if args else None
        if function is _aten.slice.Tensor and isinstance(first, cls):
            dimension, start, stop, step = (*args[1:], *_WHOLE[len(args) - 1 :])
            if step == 1:
                return first._narrowed(dimension, start, stop)
        if function is _aten.detach.default and isinstance(first, cls):
            return cls._made(first._stored, first._ranges, first._note)
        if function is _aten.copy_.default and isinstance(first, Tensor) and first.is_meta:
            return first
        with torch.inference_mode(mode=False):
            plain = tree_map(lambda each: each.read() if isinstance(each, cls) else each, (args, kwargs or {}))
            return function(*plain[0], **plain[1])

    def _narrowed(self, dimension: int, start: int | None, stop: int | None) -> Self:
        dimension %= max(self.dim(), 1)
        size = self.shape[dimension]
        low, high, _ = slice(start, stop).indices(size)
        first = self._ranges[dimension][0]
        ranges = list(self._ranges)
        ranges[dimension] = (first + low, first + max(low, high))
        return self._made(self._stored, tuple(ranges), self._note)
