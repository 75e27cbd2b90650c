"""One chunk of one base tensor, for all tasks that have it: weights in, coded bytes out.

This is the unit of work: it needs nothing but the chunk and the recipe, so chunks can be made anywhere, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tallstore.codecs.base import MaskCodec, VectorCodec
from tallstore.codecs.codebook import Codebook
from tallstore.encoder.quality import N_SUMS, scaled, sums
from tallstore.kernels import cpu
from tallstore.recipes.base import Recipe, Tile

DELTA = Codebook("q4", 16)
"""Codec of levels of one's own."""
TILE = 1 << 15
"""Parameters a recipe is given at once: rows of all tasks fit a core's cache."""


@dataclass(frozen=True)
class Row:
    """One task's elements in a chunk: leading ones, fewer than the chunk has where its tensor has fewer rows."""

    task: int
    weights: Tensor
    """θt, flat, in the task's own type."""


@dataclass(frozen=True)
class Made:
    """What becomes of one row."""

    kind: str
    """Of its entry: the masks' kind, or `delta`."""
    data: bytes
    scale: float
    sums: tuple[float, ...]
    """What `quality.sums` measured, at that scale."""


@dataclass(frozen=True)
class Coded:
    """What becomes of a chunk."""

    vector: bytes
    rows: tuple[Made, ...]


def encode_chunk(
    base: Tensor,
    rows: Sequence[Row],
    recipe: Recipe,
    vector_codec: VectorCodec,
    mask_codec: MaskCodec,
    device: torch.device,
    tensor: str = "",
) -> Coded:
    """Choose v and the masks, and code both.

    Args:
        base: θ0, flat, n elements, in the base's own type.
        rows: the tasks, ascending; a row may be shorter than n.
        recipe: its statistics are finished.
        vector_codec: codec of v; the masks are made against what it decodes to.
        mask_codec: codec of the masks.
        device: where the arithmetic runs.
        tensor: the base's name of the tensor.
    """
    n = len(base)
    spans = _spans(n, rows)
    cut = list(tiles(base, rows, device, tensor))
    vector = torch.zeros(n, dtype=torch.float32)
    for (a, b), tile in zip(spans, cut, strict=True):
        if tile.tasks:
            vector[a:b] = recipe.vector(tile).to(torch.float32).cpu()
    data = vector_codec.encode(vector.numpy())
    stored = torch.from_numpy(np.array(vector_codec.decode(data, n))).to(device)
    at = {row.task: i for i, row in enumerate(rows)}
    symbols = [np.zeros(len(row.weights), np.uint8) for row in rows]
    totals = torch.zeros(len(rows), N_SUMS, dtype=torch.float64)
    for (a, b), tile in zip(spans, cut, strict=True):
        if not tile.tasks:
            continue
        found = recipe.masks(tile, stored[a:b].to(tile.tau.dtype))
        measured = sums(tile.tau, stored[a:b].to(tile.tau.dtype), found, recipe.kind).cpu()
        found = found.cpu()
        for row, task in enumerate(tile.tasks):
            symbols[at[task]][a:b] = found[row].numpy()
            totals[at[task]] += measured[row]
    made = []
    for row, marks, total in zip(rows, symbols, totals.tolist(), strict=True):
        bounds = recipe.levels(row.task, tensor)
        if bounds is not None:
            made.append(_levels(base, row, bounds))
            continue
        scale = float(np.float32(recipe.scale(row.task, total)))
        made.append(Made(recipe.kind, mask_codec.encode(marks, recipe.kind), scale, scaled(total, scale)))
    return Coded(data, tuple(made))


def _levels(base: Tensor, row: Row, bounds: Sequence[float]) -> Made:
    """A row with levels of its own: each the mean of the magnitudes between its bounds, all scaled to be unbiased."""
    tau = task_vector(base[: len(row.weights)], row.weights).to(torch.float32).numpy()
    magnitude = np.abs(tau)
    cell = np.searchsorted(np.array(bounds, np.float32), magnitude, side="right")
    cell[magnitude == 0] = 0
    count = np.bincount(cell, minlength=len(bounds) + 1).astype(np.float64)
    total = np.bincount(cell, weights=magnitude, minlength=len(bounds) + 1)
    mean = total[1:] / np.maximum(count[1:], 1)
    norm = float(tau.astype(np.float64) @ tau)
    kept = float((mean * total[1:]).sum())
    mean = (mean * (norm / kept if kept else 1.0)).astype(np.float32)
    # An empty cell has no mean; its table entry is dropped by the codec because nothing points at it.
    table = np.concatenate([np.zeros(1, np.float32), mean, -mean])
    indices = np.where((cell > 0) & (tau < 0), cell + len(bounds), cell).astype(np.uint8)
    data = DELTA.encode_indices(table, indices)
    decoded = torch.from_numpy(DELTA.decode(data, len(tau)))
    measured = sums(torch.from_numpy(tau)[None], decoded, torch.from_numpy(indices != 0).to(torch.uint8)[None], "binary")
    return Made("delta", data, 1.0, tuple(measured[0].tolist()))


def tiles(base: Tensor, rows: Sequence[Row], device: torch.device, tensor: str) -> Iterator[Tile]:
    """The chunk's tiles, in order: runs of at most TILE parameters that the same tasks have."""
    for a, b in _spans(len(base), rows):
        yield _tile(base, rows, a, b, device, tensor)


def task_vector(base: Tensor, weights: Tensor) -> Tensor:
    """τ = θt − θ0, where θ0 is rounded to the task's type first: what did not move is exactly 0."""
    kind = cpu.wide(weights.dtype)
    return weights.to(kind) - base.to(weights.dtype).to(kind)


def _spans(n: int, rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Cut [0, n) into tiles, also where a row ends, so that a tile has the same tasks throughout."""
    cuts = sorted({0, n, *(min(len(row.weights), n) for row in rows)})
    return [(s, min(s + TILE, stop)) for start, stop in zip(cuts, cuts[1:], strict=False) for s in range(start, stop, TILE)]


def _tile(base: Tensor, rows: Sequence[Row], a: int, b: int, device: torch.device, tensor: str) -> Tile:
    here = [row for row in rows if len(row.weights) >= b]
    kind = torch.float64 if any(row.weights.dtype == torch.float64 for row in here) else torch.float32
    start = base[a:b].to(device)
    weights = torch.stack([row.weights[a:b].to(device).to(kind) for row in here]) if here else start.new_zeros(0, b - a)
    if all(row.weights.dtype == base.dtype for row in here):
        tau = weights - start.to(kind)
    else:
        tau = torch.stack([task_vector(start, row.weights[a:b].to(device)).to(kind) for row in here])
    return Tile(tuple(row.task for row in here), start.to(kind), weights, tau, tensor)
