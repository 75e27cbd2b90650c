"""One chunk of one base tensor, for all tasks that have it: weights in, coded bytes out.

This is the unit of work: it needs nothing but the chunk and the recipe, so chunks can be made anywhere, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.codecs.base import Bytes, MaskCodec, VectorCodec
from tallstore.encoder import leveled
from tallstore.encoder.quality import N_SUMS, agreement, scaled, sums
from tallstore.kernels import cpu, fast
from tallstore.recipes.allocation import Levels
from tallstore.recipes.base import Recipe, Tile

STATISTIC_TILE = 1 << 18
"""Parameters a statistic is given at once: it makes few passes, and pays for each call."""
TILE = 1 << 15
"""Parameters a recipe is given at once: rows of all tasks fit a core's cache."""


@dataclass(frozen=True)
class Row:
    """One task's elements in a chunk: leading ones, fewer than the chunk has where its tensor has fewer rows."""

    task: int
    weights: Tensor
    """θt, flat, in the task's own type."""
    form: str | None = None
    """A vector codec: the row is stored as a delta of its own in place of what the recipe makes of it."""
    exact: bool = False
    """Whether what the decoder will lose is wanted too."""


@dataclass(frozen=True)
class Made:
    """What becomes of one row."""

    kind: str
    """Of its entry: the masks' kind, or `delta`."""
    data: bytes
    scale: float
    sums: tuple[float, ...]
    """What `quality.sums` measured, at that scale."""
    codec: str = ""
    """Of `data`, where it is a delta."""
    decoded: Tensor | None = None
    """What the decoder will give back, where that was asked for."""


@dataclass(frozen=True)
class Coded:
    """What becomes of a chunk."""

    vector: bytes
    rows: tuple[Made, ...]


@dataclass(frozen=True)
class Choice:
    """v and the masks of a chunk."""

    vector: bytes
    """v, coded."""
    stored: Tensor
    """What that decodes to: shape (n,), float32."""
    packed: list[Bytes]
    """The masks, one a row, packed; of rows that get levels of their own whatever."""
    totals: Tensor
    """What `quality.sums` measured of each row, at scale 1: float64, shape (rows, N_SUMS)."""


def encode_chunk(
    base: Tensor,
    rows: Sequence[Row],
    recipe: Recipe,
    vector_codec: VectorCodec,
    mask_codec: MaskCodec,
    device: torch.device,
    tensor: str = "",
    start: int = 0,
) -> Coded:
    """Choose v and the masks, and code both.

    Args:
        base: θ0, flat, n elements, in the base's own type.
        rows: the tasks, ascending; a row may be shorter than n.
        recipe: its statistics are finished.
        vector_codec: codec of v; the masks are made against what it decodes to.
        mask_codec: codec of the masks.
        device: where the arithmetic runs, if there are kernels for it; else the CPU does it.
        tensor: the base's name of the tensor.
        start: where in the tensor the chunk begins.
    """
    from tallstore.encoder import device as kernels
    from tallstore.encoder import quick

    chosen = None
    if kernels.has_kernels(device):
        chosen = kernels.choose(base, rows, recipe, vector_codec, device, tensor, start)
    elif fast.encode_kernels() is not None:
        chosen = quick.choose(base, rows, recipe, vector_codec, tensor, start)
    if chosen is None:
        chosen = choose(base, rows, recipe, vector_codec, tensor, start)
    made = []
    for row, marks, total in zip(rows, chosen.packed, chosen.totals.tolist(), strict=True):
        levels = recipe.levels(row.task, tensor)
        if row.form is not None or levels is not None:
            made.append(_delta(base, row, levels, start, recipe.seed(row.task, tensor)))
        else:
            scale = float(np.float32(recipe.scale(row.task, total)))
            decoded = _decoded_mask(base, row, chosen.stored, marks, recipe.kind, scale) if row.exact else None
            coded = mask_codec.encode_packed(marks, recipe.kind, len(row.weights))
            made.append(Made(recipe.kind, coded, scale, scaled(total, scale), decoded=decoded))
    return Coded(chosen.vector, tuple(made))


def choose(
    base: Tensor, rows: Sequence[Row], recipe: Recipe, vector_codec: VectorCodec, tensor: str, start: int
) -> Choice:
    """Choose v and the masks, on the CPU."""
    n = len(base)
    ranges = spans(n, rows)
    cut = list(tiles(base, rows, tensor, start=start))
    vector = torch.zeros(n, dtype=torch.float32)
    for (a, b), tile in zip(ranges, cut, strict=True):
        if tile.tasks:
            vector[a:b] = recipe.vector(tile).to(torch.float32)
    data = vector_codec.encode(vector.numpy())
    stored = torch.from_numpy(np.array(vector_codec.decode(data, n)))
    at = {row.task: i for i, row in enumerate(rows)}
    symbols = [np.zeros(len(row.weights), np.uint8) for row in rows]
    totals = torch.zeros(len(rows), N_SUMS, dtype=torch.float64)
    for (a, b), tile in zip(ranges, cut, strict=True):
        if not tile.tasks:
            continue
        found = recipe.masks(tile, stored[a:b].to(tile.tau.dtype))
        measured = sums(tile.tau, stored[a:b].to(tile.tau.dtype), found, recipe.kind)
        for index, task in enumerate(tile.tasks):
            symbols[at[task]][a:b] = found[index].numpy()
            totals[at[task]] += measured[index]
    return Choice(data, stored, [cpu.pack(marks, recipe.kind) for marks in symbols], totals)


def _delta(base: Tensor, row: Row, levels: Levels | None, first: int, seed: int) -> Made:
    """A row's own task vector, coded by itself: as its form's codec likes, or else on levels between given bounds."""
    start = base[: len(row.weights)]
    tau = task_vector(start, row.weights).to(torch.float32)
    if row.form is not None:
        codec = codecs.VECTOR[row.form]
        data = codec.encode(tau.numpy())
        step = torch.from_numpy(np.array(codec.decode(data, len(tau))))
        made = Made("delta", data, 1.0, agreement(tau, step), codec.id)
    else:
        assert levels is not None
        coded = leveled.encode(tau.numpy(), levels, first, seed)
        made = Made("delta", coded.data, 1.0, coded.sums, coded.codec)
        step = torch.from_numpy(coded.values) if row.exact else tau
    if not row.exact:
        return made
    decoded = torch.empty_like(row.weights)
    cpu.apply_delta(decoded, start, step)
    return replace(made, decoded=decoded)


def _decoded_mask(base: Tensor, row: Row, vector: Tensor, packed: Bytes, kind: str, scale: float) -> Tensor:
    n = len(row.weights)
    out = torch.empty_like(row.weights)
    cpu.apply_mask(out, base[:n], vector[:n], torch.from_numpy(cpu.unpack(packed, kind, n)), scale)
    return out


def tiles(base: Tensor, rows: Sequence[Row], tensor: str, size: int = TILE, start: int = 0) -> Iterator[Tile]:
    """The chunk's tiles, in order: runs of at most `size` parameters that the same tasks have."""
    for a, b in spans(len(base), rows, size):
        yield _tile(base, rows, a, b, tensor, start)


def task_vector(base: Tensor, weights: Tensor) -> Tensor:
    """τ = θt − θ0, where θ0 is rounded to the task's type first: what did not move is exactly 0."""
    kind = cpu.wide(weights.dtype)
    return weights.to(kind) - base.to(weights.dtype).to(kind)


def spans(n: int, rows: Sequence[Row], size: int = TILE) -> list[tuple[int, int]]:
    """Cut [0, n) into tiles, also where a row ends, so that a tile has the same tasks throughout."""
    cuts = sorted({0, n, *(min(len(row.weights), n) for row in rows)})
    return [(s, min(s + size, stop)) for start, stop in pairwise(cuts) for s in range(start, stop, size)]


def tile_type(rows: Sequence[Row]) -> torch.dtype:
    """The type that a tile of these rows is computed in."""
    return torch.float64 if any(row.weights.dtype == torch.float64 for row in rows) else torch.float32


def _tile(base: Tensor, rows: Sequence[Row], a: int, b: int, tensor: str, first: int) -> Tile:
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
    return Tile(tuple(row.task for row in here), start.to(kind), weights, tau, tensor, first + a)
