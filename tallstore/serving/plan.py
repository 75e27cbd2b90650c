"""What a layer of a mixed batch knows of the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from tallstore.serving.rows import BASE, BatchRows, Call
from tallstore.serving.tensors import OwnTensor

__all__ = ["Plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a layer knows."""

    name: str
    """Its dotted name in the model."""
    call: Call
    tensors: Mapping[str, list[OwnTensor | None]]
    """By the names of its parameters and buffers, of those that any task has otherwise: each task's."""
    tables: dict[str, Tensor] = field(default_factory=dict)
    """Of small tensors: the base's, and behind it each task's. Tasks' own are parts of it from then on."""

    kept: dict[int, Any] = field(default_factory=dict)
    """Of each task: what a layer makes of its tensors for every call, where that is no memory of its own."""

    @property
    def nbytes(self) -> int:
        """Memory of what was made, without what tasks hold."""
        of_base = {name: 1 + sum(own is None for own in self.tensors[name]) for name in self.tables}
        return sum(n * self.tables[name][0].numel() * self.tables[name].element_size() for name, n in of_base.items())

    @property
    def rows(self) -> BatchRows:
        """Of the batch that runs."""
        return self.call.rows(self.name)

    @cached_property
    def outputs(self) -> frozenset[int]:
        """Numbers of rows that tasks' own weights have."""
        return frozenset(own.shape[0] for own in self.tensors.get("weight", ()) if own is not None)

    def own(self, name: str, task: int) -> OwnTensor | None:
        """A task's tensor, if it is not the base's."""
        held = self.tensors.get(name)
        return None if held is None or task == BASE else held[task]

    def value(self, name: str, task: int, base: Tensor) -> Tensor:
        """A task's tensor, or the base's."""
        own = self.own(name, task)
        return base if own is None else own.whole(base)
