"""Directions in which a chunk's elements moved together: chosen from the signs of their steps.

Gradients are nearly of low rank, and most so their signs: a few pairs of singular vectors of the matrix of signs say
which way most elements moved that moved at all. The vectors along rows are found by subspace iteration on some of the
rows, all in whole numbers or single operations on them, so that they are the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tallstore.kernels.lattice import LARGEST, Prepared, Rows
from tallstore.kernels.lattice_fast import project

__all__ = ["directed"]

Floats = npt.NDArray[np.float64]

_RANK = 4
_DEAR = 0.07
"""Most bits an element that directions may take."""
_COEFFICIENT_BITS = 4
_FEWEST_MOVED = 16
"""Where fewer than one element in so many moved, no direction pays for itself."""
_LOOKED_AT = 256
"""Rows from which directions are found."""
_TURNS = 3
_FINE = 127
"""Magnitude of integers while directions are looked for."""
_SPREAD = 3
"""The largest integer of a direction stands for so many root mean squares."""


def directed(prepared: Prepared, rows: Rows) -> Rows:
    """The same rows with directions, or as they are where none would pay.

    Args:
        prepared: the steps of a chunk.
        rows: its segments, without directions; their width is not 0.
    """
    n = len(prepared.symbols)
    skipped = rows.first % rows.width
    whole = (n - skipped) // rows.width
    rank = _RANK
    while rank and rank * _COEFFICIENT_BITS * (whole + rows.width) > _DEAR * n:
        rank //= 2
    if not rank or whole < 2 * rank:
        return rows
    matrix = prepared.symbols[skipped : skipped + whole * rows.width].reshape(whole, rows.width)
    some = np.sign(matrix[:: -(-whole // _LOOKED_AT)])
    if np.count_nonzero(some) * _FEWEST_MOVED < some.size:
        return rows
    along = _along(some, rank)
    across = project(prepared, replace(rows, along=along)).astype(np.float64)
    strength = math.sqrt(float((across[:, 0] ** 2).mean()))
    if not strength:
        return rows
    across = _rounded(across, LARGEST / _SPREAD / strength, LARGEST)
    wide = along.astype(np.float64)
    energy = float(((across.T @ across) * (wide @ wide.T)).sum()) / (len(across) * rows.width)
    third = math.sqrt(max(energy, 0.0)) / 3
    marks = np.array([max(1, math.ceil(times * third)) for times in (1, 3, 5)], np.uint16)
    return replace(rows, along=along, across=across.astype(np.int8), marks=marks)


def _along(signs: npt.NDArray[np.int8], rank: int) -> npt.NDArray[np.int8]:
    """Directions along rows, of a matrix of signs: shape (rank, width)."""
    exact = np.float32 if max(signs.shape) * _FINE < 1 << 24 else np.float64
    matrix = signs.astype(exact)
    width = signs.shape[1]
    scattered = (np.arange(width * rank, dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(13)) % np.uint64(255)
    direction = scattered.reshape(width, rank).astype(np.float64) - _FINE
    for _ in range(_TURNS):
        across = _apart((matrix @ direction.astype(exact)).astype(np.float64))
        direction = _apart((matrix.T @ across.astype(exact)).astype(np.float64))
    spread = np.sqrt((direction**2).mean(0))
    scaled = _rounded(direction, LARGEST / _SPREAD / np.maximum(spread, 1e-9), LARGEST)
    return np.ascontiguousarray(scaled.T).astype(np.int8)


def _apart(vectors: Floats) -> Floats:
    """Vectors of whole numbers, shape (n, rank), each with what those in front of it have in common taken out."""
    out = np.empty_like(vectors)
    for at in range(vectors.shape[1]):
        each = vectors[:, at]
        for before in out[:, :at].T:
            norm = float(before @ before)
            if norm:
                each = each - float(vectors[:, at] @ before) / norm * before
        top = float(np.abs(each).max())
        out[:, at] = _rounded(each, _FINE / top if top else 0.0, _FINE)
    return out


def _rounded(values: Floats, scale: float | Floats, most: int) -> Floats:
    return np.clip(np.rint(values * scale), -most, most)
