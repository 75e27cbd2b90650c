"""A λ per task without data: the one at which the decoded task vector is as long as the true one.

The error of `tall` falls all the way to λ = 1, while accuracy peaks at 0.4 … 0.6, so the error is the wrong criterion.
A larger λ switches more weights off and shortens the decoded task vector; this picks, from the paper's grid, the λ
whose ‖mt·v‖ is nearest to ‖τt‖.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tallstore.kernels.native import encode
from tallstore.kernels.registry import kernel
from tallstore.recipes.base import Statistic, Tile
from tallstore.recipes.histogram import add_up
from tallstore.recipes.masks import tall_masks

__all__ = ["GRID", "NormMatch", "nearest_norm"]

_BLOCK = 1024
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
        return tile.tasks, squared_norms(tile, vector, self._grid)

    def update(self, condensed: tuple[tuple[int, ...], Tensor], /) -> None:
        """Add a tile's squares."""
        tasks, norms = condensed
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


@kernel
def squared_norms(tile: Tile, vector: Tensor, grid: Sequence[float]) -> Tensor:
    """Of each task ‖τ‖², and ‖m·v‖² at each λ: shape (T', 1 + G), float64, on the CPU.

    Args:
        tile: of T' tasks.
        vector: v, flat, float32.
        grid: λ, G of them.
    """
    energy = vector.double().square_()
    norms = torch.empty(len(tile.tasks), 1 + len(grid), dtype=torch.float64)
    norms[:, 0] = _add_rows(tile.tau.double().square_())
    for i, lam in enumerate(grid):
        norms[:, 1 + i] = _add_rows(torch.where(tall_masks(tile, vector, [lam] * len(norms)), energy, 0.0))
    return norms


def _add_rows(values: Tensor) -> Tensor:
    """Sums of rows, float64, shape (T', N) to (T',), in one order: blocks of 1024 one upon the other, then `add_up`."""
    total = torch.zeros(len(values), _BLOCK, dtype=torch.float64, device=values.device)
    for block in torch.split(values, _BLOCK, dim=1):
        total[:, : block.shape[1]] += block
    return torch.tensor([add_up(row) for row in total.cpu().numpy()], dtype=torch.float64)


@squared_norms.takes
def _(tile: Tile, vector: Tensor, grid: Sequence[float]) -> bool:  # noqa: ARG001 - the kernel's own arguments
    return tile.tau.dtype == torch.float32 and tile.tau.device.type == "cpu"


@squared_norms.native
def _(tile: Tile, vector: Tensor, grid: Sequence[float]) -> Tensor:
    energy, lams = vector.double().square_().numpy(), np.array(grid, np.float32)
    norms, merged = torch.zeros(len(tile.tasks), 1 + len(grid), dtype=torch.float64), (tile.base + vector).numpy()
    for row, tau, weights in zip(norms, tile.tau, tile.weights, strict=True):
        encode.norms(row.numpy(), tau.numpy(), weights.numpy(), merged, energy, lams)
    return norms
