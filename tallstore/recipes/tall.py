"""`tall`: the paper's own recipe. The vector is the sum of the task vectors (task arithmetic).

An optional top-k % filter drops each task's small values before the sum, as the reference's configuration does.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tallstore.kernels.rules import Rule
from tallstore.recipes.base import Statistic, Tile
from tallstore.recipes.norm_match import GRID
from tallstore.recipes.ordered_sum import sum_rows
from tallstore.recipes.statistics import Trim
from tallstore.recipes.tallmask import Lambda, TallMasked

__all__ = ["Tall"]


class Tall(TallMasked):
    """v = Στt, masks |τt| > λ·|v − τt|."""

    id = "tall"

    def __init__(self, lam: Lambda | None = None, topk: float = 100, grid: Sequence[float] = GRID) -> None:
        super().__init__(lam, grid)
        self._trim = Trim(topk)

    def vector_statistics(self, n_tasks: int) -> Sequence[Statistic]:
        """The thresholds of the filter."""
        return self._trim.statistics(n_tasks)

    def vector(self, tile: Tile) -> Tensor:
        """The sum over tasks."""
        return sum_rows(self._trim(tile))

    def vector_rule(self, tasks: Sequence[int]) -> Rule:
        """The sum."""
        return Rule(vector="sum", mask="tall", trims=self._trim.least(tasks))
