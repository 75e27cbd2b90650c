"""A chunk's rows, cut into tiles: what recipes, and the backends that carry them out, are given at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tallstore.codecs.base import Bytes
from tallstore.kernels import reference
from tallstore.kernels.native import encode
from tallstore.kernels.native_types import NARROW
from tallstore.kernels.registry import kernel
from tallstore.recipes.base import Tile
from tallstore.recipes.histogram import NARROW_BYTES
from tallstore.tensors import as_bytes

__all__ = ["STATISTIC_TILE", "TILE", "ChunkChoice", "TaskRow", "spans", "task_vector", "tile_type", "tiles"]

STATISTIC_TILE = 1 << 18
"""Parameters a statistic is given at once: it makes few passes, and pays for each call."""
TILE = 1 << 15
"""Parameters a recipe is given at once: rows of all tasks fit a core's cache."""


@dataclass(frozen=True)
class TaskRow:
    """One task's elements in a chunk: leading ones, fewer than the chunk has where its tensor has fewer rows."""

    task: int
    weights: Tensor
    """θt, flat, in the task's own type."""
    form: str | None = None
    """A vector codec: the row is stored as a delta of its own in place of what the recipe makes of it."""
    exact: bool = False
    """Whether what the decoder will lose is wanted too."""


@dataclass(frozen=True)
class ChunkChoice:
    """v and the masks of a chunk."""

    vector: bytes
    """v, coded."""
    stored: Tensor
    """What that decodes to: shape (n,), float32."""
    packed: list[Bytes]
    """The masks, one a row, packed; of rows that get levels of their own whatever."""
    totals: Tensor
    """What `metrics.sums` measured of each row, at scale 1: float64, shape (rows, N_SUMS)."""


def tiles(base: Tensor, rows: Sequence[TaskRow], tensor: str, size: int = TILE, start: int = 0) -> Iterator[Tile]:
    """The chunk's tiles, in order: runs of at most `size` parameters that the same tasks have."""
    for a, b in spans(len(base), rows, size):
        yield _tile(base, rows, a, b, tensor, start)


@kernel
def task_vector(base: Tensor, weights: Tensor) -> Tensor:
    """τ = θt − θ0, where θ0 is rounded to the task's type first: what did not move is exactly 0."""
    kind = reference.wide(weights.dtype)
    return weights.to(kind) - base.to(weights.dtype).to(kind)


@task_vector.takes
def _(base: Tensor, weights: Tensor) -> bool:
    plain = all(each.dim() == 1 and each.is_contiguous() and each.device.type == "cpu" for each in (base, weights))
    return plain and base.dtype == weights.dtype and weights.dtype in NARROW and len(base) == len(weights)


@task_vector.native
def _(base: Tensor, weights: Tensor) -> Tensor:
    after, before = (as_bytes(each).view(np.uint16) for each in (weights, base))
    return torch.from_numpy(encode.changes(after, before, NARROW[weights.dtype]))


def spans(n: int, rows: Sequence[TaskRow], size: int = TILE) -> list[tuple[int, int]]:
    """Cut [0, n) into tiles, also where a row ends, so that a tile has the same tasks throughout."""
    cuts = sorted({0, n, *(min(len(row.weights), n) for row in rows)})
    return [(s, min(s + size, stop)) for start, stop in pairwise(cuts) for s in range(start, stop, size)]


def tile_type(rows: Sequence[TaskRow]) -> torch.dtype:
    """The type that a tile of these rows is computed in."""
    return torch.float64 if any(row.weights.dtype == torch.float64 for row in rows) else torch.float32


def _tile(base: Tensor, rows: Sequence[TaskRow], a: int, b: int, tensor: str, first: int) -> Tile:
    here = [row for row in rows if len(row.weights) >= b]
    kind = tile_type(here)
    start = base[a:b]
    if len(here) == 1:
        weights = here[0].weights[a:b].to(kind)[None]
    else:
        weights = torch.stack([row.weights[a:b].to(kind) for row in here]) if here else start.new_zeros(0, b - a)
    if all(row.weights.dtype == base.dtype for row in here):
        tau = weights - start.to(kind)
    else:
        tau = torch.stack([task_vector(start, row.weights[a:b]).to(kind) for row in here])
    narrow = tuple(row.weights.dtype.itemsize <= NARROW_BYTES for row in here)
    return Tile(tuple(row.task for row in here), start.to(kind), weights, tau, tensor, first + a, narrow=narrow)
