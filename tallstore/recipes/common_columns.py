"""The strongest components of a matrix's changes: columns that are told once for all of it, and a chunk's rows of them.

With σ_k the singular values of the changes, shape (m, n), and δ a step, σ_k times a left vector is rounded to multiples
of δ, and a right vector to multiples of δ/σ_k: each component then errs by δ²·(m + n)/12, whatever its σ, so that
strong ones get more bits (Delta-CoMe gives them more by hand: B. Ping et al. 2024, arXiv 2406.08903).

Columns are those of right vectors, which come of a sketch and power iterations over a sample of rows (N. Halko et al.
2011, arXiv 0909.4061). A chunk's rows are what comes nearest with the columns as they are told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.kernels.logarithm import log2
from tallstore.kernels.low_rank import LARGEST, MOST_AN_ELEMENT, MOST_NUMBERS, MOST_RANK, MOST_SHIFT, LowRank
from tallstore.kernels.place_hash import DRAWN, drawn_at
from tallstore.recipes.exact_products import Floats, Singles, inverse, orthonormal, product, singles, strongest, whole

__all__ = ["CommonColumns", "columns_of", "find_columns", "most_components", "times_told", "worth_their_bits"]

_STRONG, _WORTH = 0.28, 0.15
"""Components are worth their bits if σ² ≥ the first · δ² · (m + n); beside such, those from the second on are, too.
Alone they might be noise: the strongest component of that has up to 2 · (m + n) times its mean square."""
_EDGE = 1.1
"""Of few rows or columns, noise may be beyond its bound by so much."""
_SPARE = 6
"""Vectors of a sketch beside those that may be wanted."""
_ONE_IN, _LEAST_ROWS = 4, 3
"""All but the last iteration look at one row in so many, but at as many times the vectors: it costs no bit."""
_ITERATIONS = 2
"""Where many components are little more than noise, bits are 1.6 % fewer than after one, and 8 % fewer than after none;
a third saves 0.2 %."""
_NORM_BITS, _VECTOR_SIZE = 13, 1 << 10
"""Of whole numbers in float32, and of vectors, see `singles`: rounding adds half the root of their length to both, and
signs have the root of that."""
_OWN_ROWS = 2
"""Rows of a chunk, by its columns, from which on it tells columns of its own: a table's first words, which are used the
most, have more in common with each other than with the rest."""
_MOST_HELD = MOST_NUMBERS // 2
"""Numbers of columns, of which some copies are held, in float64, while they are looked for."""
_EXACT = 24
"""Bits of a whole number that float32 holds."""
_LEAST_SCALE, _MOST_SCALE = 2.0**-90, 2.0**60


class CommonColumns(NamedTuple):
    """Columns of a product, and what the numbers of its rows stand for."""

    step: float
    """δ."""
    scale: np.float32
    """See `LowRank`."""
    shifts: npt.NDArray[np.uint8]
    """Likewise: shape (rank,)."""
    numbers: npt.NDArray[np.int8]
    """Shape (rank, n)."""

    @property
    def units(self) -> Floats:
        """What 1 is in columns, where it is δ in rows: shape (rank,)."""
        found: Floats = float(self.scale) * np.exp2(self.shifts.astype(np.float64)) / self.step
        return found

    def rows_of(self, changes: Singles, gone: int, elements: int) -> LowRank | None:
        """What comes nearest to the changes of the rows of which a chunk has a part; 0 where they are not finite.

        Of the first components, where a chunk has few elements; None where it has too few for one.

        Args:
            changes: shape (m, n): whole rows.
            gone: elements of the first row that lie before the chunk.
            elements: of the chunk.
        """
        rank = min(len(self.shifts), _fitting(elements, *changes.shape))
        if not rank:
            return None
        left = np.zeros((rank, len(changes)))
        if np.isfinite(changes).all() and changes.any():
            numbers = self.numbers[:rank].astype(np.float32)
            wide = numbers.astype(np.float64)
            products = product(wide, wide.T)
            longest = math.frexp(float(np.diagonal(products).max()))[1]
            found, unit, _ = singles(changes, _EXACT - 1 - -(-longest // 2))
            along = product(numbers, found.T).astype(np.float64)
            left = product(inverse(products), along) * (unit / self.units[:rank, None])
        return self.with_rows(left, gone)

    def with_rows(self, left: Floats, gone: int) -> LowRank:
        """Rows as whole numbers: of the first components, shape (≤ rank, m); 0 where they would be too large."""
        rank = len(left)
        largest = np.maximum(np.abs(left).max(1) / (self.step * LARGEST), 1.0)
        if float(largest.max()) * float(self.scale) > _MOST_SCALE:
            left, largest = np.zeros_like(left), np.ones(rank)
        up = np.ceil(log2(largest))
        shifts = self.shifts[:rank] + up
        over = max(0.0, float(shifts.max()) - MOST_SHIFT)  # all are as much coarser then
        shifts = np.maximum(shifts, over)
        unit = self.step * np.exp2(shifts - self.shifts[:rank])
        rows = np.clip(np.rint(left / unit[:, None]), -LARGEST, LARGEST).astype(np.int8)
        scale = np.float32(float(self.scale) * 2.0**over)
        return LowRank(scale, (shifts - over).astype(np.uint8), rows, self.numbers[:rank], gone)


def find_columns(sample: Iterable[Singles], step: float, rows: int, first: int) -> CommonColumns | None:
    """The strong components of a matrix's changes; None where none is worth its bits.

    Args:
        sample: rows of it, block by block, shape (r, n) each, finite.
        step: δ.
        rows: how many the matrix has.
        first: elements of its first chunk.
    """
    blocks = [_SampleRows.of(each) for each in sample]
    seen, columns = sum(len(each.numbers) for each in blocks), blocks[0].numbers.shape[1]
    total = math.fsum(each.square for each in blocks)
    most = min(most_components(rows, columns), _fitting(first, -(-first // columns), columns))
    if not most or step <= 0 or not total or columns > first:  # a chunk of less than a row would have rows read for it
        return None
    count = min(most + _SPARE, seen, columns)
    few = [each.every(max(1, min(_ONE_IN, seen // (_LEAST_ROWS * count)))) for each in blocks]
    along = _sketch(few, count)
    for part in (*[few] * (_ITERATIONS - 1), blocks):
        along = _again(part, orthonormal(_even(along)))
    short, unit = whole(along)
    squares, turn = strongest(product(short, short.T))
    sigma = np.sqrt(squares) * unit
    square = sigma[:most] ** 2 * (rows / seen)
    strong, worth = worth_their_bits(square, step, rows + columns)
    worth = min(worth, _above_noise(sigma**2, total, (seen, columns)))
    if not (strong and worth):
        return None
    right = product((turn[:, :worth] / sigma[:worth]).T, along)
    # Either sign is the same component: one is chosen by what does not depend on the machine.
    right *= np.sign(np.take_along_axis(right, np.abs(right).argmax(1)[:, None], 1))
    return columns_of(right, np.sqrt(square[:worth]), step)


def columns_of(right: Floats, sigma: Floats, step: float) -> CommonColumns | None:
    """Columns as whole numbers; None where that cannot be, or all are 0.

    Args:
        right: right singular vectors, shape (k, n).
        sigma: σ, descending, shape (k,).
        step: δ.
    """
    both = step * np.maximum(step / sigma, np.abs(right).max(1) / LARGEST)
    scale = np.float32(max(both.min(), both.max() / 2.0 ** (MOST_SHIFT + 0.5)))  # the strongest comes first
    if not _LEAST_SCALE < scale < _MOST_SCALE:
        return None
    shifts = np.clip(np.rint(log2(both / float(scale))), 0, MOST_SHIFT).astype(np.uint8)
    found = CommonColumns(step, scale, shifts, np.zeros(right.shape, np.int8))
    numbers = np.clip(np.rint(right / found.units[:, None]), -LARGEST, LARGEST).astype(np.int8)
    return found._replace(numbers=numbers) if numbers.any() else None


def times_told(shape: tuple[int, int], chunk: int) -> int:
    """How often columns are told of a tensor in chunks of so many elements: once, or by each of them."""
    rows, columns = shape
    chunks = -(-rows * columns // chunk)
    return chunks if chunk >= _OWN_ROWS * columns * columns else 1


def most_components(rows: int, columns: int) -> int:
    """How many a matrix may have: no more numbers than elements, and no more of columns than memory should hold."""
    return min(MOST_RANK, _MOST_HELD // columns, max(rows - 2, 0) * columns // (rows + columns))


def _fitting(elements: int, rows: int, columns: int) -> int:
    """How many a chunk may have."""
    return min(elements // rows, MOST_AN_ELEMENT * elements // columns)


def worth_their_bits(square: Floats, step: float, numbers: int) -> tuple[int, int]:
    """How many components, strongest first, are worth so many numbers each: by themselves, and beside those."""
    strong, worth = (np.count_nonzero(square >= least * step * step * numbers) for least in (_STRONG, _WORTH))
    return int(strong), int(worth)


def _above_noise(square: Floats, total: float, shape: tuple[int, int]) -> int:
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


class _SampleRows(NamedTuple):
    """Rows of a sample, as whole numbers."""

    numbers: npt.NDArray[np.int16]
    unit: float
    square: float
    """Of the changes as they were."""

    @classmethod
    def of(cls, changes: Singles) -> _SampleRows:
        found, unit, square = singles(changes, _NORM_BITS)
        return cls(found.astype(np.int16), unit, square)

    def every(self, step: int) -> _SampleRows:
        """One row in so many."""
        return self._replace(numbers=self.numbers[::step])


def _sketch(blocks: Sequence[_SampleRows], count: int) -> Floats:
    """So many sums of rows with signs at random: shape (count, n)."""
    found, at = np.zeros((count, blocks[0].numbers.shape[1])), 0
    for block in blocks:
        rows = len(block.numbers)
        drawn = drawn_at(np.arange(at * count, (at + rows) * count, dtype=np.uint32), 0).reshape(rows, count)
        signs = np.where(drawn >> np.uint32(DRAWN - 1), np.float32(1), np.float32(-1))
        found += product(signs.T, block.numbers.astype(np.float32)) * np.float64(block.unit)
        at += rows
    return found


def _again(blocks: Sequence[_SampleRows], basis: Floats) -> Floats:
    """For an orthonormal basis B of rows, shape (k, n), and the changes W: one of the columns of W Bᵀ, times W."""
    vectors = np.rint(basis * _VECTOR_SIZE).astype(np.float32)
    along, products = np.zeros(basis.shape), np.zeros((len(basis), len(basis)))
    del basis
    for block in blocks:
        numbers = block.numbers.astype(np.float32)
        left = product(vectors, numbers.T).astype(np.float64)
        size = np.ldexp(1.0 / _VECTOR_SIZE, np.frexp(np.sqrt(np.square(left).sum(1)))[1])
        left = np.rint(left / size[:, None])
        real = size * (block.unit / _VECTOR_SIZE)
        for k, more in enumerate(product(left.astype(np.float32), numbers)):  # one by one: they may be long
            along[k] += more * (real[k] * block.unit)
        products += product(left, left.T) * np.outer(real, real)
    squares, turn = strongest(products)
    if not squares[0]:  # rows that cancel out in a sketch
        return along
    return product((turn / np.sqrt(squares)).T, along)


def _even(rows: Floats) -> Floats:
    """Rows that are about as long as each other."""
    length = np.sqrt(np.square(rows).sum(1))
    found: Floats = np.ldexp(rows, -np.frexp(length)[1][:, None])
    return found
