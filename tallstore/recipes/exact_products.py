"""Products and components of matrices that come out alike whatever adds them up: of whole numbers, small enough.

Threads and processors may add up in any order then. Eigenvectors they may not: what is made of these is rounded to few
bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Floats", "Singles", "eigen", "inverse", "orthonormal", "product", "singles", "strongest", "whole"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

_BITS = 16
"""Of whole numbers: products of them add up to less than 2^53 over 2^21 elements."""
_LEAST_UNIT = 2.0**-120
"""What is smaller is turned over in float64: in float32 it might be infinite."""
_NEXT_TO_NOTHING = 1e-10
"""Of the largest eigenvalue."""


def product(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """left @ right, by torch: workers tell it to take one thread each, where numpy would take all cores for each.

    Few rows by a matrix are quicker than a matrix by few columns.
    """
    found: npt.NDArray[Any] = (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()
    return found


def whole(values: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.floating], float]:
    """Values as whole numbers of 16 bits, in their type or float64; and what 1 is: a power of two."""
    largest = max(float(values.max()), -float(values.min()))
    unit = math.ldexp(1.0, math.frexp(largest)[1] - _BITS) if largest else 1.0
    if unit < _LEAST_UNIT:
        values = values.astype(np.float64)
    found = values * values.dtype.type(1.0 / unit)
    return np.rint(found, out=found), unit


def singles(values: Singles, bits: int) -> tuple[Singles, float, float]:
    """Values as whole numbers in float32, and what 1 stands for: no row or column has a norm above 2^bits, about.

    And the sum of all squares. Products in float32 take half as long as in float64; they are exact where the norms of
    what is multiplied are below 2^24 together, for no sum of products is larger than both norms.
    """
    found, unit = whole(values)
    squares = found.astype(np.float64)
    squares *= squares  # sums of these are exact
    of_rows = squares.sum(1)
    longest = max(float(of_rows.max()), float(squares.sum(0).max()))
    down = max(0, -(-(math.frexp(longest)[1] - 2 * bits) // 2))
    found = found.astype(np.float32, copy=False)
    found *= np.float32(2.0**-down)
    return np.rint(found, out=found), unit * 2.0**down, float(of_rows.sum()) * unit * unit


def orthonormal(rows: Floats) -> Floats:
    """An orthonormal basis of rows, shape (k, m) to (≤ k, m)."""
    found, _ = whole(rows)
    squares, turn = strongest(product(found, found.T))
    length = np.sqrt(np.maximum(squares, 1.0))  # of whole numbers; less is 0, where all cancel out
    return product((turn / length).T, found)


def strongest(products: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues that are not next to 0, descending, and their vectors as columns."""
    squares, vectors = eigen(products)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    some = squares >= _NEXT_TO_NOTHING * float(squares[0])
    return squares[some].copy(), vectors[:, some]


def inverse(products: Floats) -> Floats:
    """Of a symmetric matrix, as far as it has one."""
    squares, vectors = strongest(products)
    return product(vectors / squares, vectors.T)


def eigen(symmetric: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, ascending, and their vectors as columns."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(symmetric))
    return values.numpy(), vectors.numpy()
