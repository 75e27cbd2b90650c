"""Random zoos, and a stand-in for the encoder: it feeds a recipe tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tallstore.recipes import Recipe, Tile


def random_zoo(n_tasks: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Base (N,) and fine-tuned weights (T, N)."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=generator) / 20
    return base, base + torch.randn(n_tasks, n, generator=generator) / 500


def tile(base: Tensor, weights: Tensor, tasks: Sequence[int] | None = None) -> Tile:
    tasks = range(len(weights)) if tasks is None else tasks
    return Tile(tuple(tasks), base, weights, weights - base)


def tiles(base: Tensor, weights: Tensor, size: int) -> Iterator[Tile]:
    for start in range(0, len(base), size):
        yield tile(base[start : start + size].contiguous(), weights[:, start : start + size].contiguous())


def gather(recipe: Recipe, base: Tensor, weights: Tensor, size: int = 1 << 20) -> None:
    for statistic in recipe.statistics(len(weights)):
        for each in statistic.condense(map(statistic.measure, tiles(base, weights, size))):
            statistic.update(each)
        statistic.finish()


def encode(recipe: Recipe, base: Tensor, weights: Tensor, size: int = 1 << 20) -> tuple[Tensor, Tensor]:
    """The vector (N,) and the masks (T, N) for a whole zoo."""
    gather(recipe, base, weights, size)
    cut = list(tiles(base, weights, size))
    vectors = [recipe.vector(each) for each in cut]
    masks = [recipe.masks(each, vector) for each, vector in zip(cut, vectors, strict=True)]
    return torch.cat(vectors), torch.cat(masks, 1)


def reconstructed(vector: Tensor, masks: Tensor) -> Tensor:
    """m·v, shape (T, N)."""
    return vector * (masks == 1) - vector * (masks == 2)
