"""Costs and harms of choices by the native library (`src/choices.c`): the numbers of `recipes.rate_distortion`."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, byref, c_double, c_int64, c_void_p

import numpy as np
import numpy.typing as npt

from tallstore.kernels.logarithm import ROOT, SERIES
from tallstore.kernels.native import library
from tallstore.kernels.native.library import Function, address
from tallstore.kernels.scratch import scratch

__all__ = ["LOGARITHM", "Ladders", "dithered", "hard", "hull", "log2", "offers", "price"]

Floats = npt.NDArray[np.float64]
_P, _N = c_void_p, c_int64
_TABLE: dict[str, Function] = {
    "dithered": (None, (_P, _P, _P, _P, _P, _N, _P, _N, _P, _N, _N, _P, _P)),
    "hard": (None, (_P, _P, _P, _P, _N, _N, _P, _P)),
    "hull": (_N, (_P, _P, _P, _N)),
    "log2_each": (None, (_P, _P, _N, _P)),
    "offers": (_N, (_P, _P, _P, _P, _P, _P, _P)),
    "price": (None, (_P, _P, _P, _P, _P, _N, c_double, c_double, _P, _P)),
}


class _Logarithm(Structure):
    """`ts_logarithm` of `src/logarithm.h`."""

    _fields_ = (("root", c_double), ("series", c_double * 12))


class _Histogram(Structure):
    """`ts_histogram` of `src/choices.c`."""

    _fields_ = (
        ("n", c_int64),
        *((name, c_void_p) for name in ("counted", "middle", "edges")),
        *((name, c_double) for name in ("moved", "energy", "rms", "kappa", "fewest")),
    )


class _Ladders(Structure):
    """`ts_ladders` of `src/choices.c`."""

    _fields_ = (
        *((name, c_int64) for name in ("hards", "ramps", "evens", "dithers", "levels")),
        *((name, c_void_p) for name in ("bounds", "low", "slope", "rate", "dither", "tables", "coder")),
    )


class Ladders:
    """Everything that is on offer, for `offers`: see `hard` and `dithered`."""

    def __init__(
        self,
        bounds: Floats,
        dither: tuple[Floats, Floats, Floats, Floats],
        levels: int,
        tables: Floats,
        coder: Floats,
        fewest: float,
    ) -> None:
        """Arrays as `dithered` and `hard` take them.

        `dither`: low, slope, rate, and some dithers; `tables`: bits beside `coder` times the entropy, of each choice.
        """
        self._kept = bounds, *dither, tables, coder  # as long as their addresses
        self.sizes = len(bounds), len(dither[0]), len(dither[2]), len(dither[3]), levels
        self.fewest = fewest
        self.passed = _Ladders(*self.sizes, *(address(each) for each in self._kept))


LOGARITHM = _Logarithm(ROOT, tuple(SERIES.tolist()))


_kernels = library.kernels_of(_TABLE, needed=True)


def log2(values: Floats) -> Floats:
    """What `logarithm.log2` finds, of positive numbers, shape (n,)."""
    out = np.empty(len(values))
    _kernels().log2_each(address(out), address(values), len(values), byref(LOGARITHM))
    return out


def hard(
    counted: Floats,
    middle: Floats,
    edges: Floats,
    bounds: Floats,
    among: float,
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
        among: how many parameters marks are among.
        energy: Σ τ².
        rms: root mean square.
        kappa: how many times worse bias is than noise.
        fewest: marks below which a choice is not offered.
    """
    choices, levels = bounds.shape
    cost, harm = np.empty(choices), np.empty(choices)
    room = scratch("choices", 3 * (len(counted) + 1) + levels, np.float64)
    histogram = _Histogram(
        *(len(counted), address(counted), address(middle), address(edges), among, energy, rms, kappa, fewest)
    )
    _kernels().hard(
        *(address(cost), address(harm), byref(histogram), address(bounds), choices, levels),
        *(byref(LOGARITHM), address(room)),
    )
    return cost, harm


def dithered(
    counted: Floats,
    sizes: Floats,
    low: Floats,
    slope: Floats,
    rate: Floats,
    dither: Floats,
    levels: int,
    among: float,
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
        dither: some, which stand for all, shape (D,).
        levels: of each of the E.
        among: how many parameters marks are among.
        kappa: how many times worse bias is than noise.
        fewest: marks below which a choice is not offered.
    """
    choices = len(low) + len(rate)
    cost, harm = np.empty(choices), np.empty(choices)
    room = scratch("choices", 3 * (len(low) + len(counted) + 1) + levels, np.float64)
    histogram = _Histogram(len(counted), address(counted), address(sizes), None, among, 0.0, 0.0, kappa, fewest)
    _kernels().dithered(
        *(address(cost), address(harm), byref(histogram), address(low), address(slope), len(low)),
        *(address(rate), len(rate), address(dither), len(dither), levels, byref(LOGARITHM), address(room)),
    )
    return cost, harm


def hull(bits: Floats, harm: Floats) -> npt.NDArray[np.intp]:
    """The choices on the lower convex hull of harm over bits, by rising bits; none whose harm is infinite."""
    order = np.empty(len(bits), np.int64)
    kept = _kernels().hull(address(order), address(bits), address(harm), len(bits))
    return order[:kept].astype(np.intp, copy=False)


def offers(
    counted: Floats,
    middle: Floats,
    edges: Floats,
    among: float,
    energy: float,
    rms: float,
    kappa: float,
    own: Ladders,
) -> tuple[npt.NDArray[np.intp], Floats, Floats]:
    """`hull` of all choices, `dithered` ones only where kappa is above 1; and the bits and harm of all."""
    hards, ramps, evens, _, levels = own.sizes
    count = hards + (ramps + evens if kappa > 1 else 0)
    order, bits, harm = np.empty(count, np.int64), np.empty(count), np.empty(count)
    room = scratch("choices", 4 * len(counted) + 3 * (hards + ramps + evens + levels + 1), np.float64)
    histogram = _Histogram(
        *(len(counted), address(counted), address(middle), address(edges), among, energy, rms, kappa, own.fewest)
    )
    kept = _kernels().offers(
        *(address(order), address(bits), address(harm), byref(histogram), byref(own.passed)),
        *(byref(LOGARITHM), address(room)),
    )
    return order[:kept].astype(np.intp, copy=False), bits, harm


def price(
    counted: Floats,
    middle: Floats,
    edges: Floats,
    among: float,
    energy: float,
    bounds: Sequence[Floats],
    coder: float,
    level: float,
) -> tuple[Floats, Floats]:
    """Bits and harm of hard choices that begin at given edges, kappa being 1.

    Args:
        counted: how many parameters are in each bin, shape (B,).
        middle: the middle of each, shape (B,).
        edges: the lower edge of each bin, ascending, shape (B,).
        among: how many parameters marks are among.
        energy: Σ τ².
        bounds: of each choice where its levels begin, ascending, at most 127.
        coder: bits for each bit of entropy.
        level: bits for each level.
    """
    bits, harm = np.empty(len(bounds)), np.empty(len(bounds))
    ends, every = np.cumsum([len(each) for each in bounds], dtype=np.int64), np.concatenate(bounds)
    room = scratch("choices", 2 * (len(counted) + 1), np.float64)
    histogram = _Histogram(
        *(len(counted), address(counted), address(middle), address(edges), among, energy, 0.0, 1.0, 0.0)
    )
    _kernels().price(
        *(address(bits), address(harm), byref(histogram), address(every), address(ends), len(ends)),
        *(coder, level, byref(LOGARITHM), address(room)),
    )
    return bits, harm
