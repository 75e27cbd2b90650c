"""What it costs to keep a share of a tensor's changes, by the native library (`src/sampled.c`)."""

from __future__ import annotations

from ctypes import byref, c_double, c_int32, c_int64, c_void_p

import numpy as np
import numpy.typing as npt

from tallstore.kernels.native import library
from tallstore.kernels.native.choices import LOGARITHM
from tallstore.kernels.native.library import Function, address
from tallstore.kernels.scratch import scratch

__all__ = ["context_costs", "costs_of_steps", "count_changes"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_P, _N = c_void_p, c_int64
_TABLE: dict[str, Function] = {
    "context_costs": (None, (_P, _P, _N, c_double, _P)),
    "costs_of_steps": (None, (_P, _P, _P, _P, _P, _N, _N, _P, _P, _P, _P, _N, _N, c_int32, _P, _P)),
    "count_changes": (None, (_P, _P, _P, _P, _N, _P, _N)),
}
_kernels = library.kernels_of(_TABLE, needed=True)


def context_costs(upto: Integers, downs: int, table: float) -> Floats:
    """Bits of levels that share contexts: see `codecs.dare_contexts`. `upto`: shape (n + 1, contexts, magnitudes)."""
    n = len(upto) - 1
    costs = np.full((downs, n + 1, n + 1), np.inf)
    _kernels().context_costs(address(costs), address(upto), n, table, byref(LOGARITHM))
    return costs


def count_changes(
    levels: npt.NDArray[np.uint8], change: npt.NDArray[np.float32], unit: Floats, bins: int
) -> tuple[npt.NDArray[np.int32], Floats]:
    """Changes by level and bin, and the sums of their squares: see `recipes.sampled_changes.changes_by_bin`.

    Args:
        levels: of each element, shape (n,).
        change: their magnitudes.
        unit: of each level: a power of two.
        bins: that there are, beside that of those that are 0.
    """
    counts, power = np.zeros((len(unit), bins + 1), np.int32), np.zeros(len(unit))
    per_unit = 1.0 / unit
    arrays = (address(each) for each in (counts, power, levels, change))
    _kernels().count_changes(*arrays, len(change), address(per_unit), bins)
    return counts, power


def costs_of_steps(
    counts: Integers,
    values: Floats,
    n: Integers,
    size: Floats,
    above: Integers,
    shift: Integers,
    tried: Integers,
    *,
    nearest: bool,
) -> tuple[Floats, Floats]:
    """Bits and rounding of steps: see `recipes.sampled_changes.costs_of_steps`, whose arguments these are."""
    (levels, bins), steps = counts.shape, size.shape[1]
    bits, rounding, upto = np.full(size.shape, np.inf), np.empty(size.shape), scratch("upto", bins + 1, np.int64)
    _kernels().costs_of_steps(
        *(address(each) for each in (bits, rounding, counts, values, n)),
        *(levels, bins, *(address(each) for each in (size, above, shift, tried))),
        *(steps, len(above), nearest, address(upto), byref(LOGARITHM)),
    )
    return bits, rounding
