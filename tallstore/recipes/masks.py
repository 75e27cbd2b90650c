"""TALL-masks: a task keeps v where that brings it nearer to its own weights than θ0 is.

Rows are worked on one by one with two rows of scratch: temporaries the size of all tasks cost more in page faults
than the arithmetic does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tallstore.recipes.base import Tile

__all__ = ["nearer_than_zero", "tall_masks"]


def tall_masks(tile: Tile, vector: Tensor, lams: Sequence[float]) -> Tensor:
    """|θ0 − θt| > λ·|θ0 + v − θt|, with a λ for each row: bool (T', N).

    In weight space and with the roundings of the reference's `generate_task_masks`, so that both agree mask for mask.
    """
    masks = torch.empty_like(tile.tau, dtype=torch.bool)
    merged = tile.base + vector
    moved, distance = torch.empty_like(merged), torch.empty_like(merged)
    for mask, tau, weights, lam in zip(masks, tile.tau, tile.weights, lams, strict=True):
        torch.abs(tau, out=moved)
        torch.sub(merged, weights, out=distance).abs_().mul_(lam)
        torch.gt(moved, distance, out=mask)
    return masks


def nearer_than_zero(tau: Tensor, vector: Tensor) -> Tensor:
    """|τ| > |v − τ|, rounded as written: bool, the shape of `tau`, (T', N)."""
    masks = torch.empty_like(tau, dtype=torch.bool)
    length, distance = torch.empty_like(vector), torch.empty_like(vector)
    for mask, row in zip(masks, tau, strict=True):
        torch.abs(row, out=length)
        torch.sub(vector, row, out=distance).abs_()
        torch.gt(length, distance, out=mask)
    return masks
