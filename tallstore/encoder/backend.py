"""Who chooses the masks of a chunk's rows: decided here alone, once for the rows that are chosen together."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch

from tallstore.codecs.base import VectorCodec
from tallstore.encoder import select_gpu as on_device
from tallstore.encoder.tile import TaskRow, tile_type
from tallstore.kernels.native import library
from tallstore.kernels.rules import MOST_TASKS, Rule
from tallstore.recipes.base import Recipe

__all__ = ["Backend", "backend_of", "is_by_sign"]


class Backend(Enum):
    """All of them choose the same bits."""

    GPU = "gpu"
    """Triton's kernels, all rows together: whatever has a `Rule`."""
    NATIVE = "native"
    """The library in C, each row by itself: signs above a threshold, over v = 1, in float32."""
    REFERENCE = "reference"
    """The recipe itself, in torch: everything."""


def backend_of(
    rows: Sequence[TaskRow], recipe: Recipe, codec: VectorCodec, device: torch.device, tensor: str
) -> Backend:
    """Who chooses masks of these rows.

    Args:
        rows: of one chunk, chosen together.
        recipe: its statistics are finished.
        codec: of v.
        device: where the arithmetic may run.
        tensor: the base's name of the tensor.
    """
    rule = recipe.rule([row.task for row in rows], tensor) if rows else None
    if on_device.has_kernels(device):
        return Backend.GPU if rule is not None and len(rows) <= MOST_TASKS else Backend.REFERENCE
    if library.chosen() is not None and is_by_sign(rule, codec) and tile_type(rows) == torch.float32:
        return Backend.NATIVE
    return Backend.REFERENCE


def is_by_sign(rule: Rule | None, codec: VectorCodec) -> bool:
    """Whether masks are signs above a threshold, over v = 1."""
    return rule is not None and (rule.vector, rule.mask, codec.id) == ("ones", "above", "ones")
