"""Rows of which a share of the changes is kept, and what there is to know before the shares are chosen."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.codecs.lattice_model import lowest
from tallstore.encoder.chunk import Made, task_vector
from tallstore.encoder.metrics import agreement
from tallstore.kernels.dare import TYPES, Sampling
from tallstore.kernels.lattice import LATTICES
from tallstore.recipes.sampled_changes import LevelCosts, counted
from tallstore.tensors import TORCH, as_bytes

__all__ = ["encode_sampled", "level_costs"]

_CODEC = codecs.SAMPLED["dare"]
_TYPES = {TORCH[name]: name for name in TYPES}


def level_costs(weights: Tensor, base: Tensor, elements: int) -> LevelCosts | None:
    """What a tensor's changes are by the exponents of the base's elements; None for types of which nothing is dropped.

    Args:
        weights: θt, flat: a sample of it.
        base: θ0 in its place, of any type.
        elements: of the tensor.
    """
    if base.dtype != weights.dtype or weights.dtype not in _TYPES or not weights.numel():
        return None
    dtype = _TYPES[weights.dtype]
    lattice = LATTICES[dtype]
    before = as_bytes(base).view(lattice.word)
    change = task_vector(base, weights).abs().numpy()
    if not np.isfinite(change).all():
        return None
    low = lowest(lattice, before)
    return counted(dtype, low, lattice.levels(before, low), change, elements / weights.numel())


def encode_sampled(weights: Tensor, base: Tensor, dtype: str, drop: Sampling, first: int) -> tuple[Made, bool]:
    """Code a share of one chunk of a task's tensor.

    Args:
        weights: θt, flat.
        base: θ0 in its place, as many elements of the same type.
        dtype: the type, by the format's name.
        drop: what is kept.
        first: what draws for the first element: see `place_hash.first_of`.

    Returns:
        what becomes of the row, and whether it differs from the base in any bit.
    """
    word = np.dtype(f"<u{weights.element_size()}")
    after, before = as_bytes(weights).view(word), as_bytes(base).view(word)
    coded = _CODEC.encode(after.view(np.uint8), before.view(np.uint8), dtype, drop, first)
    out = before.copy()
    _CODEC.decode(coded, out.view(np.uint8), dtype)
    on = float(np.count_nonzero(out != before))
    tau = task_vector(base, weights)
    hat = task_vector(base, torch.from_numpy(out.view(np.uint8)).view(weights.dtype))
    error, norm, kept, dot, _ = agreement(tau, hat)
    # Sums are finite where all elements are, the squares of very large ones aside: so few rows are looked at twice.
    if not math.isfinite(norm + kept) and not bool(tau.isfinite().all() and hat.isfinite().all()):
        error, norm, kept, dot = 0.0, on, on, on  # of what is infinite, and comes back bit for bit
    return Made("sampled", coded, 1.0, (error, norm, kept, dot, on), _CODEC.id), not np.array_equal(after, before)
