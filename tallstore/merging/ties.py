"""TIES merging (Yadav et al., NeurIPS 2023) of the decoded task vectors: trim, elect a sign, merge disjointly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tallstore.merging.base import MergeStatistic, MergeTile, Method, checked_alpha
from tallstore.recipes.election import TOPK, Election, Merge

__all__ = ["TiesMerge"]


class TiesMerge(Method):
    """α · what `ties_merging` of the reference makes of s·m·v."""

    id = "ties"
    approximate = True

    def __init__(self, alpha: float = 1.0, topk: float = TOPK, merge: Merge = "sum") -> None:
        self._alpha = checked_alpha(alpha)
        self._election = Election(topk, merge)

    def statistics(self, n_tasks: int) -> Sequence[MergeStatistic]:
        """The thresholds of the trim and the majority sign."""
        return self._election.statistics(n_tasks)

    def delta(self, tile: MergeTile) -> Tensor:
        """The scaled merged task vector."""
        return self._election(tile) * self._alpha
