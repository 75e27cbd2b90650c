"""`mean`: the vector is the mean of the task vectors (weight averaging), the masks are TALL-masks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tallstore.kernels.rules import Rule
from tallstore.recipes.base import Tile
from tallstore.recipes.ordered_sum import sum_rows
from tallstore.recipes.tallmask import TallMasked

__all__ = ["Mean"]


class Mean(TallMasked):
    """v = Στt / T', over the tasks that have the tensor."""

    id = "mean"

    def vector(self, tile: Tile) -> Tensor:
        """The mean over tasks."""
        return sum_rows(tile.tau).div_(max(len(tile.tasks), 1))

    def vector_rule(self, tasks: Sequence[int]) -> Rule:  # noqa: ARG002 - all tasks are treated alike
        """The mean."""
        return Rule(vector="mean", mask="tall")
