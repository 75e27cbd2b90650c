"""A λ per task without data: the one at which the decoded task vector is as long as the true one.

The error of `tall` falls all the way to λ = 1, while accuracy peaks at 0.4 … 0.6, so the error is the wrong criterion
(design, section 2). A larger λ switches more weights off and shortens the decoded task vector; this picks, from the
paper's grid, the λ whose ‖mt·v‖ is nearest to ‖τt‖.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tallstore.recipes.base import Statistic, Tile
from tallstore.recipes.masks import tall_masks

__all__ = ["GRID", "NormMatch", "nearest_norm"]

GRID = (0.2, 0.3, 0.4, 0.5, 0.6)
"""The paper's grid of λ, as in `construct_tall_mask` of the reference code."""


class NormMatch(Statistic):
    """Gathers ‖τt‖² and, for every λ of a grid, ‖mt·v‖²; then chooses."""

    def __init__(self, n_tasks: int, vector: Callable[[Tile], Tensor], grid: Sequence[float] = GRID) -> None:
        self._vector = vector
        self._grid = tuple(grid)
        self._true = torch.zeros(n_tasks, dtype=torch.float64)
        self._decoded = torch.zeros(n_tasks, len(grid), dtype=torch.float64)
        self.chosen: tuple[float, ...] = ()
        """Per task: the λ, once finished."""

    def update(self, tile: Tile) -> None:
        """Add a tile's squares."""
        tasks, device = list(tile.tasks), tile.tau.device
        vector = self._vector(tile)
        energy = vector.double().square_()
        self._true, self._decoded = self._true.to(device), self._decoded.to(device)
        for task, tau in zip(tasks, tile.tau, strict=True):
            self._true[task] += tau.double().square_().sum()
        for i, lam in enumerate(self._grid):
            for task, mask in zip(tasks, tall_masks(tile, vector, [lam] * len(tasks)), strict=True):
                self._decoded[task, i] += mask.double() @ energy

    def finish(self) -> None:
        """Choose a λ for every task."""
        self.chosen = nearest_norm(self._true.sqrt().cpu(), self._decoded.sqrt().cpu(), self._grid)


def nearest_norm(true: Tensor, decoded: Tensor, grid: Sequence[float]) -> tuple[float, ...]:
    """Per task the λ whose decoded norm is nearest to the true one; the smaller λ wins a tie.

    `true` has shape (T,), `decoded` (T, len(grid)).
    """
    gaps = (decoded - true.unsqueeze(1)).abs()
    return tuple(grid[min(range(len(grid)), key=row.__getitem__)] for row in gaps.tolist())
