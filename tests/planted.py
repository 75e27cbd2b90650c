"""Changes of a matrix of which it is known what is of low rank."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Singles = npt.NDArray[np.float32]


def planted(rows: int, columns: int, strengths: tuple[float, ...], noise: float, seed: int = 0) -> Singles:
    """Components, σ² being so many squares of strengths as there are elements, and white noise of a deviation."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((n, len(strengths))))[0] for n in (rows, columns))
    found = (left * np.array(strengths)) @ right.T * np.sqrt(rows * columns)
    changes: Singles = (found + noise * rng.standard_normal((rows, columns))).astype(np.float32)
    return changes


def square(changes: npt.NDArray[np.floating]) -> float:
    return float(np.square(changes, dtype=np.float64).sum())


def rms(changes: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(changes, dtype=np.float64))))
