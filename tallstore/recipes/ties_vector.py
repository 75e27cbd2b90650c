"""`ties`: the vector is what TIES merging makes (Yadav et al., NeurIPS 2023), the masks are TALL-masks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tallstore.kernels.rules import Rule
from tallstore.recipes.base import Statistic, Tile
from tallstore.recipes.election import TOPK, Election, Merge
from tallstore.recipes.norm_match import GRID
from tallstore.recipes.tallmask import Lambda, TallMasked

__all__ = ["Ties"]


class Ties(TallMasked):
    """v by TIES, masks |τt| > λ·|v − τt|."""

    id = "ties"

    def __init__(
        self, lam: Lambda | None = None, topk: float = TOPK, merge: Merge = "sum", grid: Sequence[float] = GRID
    ) -> None:
        super().__init__(lam, grid)
        self._election = Election(topk, merge)

    def vector_statistics(self, n_tasks: int) -> Sequence[Statistic]:
        """Those of the merge."""
        return self._election.statistics(n_tasks)

    def vector(self, tile: Tile) -> Tensor:
        """The merged task vector."""
        return self._election(tile)

    def vector_rule(self, tasks: Sequence[int]) -> Rule:
        """The merge's."""
        return self._election.rule(tasks)
