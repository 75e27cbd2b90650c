"""How much of what fine-tuning changed survives a sum over a unit's inputs, beside what noise leaves there.

A unit adds up n inputs. Noise of the weights, which points anywhere, leaves ‖δ‖²/n of the inputs' energy at the output.
What fine-tuning changed was made of inputs (gradients are sums of outer products with them), so that the rows of τ lean
towards the same few directions, those that inputs have. How much they do shows without data: rows of independent noise
have a mean squared cosine of 1/n, rows that are all alike one of 1. The gain

    G = n · Σ_{i≠j} ⟨τ_i, τ_j⟩² / Σ_{i≠j} ‖τ_i‖²·‖τ_j‖²

is 1 where τ is like noise itself, and n where it has rank 1: by so much is the energy of the change at the output of a
unit, for inputs that lie as its rows do, above that of noise of the same norm. A sample of rows suffices.

Sums of products of integers are exact in any order, so that the same weights have the same gain on every machine.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["BITS", "COLUMNS", "gain", "gain_of", "picked"]

_ROWS, _MORE_ROWS, _MANY, _LARGE = 64, 256, 4096, 1 << 22
"""Rows that are looked at, and how many of a tensor with more than `_MANY`, or of so many elements: of a table few rows
may have moved; and in a large matrix what rows have in common shows better, for what is little beside coding it."""
COLUMNS = 1 << 13
"""Leading columns that are looked at, at most."""
BITS = 20
"""Of the integers: products of 2^13 pairs of them add up to less than 2^53."""
_PLAIN = 126
"""Powers of two up to this one, and one by them, are float32 numbers like others."""
_CHANCE = 3.0
"""Standard errors that a gain is lowered by."""


def picked(rows: int, columns: int = 1) -> list[int]:
    """Which of so many rows, of so many elements each, are looked at: evenly spaced."""
    wanted = min(rows, _MORE_ROWS if rows > _MANY or rows * columns >= _LARGE else _ROWS)
    return [i * rows // wanted for i in range(wanted)]


def gain(tau: npt.NDArray[np.float32]) -> float:
    """The gain G of rows of τ, shape (R, n), n ≤ `COLUMNS`: 1 or more, and 1 where too few rows moved to tell."""
    rows = tau[tau.any(axis=1)]
    if len(rows) < 2:
        return 1.0
    largest = max(float(rows.max()), -float(rows.min()))  # NaN is the largest of all, and the smallest
    if not math.isfinite(largest):
        return 1.0
    whole = _whole(rows, BITS - math.frexp(largest)[1])
    products = whole @ whole.T
    norms = np.diagonal(products).copy()
    np.fill_diagonal(products, 0.0)
    pairs = np.outer(norms, norms)
    np.fill_diagonal(pairs, 0.0)
    total = _added(pairs)
    if not total:
        return 1.0
    shared = np.square(products)
    total_shared = _added(shared)
    off = np.square(shared - total_shared / total * pairs)
    return gain_of(tau.shape[1], total, total_shared, _added(off), _added(np.square(pairs)))


def gain_of(n: int, total: float, shared: float, off: float, squares: float) -> float:
    """The gain, from sums over pairs of rows that moved, i ≠ j.

    Args:
        n: elements of a row.
        total: Σ ‖τ_i‖²·‖τ_j‖².
        shared: Σ ⟨τ_i, τ_j⟩².
        off: Σ (⟨τ_i, τ_j⟩² − shared/total · ‖τ_i‖²·‖τ_j‖²)².
        squares: Σ (‖τ_i‖²·‖τ_j‖²)².
    """
    if not total:
        return 1.0
    mean = shared / total
    # Each pair is there twice. Where few elements moved most pairs share none, and the mean rests on the others.
    apart = math.sqrt(2 * off) / total
    if n * (mean - _CHANCE * apart) <= 1:
        return 1.0
    chance = 2 * math.sqrt(squares) / total
    return float(max(1.0, n * mean - _CHANCE * chance))


def _whole(rows: npt.NDArray[np.float32], exponent: int) -> npt.NDArray[np.float64]:
    """The nearest integers to rows · 2^exponent, none of them above 2^`BITS`."""
    if abs(exponent) > _PLAIN:
        far: npt.NDArray[np.float64] = np.rint(rows * np.float64(2.0) ** exponent)
        return far
    # Exact but for what comes out below 2^-126, of which 0 is the nearest integer all the same.
    scaled = rows * np.float32(2.0**exponent)
    near: npt.NDArray[np.float64] = np.rint(scaled, out=scaled).astype(np.float64)
    return near


def _added(values: npt.NDArray[np.float64]) -> float:
    """One after the other: `sum` leaves open in which order."""
    return float(np.cumsum(values.reshape(-1))[-1])
