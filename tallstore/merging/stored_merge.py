"""Merges as an archive keeps them: a few numbers, and what they say of each element, to the last bit.

Spec: `spec/arithmetic.md`. Every operation is one of IEEE 754 in the type that is computed in, in the order given;
torch rounds each of them by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["merged"]


class StoredMerge(Protocol):
    """The numbers: `tallstore.format.relatives.MergeRecipe`."""

    @property
    def method(self) -> str:
        """linear, arithmetic, consensus or ties."""

    @property
    def weights(self) -> Sequence[float]:
        """A factor for each task."""

    @property
    def k(self) -> int:
        """Of consensus."""

    @property
    def thresholds(self) -> Sequence[float]:
        """Of ties."""

    @property
    def sign(self) -> int:
        """Of ties."""

    @property
    def average(self) -> bool:
        """Of ties."""


def merged(merge: StoredMerge, places: Sequence[int], rows: Sequence[Tensor], base: Tensor | None) -> Tensor:
    """The merge of a run of N elements.

    Args:
        merge: the recipe.
        places: for each row, which of the recipe's weights is its own.
        rows: the tasks' elements, each of shape (N,), float32 or float64. They are written to.
        base: the base's, of the same shape and type; None for a linear merge.

    Returns:
        shape (N,), of their type, to be rounded to the tensor's own.
    """
    weights = [torch.tensor(merge.weights[at], dtype=torch.float64).to(rows[0].dtype) for at in places]
    if base is None:
        return _sum([row.mul_(weight) for row, weight in zip(rows, weights, strict=True)])
    moved = [row.sub_(base) for row in rows]
    if merge.method == "ties":
        least = [torch.tensor(merge.thresholds[at], dtype=rows[0].dtype) for at in places]
        return base + _elected(merge, moved, weights, least)
    if merge.method == "consensus":
        users = torch.zeros(len(base), dtype=torch.int32)
        for row in moved:
            users += row != 0
        total = _sum([row * weight for row, weight in zip(moved, weights, strict=True)])
        return torch.where(users >= merge.k, base + total, base)
    return base + _sum([row.mul_(weight) for row, weight in zip(moved, weights, strict=True)])


def _elected(merge: StoredMerge, moved: Sequence[Tensor], weights: Sequence[Tensor], least: Sequence[Tensor]) -> Tensor:
    """TIES merging of differences: small ones are 0, the sign of the sum wins, and what has it counts."""
    kept = [torch.where(row.abs() >= limit, row, 0) for row, limit in zip(moved, least, strict=True)]
    total = _sum([row.clone() for row in kept])
    positive = total >= 0 if merge.sign > 0 else total > 0
    won = [torch.where(positive, row > 0, row < 0) for row in kept]
    summed = _sum([torch.where(on, row * w, 0) for on, row, w in zip(won, kept, weights, strict=True)])
    if not merge.average:
        return summed
    count = torch.zeros(len(total), dtype=torch.int32)
    for on in won:
        count += on
    return summed / count.clamp_(min=1).to(summed.dtype)


def _sum(rows: Sequence[Tensor]) -> Tensor:
    """One after the other, the first of them written to."""
    total = rows[0]
    for row in rows[1:]:
        total += row
    return total
