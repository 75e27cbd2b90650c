"""What a tensor's rows have in common, as few of them tell: what it takes to tell that first, and what is left.

The longer a model was tuned, the more of what it changed is of low rank, and the less is like noise. The strongest
components are told in as few bits as they are worth (see `common_columns`); what is left is coded as it is without, and
is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tallstore.kernels.logarithm import log2
from tallstore.kernels.low_rank import factors
from tallstore.recipes.common_columns import columns_of, most_components, times_told, worth_their_bits
from tallstore.recipes.exact_products import Floats, Singles, eigen, product, whole

__all__ = ["SHARES_OF_RMS", "CommonPart", "Spectrum", "common_part", "matrix_of", "spectrum_of"]

SHARES_OF_RMS = (4.0, 1.5)
"""Steps that are tried, by the root mean square of the changes."""
_LEAST_SAVED = 0.15
"""Of the changes' square that components must take, together, to be asked for at all."""
_LONG_KERNEL = 32
"""Taps of a kernel from which on it is a row."""
_ROWS_A_COMPONENT = 4
"""Of a sample, at least."""
_OF_NOISE = 0.3
"""An eigenvalue stands out if it is more than this times what the least one, which is noise, is below 0. On real tunes
what is foretold of steps up to three root mean squares is then within a tenth or two of what is left."""
_MORE = 1.4
"""Components that a few rows do not show are worth their bits in a tensor: it takes so many times as many, about."""
_HEAD = 8 * 120
"""Bits of a chunk beside the numbers, about: heads, tables, lanes."""


def matrix_of(shape: Sequence[int]) -> tuple[int, int]:
    """Rows of a tensor, as a product tells of them, and elements of each.

    A row is what one unit sums up: of a convolution all of a filter; or one kernel, where that alone is long, for taps
    that lie side by side are alike in all of them.
    """
    rows, taps = shape[0], math.prod(shape[2:])
    columns = taps if len(shape) > 2 and taps >= _LONG_KERNEL else math.prod(shape[1:])
    return (rows * math.prod(shape[1:]) // columns if columns else rows), columns


class CommonPart(NamedTuple):
    """What a product of low rank would be of a tensor's changes, as a sample of its rows tells."""

    bits: float
    """Of the numbers, of all chunks together."""
    product: Singles
    """Of the sample: shape (R, n)."""


class Spectrum(NamedTuple):
    """Components of a sample of rows."""

    square: Floats
    """Of each what is more than noise, largest first: shape (k,)."""
    total: float
    """The square of all changes."""
    own: Floats
    """The square that it has there, noise too: shape (k,)."""
    kept: Floats
    """The share of it that is no noise: shape (k,)."""
    left: Floats
    """Left singular vectors: shape (R, k)."""


def common_part(
    changes: Singles, step: float, shape: tuple[int, int], chunk: int, sigmas: Spectrum
) -> CommonPart | None:
    """What rows of a tensor have in common, by a few of them; None where that is not worth it.

    Args:
        changes: shape (R, n), finite: of rows that are longer, what they begin with.
        step: δ.
        shape: of the tensor, R rows or more of n elements or more.
        chunk: elements of it that are coded together.
        sigmas: what `spectrum_of` says of the same.
    """
    rows, columns = shape
    square = sigmas.square * (rows / len(changes))
    wider = columns / changes.shape[1]
    most = most_components(rows, columns) if columns <= chunk else 0
    strong, worth = worth_their_bits(square[:most] * wider, step, rows + columns)
    if not strong or float(sigmas.square[:strong].sum()) < _LEAST_SAVED * sigmas.total:
        return None
    sigma = np.sqrt(square[:worth])
    left, own = sigmas.left[:, :worth], np.sqrt(sigmas.own[:worth])
    right = product((left / own).T, changes.astype(np.float64))
    told = columns_of(right, sigma, step)
    if told is None:
        return None
    of = told.with_rows((left * own * sigmas.kept[:worth]).T, 0)
    across, along = factors(of)
    sigma *= math.sqrt(wider)
    chunks, times = -(-rows * columns // chunk), times_told(shape, chunk)
    bits = rows * _entropy(sigma / (step * math.sqrt(rows)))
    bits += times * columns * _entropy(sigma / (step * math.sqrt(times * columns)))
    return CommonPart(_MORE * float(bits.sum()) + chunks * _HEAD, of.scale * product(across.T, along))


def spectrum_of(changes: Singles) -> Spectrum | None:
    """The components of a sample of rows, shape (R, n); None where nothing stands out that they have in common.

    What a row has in common with itself says nothing: products of rows with themselves are taken to be what the
    components make of them, as in principal axis factoring. Without these eigenvalues of noise are as often below 0.
    """
    found, unit = whole(changes)
    found = found.astype(np.float64, copy=False)
    products = product(found, found.T)
    total = float(np.trace(products))
    if not total:
        return None
    between = products - np.diag(np.diagonal(products))
    squares, left = eigen(between)
    few = slice(None, -1 - len(squares) // _ROWS_A_COMPONENT, -1)
    stands = squares[few] > -_OF_NOISE * squares[0]
    count = len(stands) if stands.all() else int(np.argmin(stands))
    if not count:
        return None
    most = slice(None, -1 - count, -1)
    again = between + np.diag((left[:, most] ** 2 * squares[most]).sum(axis=1))
    squares, left = (each[..., most].copy() for each in eigen(again))
    own = (left * product(products, left)).sum(axis=0)
    if squares[-1] <= 0 or float(squares.sum()) < _LEAST_SAVED * total:
        return None
    scaled = unit * unit
    return Spectrum(squares * scaled, total * scaled, own * scaled, np.minimum(squares / own, 1.0), left)


def _entropy(spread: Floats) -> Floats:
    """Bits of a number that is rounded to a whole one, normal with such a deviation: about."""
    bits: Floats = 0.5 * log2(1.0 + 2.0 * math.pi * math.e * spread * spread)
    return bits
