"""Directions in which a chunk's elements moved together: chosen from the signs of their steps.

Gradients are nearly of low rank, and most so their signs: a few pairs of singular vectors of the matrix of signs say
which way most elements moved that moved at all. The vectors along rows are found by subspace iteration on some of the
rows, all in whole numbers or single operations on them, so that they are the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tallstore.kernels.lattice import LARGEST, Prepared, Rows
from tallstore.kernels.lattice_choices import FINEST, MOST_ROWS
from tallstore.kernels.lattice_fast import along_rows, project

__all__ = ["COEFFICIENT_BITS", "affordable", "directed"]

Floats = npt.NDArray[np.float64]

_RANK = 4
_DEAR = 0.07
"""Most bits an element that directions may take."""
COEFFICIENT_BITS = 4
"""What an integer of a direction takes, about."""
_FEWEST_MOVED = 16
"""Where fewer than one element in so many moved, no direction pays for itself."""
_TURNS = 3
_SPREAD = 3
"""The largest integer of a direction stands for so many root mean squares."""


def affordable(rows: int, width: int) -> int:
    """How many directions a matrix may have: none, one, or a power of two of them."""
    rank = _RANK
    while rank and rank * COEFFICIENT_BITS * (rows + width) > _DEAR * rows * width:
        rank //= 2
    return rank if rows >= 2 * rank else 0


def directed(prepared: Prepared, rows: Rows, rank: int | None = None) -> Rows:
    """The same rows with directions, or as they are where none would pay.

    Args:
        prepared: the steps of a chunk.
        rows: its segments, without directions; their width is not 0.
        rank: how many directions; by default as many as the chunk may have.
    """
    n = len(prepared.symbols)
    skipped = rows.first % rows.width
    whole = (n - skipped) // rows.width
    rank = affordable(whole, rows.width) if rank is None else rank
    if not rank or not whole:
        return rows
    matrix = prepared.symbols[skipped : skipped + whole * rows.width].reshape(whole, rows.width)
    some = np.ascontiguousarray(matrix[:: -(-whole // MOST_ROWS)])
    if np.count_nonzero(some) * _FEWEST_MOVED < some.size:
        return rows
    wide = along_rows(_begin(rank, rows.width), some, _TURNS).astype(np.float64)
    along = _rounded(wide, LARGEST / _SPREAD / np.maximum(_spread(wide, axis=1), 1e-9)[:, None])
    projected = project(prepared, replace(rows, along=along)).astype(np.float64)
    strength = float(_spread(projected, axis=0)[0])
    if not strength:
        return rows
    across = _rounded(projected, LARGEST / _SPREAD / strength)
    tall, wide = across.astype(np.float64), along.astype(np.float64)
    energy = float(((tall.T @ tall) * (wide @ wide.T)).sum()) / (len(across) * rows.width)
    third = math.sqrt(max(energy, 0.0)) / 3
    marks = np.array([max(1, math.ceil(times * third)) for times in (1, 3, 5)], np.uint16)
    return replace(rows, along=along, across=across, marks=marks)


def _spread(numbers: Floats, axis: int) -> Floats:
    """Root mean squares of whole numbers."""
    spread: Floats = np.sqrt((numbers**2).mean(axis))
    return spread


@lru_cache(maxsize=64)
def _begin(rank: int, width: int) -> npt.NDArray[np.int64]:
    """Numbers to begin with: any will do that lie apart."""
    scattered = (np.arange(width * rank, dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(13)) % np.uint64(255)
    return np.ascontiguousarray(scattered.reshape(width, rank).T).astype(np.int64) - FINEST


def _rounded(values: Floats, scale: float | Floats) -> npt.NDArray[np.int8]:
    return np.clip(np.rint(values * scale), -LARGEST, LARGEST).astype(np.int8)
