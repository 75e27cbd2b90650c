"""Levels and what is kept of them, and elements that moved, by the native library (`src/levels.c`, `marks.c`).

As in `encode`: each gives what its reference in `encoder` gives, bit for bit.
"""

from __future__ import annotations

from ctypes import c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.kernels.native import library
from tallstore.kernels.native.encode import NativeRow, Seen, room
from tallstore.kernels.native.library import Function, address
from tallstore.kernels.scratch import scratch

__all__ = ["MovedArrays", "levels", "measure_levels", "moved", "place_rounded", "scatter"]

Bytes = npt.NDArray[np.uint8]
Singles = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Places = npt.NDArray[np.uint32]

_P, _I, _N, _D, _F, _U = c_void_p, c_int32, c_int64, c_double, c_float, c_uint32
_TABLE: dict[str, Function] = {
    "levels": (_D, (_P, _P, _P, _P, _N, _P, _I, _F, _P, _U, _P)),
    "measure_levels": (None, (_P, _P, _P, _P, _P, _N, _I, _P)),
    "moved": (_N, (_P, _P, _P, _P, _P, _N, _P, _N)),
    "place_rounded": (None, (_P, _P, _P, _P, _P, _N, _P, _I, _F, _F, _F, _U, _I, _P)),
    "scatter": (None, (_P, _N, _P, _P, _N, _I)),
}


_kernels = library.kernels_of(_TABLE, needed=True)


class MovedArrays(NamedTuple):
    """Elements that moved, one behind the other, in `scratch`: shape (m,) each."""

    places: Places
    """Where each is, from the first of the chunk on."""
    tau: Singles
    base: Singles


def moved(seen: Seen, row: NativeRow, start: int, base: Singles) -> MovedArrays | None:
    """Elements [start, start + n) of a row with τ ≠ 0, which NaN is too; None where not all could be read.

    Args:
        seen: added to.
        row: θt.
        start: the element of the row that is the first one here.
        base: θ0 of these elements, shape (n,).
    """
    n = len(base)
    places, tau, before = (
        scratch("places", n, np.uint32),
        scratch("tau", n, np.float32),
        scratch("before", n, np.float32),
    )
    count = _kernels().moved(
        *(address(places), address(tau), address(before), seen.passed(), row.passed(), start, address(base), n)
    )
    return None if count < 0 else MovedArrays(places[:count], tau[:count], before[:count])


def scatter(out: Bytes, places: Places, symbols: Bytes, bits: int) -> None:
    """Symbols at places and zeros between them, of 2 bits or 8; `out` has room for all and is set."""
    _kernels().scatter(address(out), len(out), address(places), address(symbols), len(places), bits)


def measure_levels(tau: Singles, base: Singles | None, indices: Bytes, table: Singles, form: int) -> tuple[float, ...]:
    """What `encoder.metrics.sums` measures of a row and what a decoder makes of its levels.

    `base`: θ0, finite numbers of the row's type; needed of a narrow row alone, whose sums are rounded.
    """
    n, sums, table = len(tau), np.empty(5), np.ascontiguousarray(table, np.float32)
    before = None if base is None else address(base)
    _kernels().measure_levels(
        *(address(sums), address(tau), before, address(indices), address(table), n, form, room(n, 4))
    )
    return tuple(sums.tolist())


def levels(
    indices: Bytes, tau: Singles, bounds: Singles, width: float, places: Places | None, first: int
) -> tuple[Integers, Floats, float]:
    """Indices of magnitudes: 0, then each level of +, then each of −; `encoder.quantize` has the reference.

    Args:
        indices: shape (n,); set.
        tau: τ, shape (n,).
        bounds: where levels begin, ascending, at most 127.
        width: a float32; above 0, bounds are raised by it times the number of each parameter's place.
        places: where in the chunk parameters are, shape (n,); None where they follow each other.
        first: what is mixed for the chunk's first parameter: `place_hash.first_of`.

    Returns how many elements have each index, the sums of their magnitudes, and ‖τ‖².
    """
    size = 1 + 2 * len(bounds)
    numbers, totals = np.empty(size, np.int64), np.empty(size)
    where = None if places is None else address(places)
    norm = _kernels().levels(
        *(address(indices), address(numbers), address(totals), address(tau), len(tau)),
        *(address(bounds), len(bounds), width, where, first, room(len(tau))),
    )
    return numbers, totals, float(norm)


def place_rounded(
    indices: Bytes,
    places: Places,
    tau: Singles,
    base: Singles,
    values: Singles,
    shape: tuple[float, float, float, int],
    form: int,
) -> tuple[float, ...]:
    """Levels with dither by what a decoder returns, and what they keep: `encoder.rounded_levels` has the reference.

    Args:
        indices: shape (m,); set, numbered as those of `levels`.
        places: where in the chunk elements are, shape (m,).
        tau: τ, shape (m,), not 0.
        base: θ0, shape (m,): finite numbers of the row's type.
        values: what levels add, ascending, at most 127.
        shape: where levels begin, low, width and k there; what is mixed for the chunk's first parameter, modulo
            2^32.
        form: BFLOAT16 or FLOAT16.
    """
    n, sums, values = len(tau), np.empty(5), np.ascontiguousarray(values, np.float32)
    _kernels().place_rounded(
        *(address(sums), address(indices), address(tau), address(base), address(places), n),
        *(address(values), len(values), *shape, form, room(n, 4)),
    )
    return tuple(sums.tolist())
