"""What one task has in the place of one of the model's tensors, and how much memory that takes.

Three kinds: stored (a head, biases, norms), packed rows over the base's, and what cannot be computed from any packed
form, which is decoded when a layer needs it and kept on a shelf of stated size.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from tallstore.kernels.products import Rows, write_rows
from tallstore.serving.low_rank import LowRankRows

__all__ = ["DecodedTensor", "OwnTensor", "RowsTensor", "Shelf", "StoredTensor"]


class OwnTensor(ABC):
    """A task's own values of a tensor; where a task has the base's there is none."""

    shape: tuple[int, ...]

    @property
    @abstractmethod
    def memory(self) -> tuple[Tensor | Rows, ...]:
        """What is held for it."""

    @abstractmethod
    def whole(self, base: Tensor) -> Tensor:
        """All of it, in the type of `base`, the model's tensor. Not to be written to."""

    def rows(self, base: Tensor, index: Tensor) -> Tensor:
        """Rows by number: shape (n, …)."""
        return self.whole(base)[index]


@dataclass(frozen=True, eq=False)
class StoredTensor(OwnTensor):
    """Held as it is."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the tensor."""
        return tuple(self.values.shape)

    @property
    def memory(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def whole(self, base: Tensor) -> Tensor:
        return self.values if self.values.dtype == base.dtype else self.values.to(base.dtype)


@dataclass(frozen=True, eq=False)
class RowsTensor(OwnTensor):
    """Packed: the leading rows as what is added to the base's, the others as they are."""

    shape: tuple[int, ...]
    packed: Rows
    tail: Tensor | None = None
    """The rows behind, in the model's type: shape (n, …)."""
    added: LowRankRows | None = None
    """What is added to the leading rows first; then the model's type is float32."""

    @property
    def memory(self) -> tuple[Tensor | Rows, ...]:
        added = () if self.added is None else self.added.tensors
        return (self.packed, *added, *(() if self.tail is None else (self.tail,)))

    def whole(self, base: Tensor) -> Tensor:
        out = torch.empty(self.shape, dtype=base.dtype, device=base.device)
        flat, covered = out.view(self.shape[0], -1), self.packed.rows
        start = _flat(base)[:covered]
        if self.added is not None:
            start = start.clone(memory_format=torch.contiguous_format)
            self.added.add_all(start)
        write_rows(flat[:covered], start, self.packed)
        if self.tail is not None:
            out[covered:] = self.tail
        return out

    def rows(self, base: Tensor, index: Tensor) -> Tensor:
        covered = self.packed.rows
        inside = index if self.tail is None else index.clamp(max=covered - 1)
        out = torch.empty(len(index), *self.shape[1:], dtype=base.dtype, device=base.device)
        write_rows(out.view(len(index), -1), _flat(base), self.packed, inside)
        if self.added is not None:
            self.added.add_rows(out.view(len(index), -1), inside)
        if self.tail is not None:
            behind = index >= covered
            out[behind] = self.tail[index[behind] - covered]
        return out


@dataclass(frozen=True, eq=False)
class DecodedTensor(OwnTensor):
    """Decoded when it is needed."""

    shape: tuple[int, ...]
    make: Callable[[Tensor], Tensor]
    """The tensor, given the model's."""
    shelf: Shelf
    held: tuple[Tensor, ...] = ()
    """What it is decoded from."""

    @property
    def memory(self) -> tuple[Tensor, ...]:
        return self.held

    def whole(self, base: Tensor) -> Tensor:
        return self.shelf.get(self, lambda: self.make(base.detach()))


class Shelf:
    """Decoded tensors, those that were used last, up to a number of bytes. Safe to use from several threads."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """What is held now."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What is held under a key; else it is made, and held if there is room for it."""
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                self._held.move_to_end(key)
                return held
        made = make()
        size = made.numel() * made.element_size()
        if size > self.room:
            return made
        with self._lock:
            if key not in self._held:
                self._held[key] = made
                self._bytes += size
            while self._bytes > self.room:
                _, dropped = self._held.popitem(last=False)
                self._bytes -= dropped.numel() * dropped.element_size()
        return made


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(tensor.shape[0], -1)
