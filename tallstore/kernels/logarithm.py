"""Logarithms made of the four operations: the last bits of `np.log2` differ from one processor to another."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["ROOT", "SERIES", "log2"]

Floats = npt.NDArray[np.float64]
ROOT = math.sqrt(0.5)
SERIES = 2 / math.log(2) / np.arange(1.0, 24.0, 2.0)
"""log2 m = z · (SERIES[0] + SERIES[1]·z² + SERIES[2]·z⁴ + …) with z = (m − 1)/(m + 1), for m from 1/√2 to √2."""


def log2(values: Floats) -> Floats:
    """Logarithms of positive numbers, float64 of any shape; within a few units in the last place."""
    part, power = np.frexp(values)
    low = part < ROOT
    part, power = np.where(low, 2 * part, part), power - low
    z = (part - 1) / (part + 1)
    square, series = z * z, np.full_like(z, SERIES[-1])
    for factor in SERIES[-2::-1].tolist():
        series = series * square + factor
    result: Floats = power + z * series
    return result
