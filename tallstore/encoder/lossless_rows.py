"""Rows that come back bit for bit: coded against the base as the archive has it, whatever the numbers are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.codecs.base import Row
from tallstore.codecs.lattice_model import estimate
from tallstore.encoder.chunk import Made, task_vector
from tallstore.encoder.metrics import agreement
from tallstore.kernels.lattice import LATTICES
from tallstore.recipes.base import Recipe, Tile
from tallstore.tensors import TORCH, as_bytes

__all__ = ["Lossless", "encode_row", "lossless_bits", "may_be_lossless"]

_FLOATS = codecs.LOSSLESS["lattice"]
_ONWARD = codecs.LOSSLESS["drift"]
_CODES = codecs.LOSSLESS["lanes"]
_FEW = {TORCH[name]: lattice for name, lattice in LATTICES.items() if lattice.bits <= 16 and name in TORCH}
"""Types of so few bits that a tensor may take no more without loss than with some."""


def may_be_lossless(dtype: str) -> bool:
    """Whether tensors of a type, by the format's name, may take no more without loss than with some."""
    return TORCH[dtype] in _FEW


def lossless_bits(weights: Tensor, base: Tensor, elements: int, length: int = 0) -> float | None:
    """Bits that coding a tensor against the base takes; None where the type has too many bits for that to be little.

    Args:
        weights: θt, flat: a sample of it.
        base: θ0 in its place, of any type.
        elements: of the tensor.
        length: of the runs that the sample is made of: rows, or their beginnings.
    """
    if base.dtype != weights.dtype or weights.dtype not in _FEW or not weights.numel():
        return None
    word = np.dtype(f"<u{weights.element_size()}")
    sample = as_bytes(weights).view(word), as_bytes(base).view(word)
    return elements * estimate(_FEW[weights.dtype], *sample, elements, length)


class Lossless(Recipe):
    """Chooses nothing: every task's tensor is kept as it is. Only `quality="lossless"` makes one."""

    id = "lossless"
    kind = "signed"
    vector_codec = "ones"
    shared = False

    def vector(self, tile: Tile) -> Tensor:
        """v ≡ 1: no mask is over it."""
        return torch.ones_like(tile.base)

    def masks(self, tile: Tile, vector: Tensor) -> Tensor:  # noqa: ARG002 - there are none
        """All off."""
        return torch.zeros(tile.tau.shape, dtype=torch.uint8, device=tile.tau.device)


def encode_row(
    weights: Tensor, base: Tensor, dtype: str, row: Row, *, measured: bool, origin: Tensor | None = None
) -> tuple[Made, bool] | None:
    """Code one chunk of a task's tensor.

    Args:
        weights: θt, flat.
        base: θ0, flat, as many elements, as it is stored.
        dtype: the type of `weights`, by the format's name.
        row: of the tensor: see `codecs.base.Row`.
        measured: whether ‖τ‖² is wanted, for other rows of the task lose something. Else the parameters that moved
            are counted in its place: of nothing lost, any ratio is 0.
        origin: where `base` is what the task goes on from, what the base itself has: of the same type.

    Returns:
        what becomes of the row, and whether it differs from the base in any bit; None where the base has a NaN and
        another type (see `Reason.BASE_NAN`).
    """
    if base.dtype != weights.dtype:
        if bool(base.isnan().any()):
            return None
        base = base.to(weights.dtype)
    after, before = as_bytes(weights), as_bytes(base)
    word = np.dtype(f"<u{weights.element_size()}")
    differ = after.view(word) != before.view(word)
    on = int(np.count_nonzero(differ))
    norm = float(on)
    if measured and on:
        moved = np.flatnonzero(differ)
        some = (torch.from_numpy(each.view(word)[moved].view(np.uint8)) for each in (before, after))
        tau = task_vector(*(each.view(weights.dtype) for each in some))
        norm = agreement(tau, tau)[1] if bool(tau.isfinite().all()) else norm
    codec = _CODES if dtype not in LATTICES else _FLOATS if origin is None else _ONWARD
    coded = codec.encode(after, before, dtype, row, None if origin is None else as_bytes(origin))
    return Made("lossless", coded, 1.0, (0.0, norm, norm, norm, float(on)), codec.id), on > 0
