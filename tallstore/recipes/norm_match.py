"""A λ per task without data: the one at which the decoded task vector is as long as the true one.

The error of `tall` falls all the way to λ = 1, while accuracy peaks at 0.4 … 0.6, so the error is the wrong criterion
(design, section 2). A larger λ switches more weights off and shortens the decoded task vector; this picks, from the
paper's grid, the λ whose ‖mt·v‖ is nearest to ‖τt‖.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tallstore.kernels.native import encode
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

    def measure(self, tile: Tile) -> tuple[tuple[int, ...], Tensor]:
        """The tasks, and of each the squared norms: shape (T', 1 + G), float64."""
        vector = self._vector(tile)
        energy = vector.double().square_()
        norms = torch.zeros(len(tile.tasks), 1 + len(self._grid), dtype=torch.float64, device=tile.tau.device)
        if encode.available() and tile.tau.dtype == torch.float32 and tile.tau.device.type == "cpu":
            merged, lams = (tile.base + vector).numpy(), np.array(self._grid, np.float32)
            for row, tau, weights in zip(norms, tile.tau, tile.weights, strict=True):
                encode.norms(row.numpy(), tau.numpy(), weights.numpy(), merged, energy.numpy(), lams)
            return tile.tasks, norms
        for row, tau in zip(norms, tile.tau, strict=True):
            row[0] = tau.double().square_().sum()
        for i, lam in enumerate(self._grid):
            for row, mask in zip(norms, tall_masks(tile, vector, [lam] * len(norms)), strict=True):
                row[1 + i] = mask.double() @ energy
        return tile.tasks, norms.cpu()

    def update(self, tile: tuple[tuple[int, ...], Tensor]) -> None:
        """Add a tile's squares."""
        tasks, norms = tile
        self._true[list(tasks)] += norms[:, 0]
        self._decoded[list(tasks)] += norms[:, 1:]

    def finish(self) -> None:
        """Choose a λ for every task."""
        self.chosen = nearest_norm(self._true.sqrt(), self._decoded.sqrt(), self._grid)


def nearest_norm(true: Tensor, decoded: Tensor, grid: Sequence[float]) -> tuple[float, ...]:
    """Per task the λ whose decoded norm is nearest to the true one; the smaller λ wins a tie.

    `true` has shape (T,), `decoded` (T, len(grid)).
    """
    gaps = (decoded - true.unsqueeze(1)).abs()
    return tuple(grid[min(range(len(grid)), key=row.__getitem__)] for row in gaps.tolist())
