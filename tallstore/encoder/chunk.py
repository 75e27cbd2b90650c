"""One chunk of one base tensor, for all tasks that have it: weights in, coded bytes out.

This is the unit of work: it needs nothing but the chunk, the recipe and what was found before all chunks, so that these
can be made anywhere, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.codecs.base import Bytes, MaskCodec, VectorCodec
from tallstore.encoder import quantize, select_native
from tallstore.encoder import select_gpu as on_device
from tallstore.encoder.backend import Backend, backend_of
from tallstore.encoder.mark_codes import code_marks
from tallstore.encoder.metrics import N_SUMS, agreement, scaled, sums
from tallstore.encoder.moved_elements import moved_of
from tallstore.encoder.tile import STATISTIC_TILE, TILE, ChunkChoice, TaskRow, spans, task_vector, tile_type, tiles
from tallstore.kernels import reference
from tallstore.kernels.native_types import NARROW
from tallstore.kernels.place_hash import first_of
from tallstore.recipes.base import Recipe
from tallstore.recipes.quantizers import Quantizer

__all__ = [
    "STATISTIC_TILE",
    "TILE",
    "ChunkChoice",
    "CodedChunk",
    "Made",
    "TaskRow",
    "choose",
    "encode_chunk",
    "spans",
    "task_vector",
    "tile_type",
    "tiles",
]


@dataclass(frozen=True)
class Made:
    """What becomes of one row."""

    kind: str
    """Of its entry: the masks' kind, or `delta`."""
    data: bytes
    scale: float
    sums: tuple[float, ...]
    """What `metrics.sums` measured, at that scale."""
    codec: str = ""
    """Of `data`."""
    decoded: Tensor | None = None
    """What the decoder will give back, where that was asked for."""


@dataclass(frozen=True)
class CodedChunk:
    """What becomes of a chunk."""

    vector: bytes
    rows: tuple[Made, ...]


def encode_chunk(
    base: Tensor,
    rows: Sequence[TaskRow],
    recipe: Recipe,
    vector_codec: VectorCodec,
    mask_codec: MaskCodec,
    device: torch.device,
    tensor: str = "",
    start: int = 0,
) -> CodedChunk:
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
    backend = backend_of(rows, recipe, vector_codec, device, tensor)
    chosen = _CHOOSE[backend](base, rows, recipe, vector_codec, device, tensor, start)
    made = []
    for row, marks, total in zip(rows, chosen.packed, chosen.totals.tolist(), strict=True):
        levels = recipe.levels(row.task, tensor)
        if row.form is not None or levels is not None:
            made.append(_delta(base, row, levels, start, recipe.seed(row.task, tensor)))
        else:
            scale = float(np.float32(recipe.scale(row.task, total)))
            decoded = _decoded_mask(base, row, chosen.stored, marks, recipe.kind, scale) if row.exact else None
            width, seed = _dither(recipe, row.task, tensor)
            codec, data = code_marks(mask_codec, marks, recipe.kind, len(row.weights), width, first_of(start, seed))
            made.append(Made(recipe.kind, data, scale, scaled(total, scale), codec, decoded))
    return CodedChunk(chosen.vector, tuple(made))


def _dither(recipe: Recipe, task: int, tensor: str) -> tuple[float, int]:
    """Width and seed of the dither that draws a row's marks; 0 where none does."""
    rule = recipe.rule([task], tensor)
    return (float(np.float32(rule.widths[0])), rule.seeds[0]) if rule is not None and rule.widths else (0.0, 0)


def choose(
    base: Tensor,
    rows: Sequence[TaskRow],
    recipe: Recipe,
    vector_codec: VectorCodec,
    device: torch.device,  # noqa: ARG001 - torch's CPU does it
    tensor: str,
    start: int,
) -> ChunkChoice:
    """Choose v and the masks: the reference of what `select_gpu` and `select_native` do."""
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
        masks = recipe.masks(tile, stored[a:b].to(tile.tau.dtype))
        measured = sums(tile.tau, stored[a:b].to(tile.tau.dtype), masks, recipe.kind)
        for index, task in enumerate(tile.tasks):
            symbols[at[task]][a:b] = masks[index].numpy()
            totals[at[task]] += measured[index]
    return ChunkChoice(data, stored, [reference.pack(marks, recipe.kind) for marks in symbols], totals)


_CHOOSE: Mapping[Backend, Callable[..., ChunkChoice]] = {
    Backend.GPU: on_device.choose,
    Backend.NATIVE: select_native.choose,
    Backend.REFERENCE: choose,
}


def _delta(base: Tensor, row: TaskRow, levels: Quantizer | None, first: int, seed: int) -> Made:
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
        # Of what is exact too, lost bits are those of the scale that is chosen here; they are what makes it right.
        if row.weights.dtype in NARROW and row.weights.dtype == base.dtype and not row.exact:
            before, form = start.to(torch.float32).numpy(), NARROW[row.weights.dtype]
            coded = quantize.encode_moved(moved_of(tau.numpy(), before, first, form), levels, seed)
        else:
            coded = quantize.encode(tau.numpy(), levels, first, seed)
        made = Made("delta", coded.data, 1.0, coded.sums, coded.codec)
        step = torch.from_numpy(coded.values) if row.exact else tau
    if not row.exact:
        return made
    decoded = torch.empty_like(row.weights)
    reference.apply_delta(decoded, start, step)
    return replace(made, decoded=decoded)


def _decoded_mask(base: Tensor, row: TaskRow, vector: Tensor, packed: Bytes, kind: str, scale: float) -> Tensor:
    n = len(row.weights)
    out = torch.empty_like(row.weights)
    reference.apply_mask(out, base[:n], vector[:n], torch.from_numpy(reference.unpack(packed, kind, n)), scale)
    return out
