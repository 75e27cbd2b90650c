"""What rows of a matrix's changes have in common: its strongest components, in as few bits as they are worth.

The longer a model was tuned, the more of what it changed is of low rank, and the less is like noise. With σ_k the
singular values of an m × n matrix and δ a step, σ_k times a left vector is rounded to multiples of δ, and a right
vector to multiples of δ/σ_k: each component then errs by δ²·(m + n)/12, whatever its σ, so that strong ones get more
bits (Delta-CoMe gives them more by hand: B. Ping et al. 2024, arXiv 2406.08903). What is left is coded as it is
without, and is smaller.

Sums are over whole numbers and exact, so that threads and processors change none; what follows is rounded to few bits.
The components of a chunk come of a sketch and power iterations (N. Halko et al. 2011, arXiv 0909.4061); those of a
sample of a tensor's rows say what a chunk's will be.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tallstore.kernels.logarithm import log2
from tallstore.kernels.low_rank import LARGEST, MOST_RANK, MOST_SHIFT, LowRank, factors
from tallstore.kernels.place_hash import DRAWN, drawn_at

__all__ = ["SHARES_OF_RMS", "CommonPart", "Spectrum", "common_part", "find_low_rank", "spectrum_of"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

SHARES_OF_RMS = (4.0, 1.5)
"""Steps that are tried, by the root mean square of the changes."""
_STRONG, _WORTH = 0.28, 0.15
"""Components are worth their bits if σ² ≥ the first · δ² · (m + n); beside such, those from the second on are, too.
Alone they might be noise: the strongest component of that has up to 2 · (m + n) times its mean square."""
_LEAST_SAVED = 0.15
"""Of the changes' square that components must take, together, to be asked for at all."""
_ROWS_A_COMPONENT = 4
"""Of a sample, at least."""
_OF_NOISE = 0.3
"""An eigenvalue stands out if it is more than this times what the least one, which is noise, is below 0. On real tunes
what is foretold of steps up to three root mean squares is then within a tenth or two of what is left."""
_SPARE = 6
"""Vectors of a sketch beside those that may be wanted."""
_ITERATIONS = 2
"""Where many components are little more than noise, bits are 1.6 % fewer than after one, and 8 % fewer than after none;
a third saves 0.2 %."""
_BITS = 16
"""Of whole numbers: products of them add up to less than 2^53 over `_MOST` elements."""
_NORM_BITS, _VECTOR_SIZE = 13, 1 << 10
"""Of whole numbers in float32. Products with a row or a column add up to no more than the norm of both, whichever come
first: to less than 2^24, which float32 holds, where the norm of rows and columns is at most 2^_NORM_BITS, and 1 of a
unit vector is `_VECTOR_SIZE`. Rounding adds half the root of their length to both, and signs have the root of that."""
_MOST = 1 << 21
"""Elements of a chunk beyond which nothing is told: sums would not be exact, and unit vectors of a few bits vanish."""
_EDGE = 1.1
"""Of few rows or columns, noise may be beyond its bound by so much."""
_MORE = 1.4
"""Components that a few rows do not show are worth their bits in a chunk: it takes so many times as many, about."""
_HEAD = 8 * 120
"""Bits of a chunk beside the numbers, about: heads, tables, lanes."""
_LEAST_SCALE, _MOST_SCALE = 2.0**-90, 2.0**60
_LEAST_UNIT = 2.0**-120
"""What is smaller is turned over in float64: in float32 it might be infinite."""


class CommonPart(NamedTuple):
    """What a product of low rank would be of a tensor's changes, as a sample of its rows tells."""

    bits: float
    """Of the numbers, of all chunks together."""
    product: Singles
    """Of the rows of the sample: shape (R, n)."""


def find_low_rank(changes: Singles, step: float, gone: int) -> LowRank | None:
    """The strong components of a chunk's changes; None where none is worth its bits.

    Args:
        changes: shape (m, n), finite: 0 where an element is not the chunk's.
        step: δ.
        gone: elements of the first row that lie before the chunk.
    """
    rows, columns = changes.shape
    # No more numbers than elements, of which the first row and the last may have few.
    most = min(MOST_RANK, max(rows - 2, 0) * columns // (rows + columns))
    if not most or step <= 0 or changes.size > _MOST or not changes.any():
        return None
    whole, unit, total = _singles(changes)
    count = min(most + _SPARE, rows, columns)
    drawn = drawn_at(np.arange(rows * count, dtype=np.uint32), 0).reshape(rows, count)
    signs = np.where(drawn >> np.uint32(DRAWN - 1), np.float32(1), np.float32(-1))
    vectors = signs.T
    for _ in range(_ITERATIONS):
        basis = _orthonormal(_product(_vectors(_orthonormal(_product(vectors, whole))), whole.T))
        vectors = _vectors(basis)
    along = _product(vectors, whole).astype(np.float64)
    short, of_short = _whole(along, _BITS)
    squares, turn = _strongest(_product(short, short.T))
    sigma = np.sqrt(squares) * (of_short * unit / _VECTOR_SIZE)
    strong, worth = _worth(sigma[:most] ** 2, step, rows + columns)
    behind = columns - 1 - int(np.flatnonzero(changes[-1]).max(initial=-1))
    real = (rows * columns - gone - behind) / columns
    worth = min(worth, _above_noise(sigma**2, total, (real, columns)))
    if not (strong and worth):
        return None
    turn, sigma = turn[:, :worth], sigma[:worth]
    right = _product((turn * (unit / _VECTOR_SIZE) / sigma).T, along)
    return _rounded(_product((turn * sigma).T, basis), right, sigma, step, gone)


def common_part(changes: Singles, step: float, rows: int, chunks: float, sigmas: Spectrum) -> CommonPart | None:
    """What `find_low_rank` would tell of chunks of so many rows, by a few of them; None where that is not worth it.

    Args:
        changes: shape (R, n), finite.
        step: δ.
        rows: of a chunk, R or more.
        chunks: how many there are.
        sigmas: what `spectrum_of` says of the same.
    """
    columns = changes.shape[1]
    square = sigmas.square * (rows / len(changes))
    most = min(MOST_RANK, max(rows - 2, 0) * columns // (rows + columns)) if rows * columns <= _MOST else 0
    strong, worth = _worth(square[:most], step, rows + columns)
    if not strong or float(sigmas.square[:strong].sum()) < _LEAST_SAVED * sigmas.total:
        return None
    sigma = np.sqrt(square[:worth])
    left, own = sigmas.left[:, :worth], np.sqrt(sigmas.own[:worth])
    right = _product((left / own).T, changes.astype(np.float64))
    found = _rounded((left * own * sigmas.kept[:worth]).T, right, sigma, step, 0)
    if found is None:
        return None
    across, along = factors(found)
    product = found.scale * _product(across.T, along)
    bits = rows * _entropy(sigma / (step * math.sqrt(rows))) + columns * _entropy(sigma / (step * math.sqrt(columns)))
    return CommonPart(chunks * (_MORE * float(bits.sum()) + _HEAD), product)


def _worth(square: Floats, step: float, numbers: int) -> tuple[int, int]:
    """How many components, strongest first, are worth so many numbers each: by themselves, and beside those."""
    strong, worth = (np.count_nonzero(square >= least * step * step * numbers) for least in (_STRONG, _WORTH))
    return int(strong), int(worth)


def _above_noise(square: Floats, total: float, shape: tuple[float, int]) -> int:
    """How many components, strongest first, are not as noise has them.

    Of m × n numbers that are noise with the mean square s² no component has more than s² · (√m + √n)² (V. Marchenko and
    L. Pastur 1967). Here s² is that of what is left without the first k, in which there is as much to choose as in a
    matrix of k rows and columns less; `total` is the square of all.
    """
    rows, columns = shape
    gone = np.arange(1, len(square) + 1)
    left = np.maximum(total - np.cumsum(square), 0.0) / (np.maximum(rows - gone, 1.0) * np.maximum(columns - gone, 1.0))
    above = square > _EDGE * left * (math.sqrt(rows) + math.sqrt(columns)) ** 2
    return len(above) if above.all() else int(np.argmin(above))


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


def spectrum_of(changes: Singles) -> Spectrum | None:
    """The components of a sample of rows, shape (R, n); None where nothing stands out that they have in common.

    What a row has in common with itself says nothing: products of rows with themselves are taken to be what the
    components make of them, as in principal axis factoring. Without these eigenvalues of noise are as often below 0.
    """
    whole, unit = _whole(changes, _BITS)
    whole = whole.astype(np.float64, copy=False)
    products = _product(whole, whole.T)
    total = float(np.trace(products))
    if not total:
        return None
    between = products - np.diag(np.diagonal(products))
    squares, left = _eigen(between)
    few = slice(None, -1 - len(squares) // _ROWS_A_COMPONENT, -1)
    stands = squares[few] > -_OF_NOISE * squares[0]
    count = len(stands) if stands.all() else int(np.argmin(stands))
    if not count:
        return None
    most = slice(None, -1 - count, -1)
    again = between + np.diag((left[:, most] ** 2 * squares[most]).sum(axis=1))
    squares, left = (each[..., most].copy() for each in _eigen(again))
    own = (left * _product(products, left)).sum(axis=0)
    if squares[-1] <= 0 or float(squares.sum()) < _LEAST_SAVED * total:
        return None
    scaled = unit * unit
    return Spectrum(squares * scaled, total * scaled, own * scaled, np.minimum(squares / own, 1.0), left)


def _singles(changes: Singles) -> tuple[Singles, float, float]:
    """Changes as whole numbers in float32, and what 1 stands for: see `_NORM_BITS`. And the square of all.

    Products in float32 take half as long, and there are as many bits as a sketch can use.
    """
    whole, unit = _whole(changes, _BITS)
    squares = whole.astype(np.float64)
    squares *= squares  # sums of these are exact
    of_rows = squares.sum(1)
    longest = max(float(of_rows.max()), float(squares.sum(0).max()))
    down = max(0, -(-(math.frexp(longest)[1] - 2 * _NORM_BITS) // 2))
    whole = whole.astype(np.float32, copy=False)
    whole *= np.float32(2.0**-down)
    return np.rint(whole, out=whole), unit * 2.0**down, float(of_rows.sum()) * unit * unit


def _rounded(left: Floats, right: Floats, sigma: Floats, step: float, gone: int) -> LowRank | None:
    """Components as whole numbers.

    Args:
        left: σ times left vectors, shape (k, m).
        right: right vectors, shape (k, n).
        sigma: σ, descending, shape (k,).
        step: δ.
        gone: see `LowRank`.
    """
    of_left = np.maximum(step, np.abs(left).max(1) / LARGEST)
    both = of_left * np.maximum(step / sigma, np.abs(right).max(1) / LARGEST)
    scale = np.float32(max(both.min(), both.max() / 2.0 ** (MOST_SHIFT + 0.5)))  # the strongest comes first
    if not _LEAST_SCALE < scale < _MOST_SCALE:
        return None
    shifts = np.clip(np.rint(log2(both / float(scale))), 0, MOST_SHIFT)
    of_right = float(scale) * np.exp2(shifts) / of_left
    across = np.rint(left / of_left[:, None]).astype(np.int8)
    along = np.clip(np.rint(right / of_right[:, None]), -LARGEST, LARGEST).astype(np.int8)
    # Either sign of both is the same component: one is chosen by what does not depend on the machine.
    turned = np.take_along_axis(across, np.abs(across.astype(np.int16)).argmax(1)[:, None], 1) < 0
    across, along = np.where(turned, -across, across), np.where(turned, -along, along)
    if not (across.any() and along.any()):
        return None
    return LowRank(scale, shifts.astype(np.uint8), across, along, gone)


def _product(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """left @ right, by torch: workers tell it to take one thread each, where numpy would take all cores for each.

    Few rows by a matrix are quicker than a matrix by few columns.
    """
    product: npt.NDArray[Any] = (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()
    return product


def _eigen(symmetric: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, ascending, and their vectors as columns."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(symmetric))
    return values.numpy(), vectors.numpy()


def _whole(values: npt.NDArray[np.floating], bits: int) -> tuple[npt.NDArray[np.floating], float]:
    """Values as whole numbers of at most so many bits, in their type or float64; and what 1 is: a power of two."""
    largest = max(float(values.max()), -float(values.min()))
    unit = math.ldexp(1.0, math.frexp(largest)[1] - bits) if largest else 1.0
    if unit < _LEAST_UNIT:
        values = values.astype(np.float64)
    whole = values * values.dtype.type(1.0 / unit)
    return np.rint(whole, out=whole), unit


def _vectors(basis: Floats) -> Singles:
    """Unit vectors as whole numbers."""
    return np.rint(basis * _VECTOR_SIZE).astype(np.float32)


def _orthonormal(rows: npt.NDArray[np.floating]) -> Floats:
    """An orthonormal basis of rows, shape (k, m) to (≤ k, m)."""
    whole, _ = _whole(rows.astype(np.float64, copy=False), _BITS)
    squares, turn = _strongest(_product(whole, whole.T))
    length = np.sqrt(np.maximum(squares, 1.0))  # of whole numbers; less is 0, where all cancel out
    return _product((turn / length).T, whole)


def _strongest(products: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues that are not next to 0, descending, and their vectors as columns."""
    squares, vectors = _eigen(products)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    some = squares >= 1e-10 * float(squares[0])
    return squares[some].copy(), vectors[:, some]


def _entropy(spread: Floats) -> Floats:
    """Bits of a number that is rounded to a whole one, normal with such a deviation: about."""
    bits: Floats = 0.5 * log2(1.0 + 2.0 * math.pi * math.e * spread * spread)
    return bits
