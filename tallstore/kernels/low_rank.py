"""The product of two thin matrices of small whole numbers, added to the elements of a float type: the reference.

Sums of products are whole numbers below 2^24, which float32 holds: in whatever order they are added up, they are the
same, and so are the bits on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.kernels.dare import as_float, as_words
from tallstore.kernels.lattice import Words
from tallstore.kernels.native import low_rank as native
from tallstore.kernels.registry import kernel

__all__ = ["LARGEST", "MOST_AN_ELEMENT", "MOST_NUMBERS", "MOST_RANK", "MOST_SHIFT", "LowRank", "add_product", "factors"]

MOST_RANK, LARGEST, MOST_SHIFT = 64, 127, 4
"""Components, the magnitude of their numbers, and how far each may be shifted up: 64 · 127² · 2^4 < 2^24."""
MOST_NUMBERS = 1 << 22
"""Of columns, of all components together."""
MOST_AN_ELEMENT = 64
"""Of these, for each of a chunk's elements: reading few elements is little work."""
_BLOCK = 1 << 16
"""Elements that are worked on at a time, about."""


class LowRank(NamedTuple):
    """A matrix, Σ scale · 2^shift · row ⊗ column, of which a chunk is a run of elements."""

    scale: np.float32
    """Above 0."""
    shifts: npt.NDArray[np.uint8]
    """Shape (rank,)."""
    rows: npt.NDArray[np.int8]
    """Shape (rank, R): as many rows as the chunk has a part of."""
    columns: npt.NDArray[np.int8]
    """Shape (rank, n)."""
    gone: int
    """Elements of the first row that lie before the chunk."""


@kernel
def add_product(dtype: str, words: Words, of: LowRank) -> None:
    """Add the matrix, where it is not 0, to a chunk's elements, in place: rounded to float32 twice, then to the type.

    Args:
        dtype: one of `kernels.dare.TYPES`.
        words: shape (n,).
        of: the matrix.
    """
    width = of.columns.shape[1]
    across, along = factors(of)
    step = max(1, _BLOCK // width)
    for row in range(0, of.rows.shape[1], step):
        product = (across[:, row : row + step].T @ along).reshape(-1)
        begin, end = row * width - of.gone, row * width - of.gone + len(product)
        here = words[max(begin, 0) : min(end, len(words))]
        product = product[max(-begin, 0) :][: len(here)]
        with np.errstate(all="ignore"):
            moved = as_float(here, dtype) + of.scale * product
        here[product != 0] = as_words(moved, dtype)[product != 0]


@add_product.native
def _(dtype: str, words: Words, of: LowRank) -> None:
    native.add_product(dtype, words, of.scale, of.rows, of.shifts, of.columns, of.gone)


@add_product.takes
def _(dtype: str, words: Words, of: LowRank) -> bool:  # noqa: ARG001 - the kernel's own arguments
    return bool(words.flags.c_contiguous)


def factors(of: LowRank) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Rows, shifted, and columns, of whose product the matrix is the multiple by its scale: shapes as theirs."""
    across = np.ldexp(of.rows.astype(np.float32, "C"), of.shifts[:, None].astype(np.int32))
    return across, of.columns.astype(np.float32, "C")
