"""Rows of which a share of the changes is kept, and what there is to know before the shares are chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.codecs.dare import Added
from tallstore.codecs.lattice_model import lowest
from tallstore.encoder.chunk import Made, task_vector
from tallstore.encoder.metrics import agreement
from tallstore.kernels.dare import TYPES, as_float, as_words
from tallstore.kernels.lattice import LATTICES
from tallstore.kernels.place_hash import first_of
from tallstore.recipes.low_rank import SHARES_OF_RMS, common_part, spectrum_of
from tallstore.recipes.sampled_changes import LevelCosts, SampledPrecision, counted
from tallstore.tensors import TORCH, as_bytes

__all__ = ["encode_sampled", "level_costs"]

_CODEC = codecs.SAMPLED["dare"]
_TYPES = {TORCH[name]: name for name in TYPES}
_FEW = 1 << 12
"""Elements that mostly tell whether any moved."""


def level_costs(weights: Tensor, base: Tensor, shape: tuple[int, int], columns: int, chunk: int) -> list[LevelCosts]:
    """What a tensor's changes are by the exponents of the base's elements; and what is left where some are told first.

    Args:
        weights: θt, flat: rows of it, or what they begin with.
        base: θ0 in its place, of any type.
        shape: of the tensor: rows, and elements of each.
        columns: elements of each of these rows.
        chunk: elements of the tensor that are coded together.

    Returns:
        nothing for types of which nothing is dropped.
    """
    if base.dtype != weights.dtype or weights.dtype not in _TYPES or not weights.numel():
        return []
    dtype = _TYPES[weights.dtype]
    lattice = LATTICES[dtype]
    before = as_bytes(base).view(lattice.word)
    change = task_vector(base, weights).numpy()
    if not np.isfinite(change).all():
        return []
    low, times = lowest(lattice, before), math.prod(shape) / weights.numel()
    found = [counted(dtype, low, lattice.levels(before, low), np.abs(change), times)]
    rows = change.reshape(-1, columns)
    spectrum = spectrum_of(rows) if len(rows) > 1 else None
    if spectrum is None:
        return found
    own, start = as_float(as_bytes(weights).view(lattice.word), dtype), as_float(before, dtype)
    rms = math.sqrt(spectrum.total / len(change))
    for share in SHARES_OF_RMS:
        part = common_part(rows, share * rms, shape, chunk, spectrum)
        if part is None:
            continue
        words = as_words(start + part.product.reshape(-1), dtype)
        with np.errstate(invalid="ignore"):
            rest = np.abs(own - as_float(words, dtype))
        if not np.isfinite(rest).all():  # sums may be beyond the type, where the base's elements nearly are
            continue
        left = float(np.square(rest, dtype=np.float64).sum()) / spectrum.total
        costs = counted(dtype, low, lattice.levels(words, low), rest, times)
        found.append(replace(costs, step=share * rms, common_bits=part.bits, left=left))
    return found


def encode_sampled(
    weights: Tensor,
    base: Tensor,
    dtype: str,
    drop: SampledPrecision,
    start: int,
    seed: int,
    added: Added | None = None,
) -> tuple[Made, bool]:
    """Code a share of one chunk of a task's tensor.

    Args:
        weights: θt, flat.
        base: θ0 in its place, as many elements of the same type.
        dtype: the type, by the format's name.
        drop: what is kept.
        start: the first element's place in the tensor.
        seed: of task and tensor: see `place_hash.first_of`.
        added: what is told of the changes first, if anything: see `tensor_columns.added_first`.

    Returns:
        what becomes of the row, and whether it differs from the base in any bit.
    """
    word = np.dtype(f"<u{weights.element_size()}")
    after, before = as_bytes(weights).view(word), as_bytes(base).view(word)
    tau = task_vector(base, weights)
    elements = after.view(np.uint8), before.view(np.uint8)
    coded, out = _CODEC.coded(*elements, dtype, drop.sampling, first_of(start, seed), added)
    on = float(np.count_nonzero(out != before))
    hat = task_vector(base, torch.from_numpy(out.view(np.uint8)).view(weights.dtype))
    error, norm, kept, dot, _ = agreement(tau, hat)
    # Sums are finite where all elements are, the squares of very large ones aside: so few rows are looked at twice.
    if not math.isfinite(norm + kept) and not bool(tau.isfinite().all() and hat.isfinite().all()):
        error, norm, kept, dot = 0.0, on, on, on  # of what is infinite, and comes back bit for bit
    moved = any(not np.array_equal(after[run], before[run]) for run in (slice(_FEW), slice(None)))
    return Made("sampled", coded, 1.0, (error, norm, kept, dot, on), _CODEC.id), moved
