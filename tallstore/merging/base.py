"""What a merging method is: one model for all tasks, from what an archive holds.

An archive holds v and the masks, not the task vectors. A method that needs those works on their decoded form s·m·v
and is marked `approximate`. Like a recipe, a method is pure arithmetic on tiles and may ask for statistics first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.recipes.ordered_sum import sum_rows

__all__ = ["ALPHAS", "MergeStatistic", "MergeTile", "Method", "SumOf", "checked_alpha"]

ALPHAS = tuple(i / 10 for i in range(1, 11))
"""The paper's range of α: what its code tries on validation data."""
_LARGEST = torch.finfo(torch.float32).max
"""Beyond it what is merged would be infinite."""


@dataclass(frozen=True)
class MergeTile:
    """A run of N parameters of one tensor, for the T' ≤ T tasks that have it, on one device."""

    tasks: tuple[int, ...]
    """Indices into the zoo's task list, ascending."""
    vector: Tensor
    """v, shape (N,), float32 (float64 where the tensor is)."""
    masks: Tensor
    """Shape (T', N), uint8: 0, 1 (+) or 2 (−)."""
    scales: tuple[float, ...]
    """s of each row, exactly a float32."""

    @cached_property
    def tau(self) -> Tensor:
        """The decoded task vectors s·m·v: shape (T', N), dtype of v."""
        scales = torch.tensor(self.scales, dtype=self.vector.dtype, device=self.vector.device)
        kept = scales.unsqueeze(1) * self.vector
        return torch.where(self.masks == 2, -kept, torch.where(self.masks == 1, kept, 0))

    @property
    def total(self) -> Tensor:
        """The sum of the decoded task vectors: shape (N,), dtype of v."""
        return sum_rows(self.tau)


class SumOf(NamedTuple):
    """α · v, or α · Στ of the decoded task vectors, of those weights that at least k tasks use; 0 of the others."""

    k: int
    alpha: float
    source: Literal["vector", "tasks"]


class MergeStatistic(Protocol):
    """A figure over whole task vectors: see `recipes.base.Statistic`."""

    def update(self, tile: MergeTile, /) -> None:
        """Take one tile into account."""

    def finish(self) -> None:
        """Called once after the last tile."""


class Method(ABC):
    """How a merged model is made."""

    id: ClassVar[str]
    """The name on the command line."""
    approximate: bool = False
    """Whether decoded task vectors stand in for the true ones."""

    def statistics(self, n_tasks: int) -> Sequence[MergeStatistic]:  # noqa: ARG002 - part of the interface
        """The statistics this method needs, in order."""
        return ()

    def of_sums(self) -> SumOf | None:
        """What this adds up, where it is a sum of what several tasks use; None of methods that are something else.

        Such may be computed in one pass, where there is a kernel for it.
        """
        return None

    @abstractmethod
    def delta(self, tile: MergeTile) -> Tensor:
        """What is added to θ0, α included: shape (N,), dtype of v."""


def checked_alpha(alpha: float) -> float:
    """α, if it is a number that a float32 can hold."""
    if not (isinstance(alpha, int | float) and abs(alpha) <= _LARGEST):
        raise OptionError(f"α must be a finite number that a float32 can hold, not {alpha!r}")
    return float(alpha)
