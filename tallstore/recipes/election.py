"""TIES merging (Yadav et al., NeurIPS 2023) of task vectors: trim, elect a sign per parameter, merge disjointly.

As the reference's `ties_merging`, down to its handling of parameters whose trimmed values sum to 0: they take the sign
that the majority of all parameters has, and a majority of 0 counts as −.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.kernels.rules import Rule, VectorRule
from tallstore.recipes.base import Statistic
from tallstore.recipes.ordered_sum import sum_rows
from tallstore.recipes.statistics import BitHistogram, HasTaskVectors, Trim

__all__ = ["TOPK", "Election", "Majority", "Merge", "disjoint_merge"]

TOPK = 20
"""Per cent of each task vector that the trim leaves, as in the paper."""
Merge = Literal["sum", "mean"]
"""How values of the elected sign are merged: `dis-sum` and `dis-mean` in the reference code."""


class Majority(Statistic):
    """The sign that more of the parameters have: of Σ sign(Σt τt) over the whole zoo."""

    def __init__(self, trim: Trim) -> None:
        self._trim = trim
        self._sum = torch.zeros((), dtype=torch.int64)
        self.sign = 0

    def update(self, tile: HasTaskVectors, /) -> None:
        """Add a tile's signs."""
        signs = sum_rows(self._trim(tile)).sign_().sum(dtype=torch.float64)
        self._sum = self._sum.to(signs.device) + signs.long()

    def finish(self) -> None:
        """Settle the sign: 1, 0 or −1."""
        total = int(self._sum)
        self.sign = (total > 0) - (total < 0)


class Election:
    """TIES merging of the task vectors of any tile: the statistics, then the merged vector."""

    def __init__(self, topk: float = TOPK, merge: Merge = "sum") -> None:
        if merge not in get_args(Merge):
            raise OptionError(f"TIES merges by sum or mean, not {merge!r}")
        self._merge = merge
        self._trim = Trim(topk)
        self._majority = Majority(self._trim)

    def statistics(self, n_tasks: int) -> tuple[BitHistogram | Majority, ...]:
        """The thresholds of the trim, then the majority sign of what is left."""
        self._majority = Majority(self._trim)
        return (*self._trim.statistics(n_tasks), self._majority)

    def __call__(self, tile: HasTaskVectors) -> Tensor:
        """The merged task vector: shape (N,)."""
        return disjoint_merge(self._trim(tile), self._majority.sign, self._merge)

    def rule(self, tasks: Sequence[int]) -> Rule:
        """The merge in the words of a kernel, with TALL-masks."""
        vector: VectorRule = "disjoint sum" if self._merge == "sum" else "disjoint mean"
        return Rule(vector=vector, mask="tall", trims=self._trim.least(tasks), majority=self._majority.sign)


def disjoint_merge(tau: Tensor, majority: int, merge: Merge) -> Tensor:
    """Elect a sign per parameter and merge the values that have it. Takes (T, N), returns (N,)."""
    total = sum_rows(tau)
    positive = (total > 0) | (total == 0) if majority > 0 else total > 0
    merged = torch.where(positive, sum_rows(tau.clamp(min=0)), sum_rows(tau.clamp(max=0)))
    if merge == "sum":
        return merged
    agreeing = torch.where(positive, (tau > 0).sum(0), (tau < 0).sum(0))
    return merged.div_(agreeing.clamp_(min=1))
