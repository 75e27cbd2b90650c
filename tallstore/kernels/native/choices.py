"""Costs and harms of choices by the native library (`src/choices.c`): the numbers of `recipes.allocation`."""

from __future__ import annotations

from ctypes import Structure, byref, c_double, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels.logarithm import ROOT, SERIES
from tallstore.kernels.native import library
from tallstore.kernels.native.library import Function, address
from tallstore.kernels.scratch import scratch

__all__ = ["available", "dithered", "hard", "hull", "log2"]

Floats = npt.NDArray[np.float64]
_P, _N = c_void_p, c_int64
_TABLE: dict[str, Function] = {
    "dithered": (None, (_P, _P, _P, _P, _P, _N, _P, _N, _N, _P, _P)),
    "hard": (None, (_P, _P, _P, _P, _N, _N, _P, _P)),
    "hull": (_N, (_P, _P, _P, _N)),
    "log2_each": (None, (_P, _P, _N, _P)),
}


class _Logarithm(Structure):
    """`ts_logarithm` of `src/choices.c`."""

    _fields_ = (("root", c_double), ("series", c_double * 12))


class _Histogram(Structure):
    """`ts_histogram` of `src/choices.c`."""

    _fields_ = (
        ("n", c_int64),
        *((name, c_void_p) for name in ("counted", "middle", "edges")),
        *((name, c_double) for name in ("moved", "energy", "rms", "kappa", "fewest")),
    )


_LOGARITHM = _Logarithm(ROOT, tuple(SERIES.tolist()))


def available() -> bool:
    """Whether the native library is in use: see `library.chosen`."""
    return library.chosen() is not None


def _kernels() -> Any:
    chosen = library.chosen()
    assert chosen is not None, "asked for where it is not available"
    return _bound(chosen.variant)


@cache
def _bound(variant: str) -> Any:  # noqa: ARG001 - the variant in use is the key
    return library.bind(_TABLE)


def log2(values: Floats) -> Floats:
    """What `logarithm.log2` finds, of positive numbers, shape (n,)."""
    out = np.empty(len(values))
    _kernels().log2_each(address(out), address(values), len(values), byref(_LOGARITHM))
    return out


def hard(
    counted: Floats,
    middle: Floats,
    edges: Floats,
    bounds: Floats,
    moved: float,
    energy: float,
    rms: float,
    kappa: float,
    fewest: float,
) -> tuple[Floats, Floats]:
    """Choices without dither: entropy and signs in bits, and harm, infinite where a choice is not offered.

    Args:
        counted: how many parameters are in each bin, shape (B,).
        middle: the middle of each, shape (B,).
        edges: the lower edge of each, ascending, shape (B,).
        bounds: where levels begin, in root mean squares, shape (choices, levels); infinite where none does.
        moved: how many parameters moved.
        energy: Σ τ².
        rms: root mean square.
        kappa: how many times worse bias is than noise.
        fewest: marks below which a choice is not offered.
    """
    choices, levels = bounds.shape
    cost, harm = np.empty(choices), np.empty(choices)
    room = scratch("choices", 2 * len(counted) + 2 + levels, np.float64)
    histogram = _Histogram(
        *(len(counted), address(counted), address(middle), address(edges), moved, energy, rms, kappa, fewest)
    )
    _kernels().hard(
        *(address(cost), address(harm), byref(histogram), address(bounds), choices, levels),
        *(byref(_LOGARITHM), address(room)),
    )
    return cost, harm


def dithered(
    counted: Floats,
    sizes: Floats,
    low: Floats,
    slope: Floats,
    rate: Floats,
    levels: int,
    moved: float,
    kappa: float,
    fewest: float,
) -> tuple[Floats, Floats]:
    """The same of choices with dither: R with one level, then E with several, evenly spaced.

    Args:
        counted: how many parameters are in each bin, shape (B,).
        sizes: the middle of each in root mean squares, ascending, shape (B,).
        low: where marks begin, in root mean squares, ascending, shape (R,).
        slope: how much likelier they are per root mean square more, shape (R,).
        rate: levels per root mean square, shape (E,).
        levels: of each of the E.
        moved: how many parameters moved.
        kappa: how many times worse bias is than noise.
        fewest: marks below which a choice is not offered.
    """
    choices = len(low) + len(rate)
    cost, harm = np.empty(choices), np.empty(choices)
    room = scratch("choices", 3 * len(low) + levels, np.float64)
    histogram = _Histogram(len(counted), address(counted), address(sizes), None, moved, 0.0, 0.0, kappa, fewest)
    _kernels().dithered(
        *(address(cost), address(harm), byref(histogram), address(low), address(slope), len(low)),
        *(address(rate), len(rate), levels, byref(_LOGARITHM), address(room)),
    )
    return cost, harm


def hull(bits: Floats, harm: Floats) -> npt.NDArray[np.intp]:
    """The choices on the lower convex hull of harm over bits, by rising bits; none whose harm is infinite."""
    order = np.empty(len(bits), np.int64)
    kept = _kernels().hull(address(order), address(bits), address(harm), len(bits))
    return order[:kept].astype(np.intp, copy=False)
