"""The choice of masks by the native library, for what is packed most: signs above a threshold, over v = 1.

What is chosen and measured is bit for bit what `chunk.choose` has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tallstore.codecs.base import Bytes, VectorCodec
from tallstore.encoder.metrics import N_SUMS
from tallstore.encoder.tile import TILE, ChunkChoice, TaskRow, spans
from tallstore.kernels import reference
from tallstore.kernels.native import encode
from tallstore.kernels.native_types import FLOAT32
from tallstore.kernels.place_hash import first_of
from tallstore.kernels.rules import Rule
from tallstore.recipes.base import Recipe

__all__ = ["choose"]


def choose(
    base: Tensor,
    rows: Sequence[TaskRow],
    recipe: Recipe,
    codec: VectorCodec,
    device: torch.device,  # noqa: ARG001 - the CPU does it
    tensor: str,
    start: int,
) -> ChunkChoice:
    """What `chunk.choose` does, of rows whose backend is the native one."""
    rule = recipe.rule([row.task for row in rows], tensor)
    assert rule is not None
    n = len(base)
    cuts = spans(n, rows)
    totals = np.zeros((len(rows), N_SUMS))
    packed = []
    for at, row in enumerate(rows):
        skipped = row.form is not None or recipe.levels(row.task, tensor) is not None
        marks = np.zeros(reference.packed_size(recipe.kind, len(row.weights)), np.uint8)
        if not skipped:
            _mark(marks, totals[at], base, row.weights, rule, at, start, _runs(cuts, len(row.weights)))
            _, norm, kept, dot, _ = totals[at]
            totals[at, 0] = norm - 2 * dot + kept
        packed.append(marks)
    stored = torch.ones(1).expand(n)
    return ChunkChoice(codec.encode(stored.numpy()), stored, packed, torch.from_numpy(totals))


def _mark(
    packed: Bytes,
    sums: np.ndarray,
    base: Tensor,
    weights: Tensor,
    rule: Rule,
    at: int,
    start: int,
    cuts: Sequence[tuple[int, int]],
) -> None:
    low, width = np.float32(rule.limits[at]), np.float32(rule.widths[at])
    source = encode.NativeRow(FLOAT32, data=weights.to(torch.float32).contiguous().numpy())
    before = base[: len(weights)].to(weights.dtype).to(torch.float32).contiguous().numpy()
    seen = encode.Seen()
    for a, b in cuts:
        marks = packed[a // 4 : -(-b // 4)] if not a % 4 else np.empty(-(-(b - a) // 4), np.uint8)
        begin = first_of(start + a, rule.seeds[at])
        encode.mark(marks, sums, seen, source, a, before[a:b], float(low), float(width), begin)
        if a % 4:
            whole = np.concatenate([reference.unpack(packed, "signed", a), reference.unpack(marks, "signed", b - a)])
            packed[: -(-b // 4)] = reference.pack(whole, "signed")


def _runs(cuts: Sequence[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    """Tiles of the first n parameters, those that follow each other in one run; only a run's last may be short."""
    runs: list[tuple[int, int]] = []
    whole = False
    for a, b in cuts:
        if b > n:
            break
        if whole:
            runs[-1] = (runs[-1][0], b)
        else:
            runs.append((a, b))
        whole = b - a == TILE
    return runs
