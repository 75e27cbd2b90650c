"""Rows of which a share of the changes is kept, and what there is to know before the shares are chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.codecs.dare import Added
from tallstore.codecs.lattice_model import lowest
from tallstore.encoder.chunk import Made, task_vector
from tallstore.encoder.metrics import agreement
from tallstore.kernels.dare import TYPES, as_float, as_words, units
from tallstore.kernels.lattice import LATTICES, LEVELS, Words
from tallstore.kernels.place_hash import first_of
from tallstore.recipes.exact_products import Singles
from tallstore.recipes.low_rank import SHARES_OF_RMS, common_part, spectrum_of
from tallstore.recipes.sampled_changes import LevelCosts, SampledPrecision, counted
from tallstore.tensors import TORCH, as_bytes

__all__ = ["encode_sampled", "level_costs", "may_be_sampled"]

_CODEC = codecs.SAMPLED["dare"]
_TYPES = {TORCH[name]: name for name in TYPES}
_WIDE = "F32"
"""The type of which no exponent tells how large changes are: all elements are of one level."""
_ALIKE = 0.1
"""Correlation of changes side by side up to which they are rounded to the nearest multiple."""
_MOSTLY = 0.06
"""Share of the changes that may be as large as each other, within a sixteenth of an octave, for the same: where they
are normal or have heavier tails, it is 0.02."""
_MOST_ROWS = 256
"""That are looked at for what they have in common."""
_LEAST_OCTAVE = -100
_FEW = 1 << 12
"""Elements that mostly tell whether any moved."""


def may_be_sampled(dtype: str) -> bool:
    """Whether some changes to tensors of a type, by the format's name, may be dropped."""
    return dtype in TYPES


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
    low = lattice.mask if dtype == _WIDE else lowest(lattice, before)
    unit = _one_unit(change) if dtype == _WIDE else units(dtype, low)

    def costs(words: Words, changes: Singles) -> LevelCosts:
        of_levels, times = lattice.levels(words, low), math.prod(shape) / len(changes)
        found = counted(dtype, low, of_levels, np.abs(changes), times, unit)
        return replace(found, nearest=dtype == _WIDE and _varied(found) and _unlike(changes.reshape(-1, columns)))

    found = [costs(before, change)]
    few = slice(None, None, max(1, len(change) // (columns * _MOST_ROWS)))
    rows, first, last = (
        each.reshape(-1, columns)[few]
        for each in (change, as_float(before, dtype), as_float(as_bytes(weights).view(lattice.word), dtype))
    )
    spectrum = spectrum_of(rows) if len(rows) > 1 else None
    if spectrum is None:
        return found
    rms = math.sqrt(spectrum.total / rows.size)
    for share in SHARES_OF_RMS:
        part = common_part(rows, share * rms, shape, chunk, spectrum)
        if part is None:
            continue
        words = as_words((first + part.product).reshape(-1), dtype)
        with np.errstate(invalid="ignore"):
            rest = last.reshape(-1) - as_float(words, dtype)
        if not np.isfinite(rest).all():  # sums may be beyond the type, where the base's elements nearly are
            continue
        left = float(np.square(rest, dtype=np.float64).sum()) / spectrum.total
        found.append(replace(costs(words, rest), step=share * rms, common_bits=part.bits, left=left))
    return found


def _one_unit(changes: Singles) -> npt.NDArray[np.float64]:
    """A power of two about as large as most changes are: shape (LEVELS,)."""
    largest = float(np.abs(changes).max())
    rms = math.sqrt(float(np.square(changes / largest, dtype=np.float64).mean())) * largest if largest else 1.0
    return np.full(LEVELS, math.ldexp(1.0, max(math.frexp(rms)[1], _LEAST_OCTAVE)))


def _varied(changes: LevelCosts) -> bool:
    """Whether magnitudes differ: of a few only, as signs of gradients add up to, each would be wrong in its own way."""
    return bool(len(changes.counts)) and int(changes.counts.max()) <= _MOSTLY * int(changes.counts.sum())


def _unlike(rows: Singles) -> bool:
    """Whether changes side by side have nothing in common: where they are alike, they would be rounded alike."""
    whole = rows.astype(np.float64)
    return abs(float((whole[:, 1:] * whole[:, :-1]).sum())) <= _ALIKE * float(np.square(whole).sum())


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
