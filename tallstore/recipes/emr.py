"""`emr`: EMR-merging (Huang et al., NeurIPS 2024): elect, mask and rescale.

The vector has the sign of Στt and the largest magnitude among the tasks of that sign; a task's mask is on where its
sign agrees; one scale a task makes the decoded magnitudes sum to the true ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tallstore.kernels.rules import Rule
from tallstore.recipes.base import Recipe, Statistic, Tile
from tallstore.recipes.ordered_sum import sum_rows

__all__ = ["Emr", "elect"]


class Rescale(Statistic):
    """Gathers Σ|τt| and Σ|mt·v| of each task."""

    def __init__(self, n_tasks: int) -> None:
        self._sums = torch.zeros(n_tasks, 2, dtype=torch.float64)
        self.scales = (1.0,) * n_tasks

    def update(self, tile: Tile, /) -> None:
        """Add a tile's magnitudes."""
        vector = elect(tile.tau)
        length = vector.abs().double()
        self._sums = self._sums.to(vector.device)
        for task, tau, mask in zip(tile.tasks, tile.tau, _agrees(tile.tau, vector), strict=True):
            self._sums[task, 0] += tau.abs().double().sum()
            self._sums[task, 1] += mask.double() @ length

    def finish(self) -> None:
        """Divide; a task that agrees nowhere keeps scale 1."""
        self.scales = tuple(true / decoded if decoded else 1.0 for true, decoded in self._sums.tolist())


class Emr(Recipe):
    """v = elected sign · largest magnitude that agrees, masks τt·v > 0, s = Σ|τt| / Σ|mt·v|."""

    id = "emr"

    def __init__(self) -> None:
        self._rescale = Rescale(0)

    def statistics(self, n_tasks: int) -> Sequence[Statistic]:
        """The sums behind the scales."""
        self._rescale = Rescale(n_tasks)
        return (self._rescale,)

    def vector(self, tile: Tile) -> Tensor:
        """The elected vector."""
        return elect(tile.tau)

    def masks(self, tile: Tile, vector: Tensor) -> Tensor:
        """1 where the task's sign is the vector's."""
        return _agrees(tile.tau, vector).view(torch.uint8)

    def rule(self, tasks: Sequence[int], tensor: str) -> Rule:  # noqa: ARG002 - all are treated alike
        """The election."""
        return Rule(vector="elect", mask="agrees")

    def scale(self, task: int, sums: Sequence[float]) -> float:  # noqa: ARG002 - one scale for all chunks
        """Σ|τt| / Σ|mt·v|."""
        return self._rescale.scales[task]


def elect(tau: Tensor) -> Tensor:
    """The sign of Στt with the largest magnitude among values of that sign; 0 where they sum to 0. (T, N) to (N,)."""
    total = sum_rows(tau)
    if not len(tau):
        return total
    return torch.where(total > 0, tau.amax(0), torch.where(total < 0, tau.amin(0), 0))


def _agrees(tau: Tensor, vector: Tensor) -> Tensor:
    # Signs, not the product: that of two small values is 0 in float32.
    return (tau.sign() * vector.sign()) > 0
