"""Encoding kernels of the native library (`src/marks.c`, `tally.c`, `encode.c` …) as functions of arrays.

Each gives what the reference in `encoder`, `recipes` and `codecs` gives, bit for bit. They may be called only where the
library is in use (`kernels.registry`). Callers see to sizes and types; results go to the caller's arrays or to this
thread's `scratch`.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_double, c_float, c_int32, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.kernels.native import library
from tallstore.kernels.native.library import Function, address
from tallstore.kernels.scratch import scratch

__all__ = [
    "NativeRow",
    "Seen",
    "agree",
    "bits_on",
    "changes",
    "coherence",
    "count_bytes",
    "look",
    "mark",
    "nearest",
    "norms",
    "pack_indices",
    "packed_to_gaps",
    "room",
    "signed_levels",
    "split",
    "subtract",
    "tally",
    "tally_row",
    "without_zeros",
]

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Singles = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_P, _I, _N, _D, _F, _U = c_void_p, c_int32, c_int64, c_double, c_float, c_uint32
_TABLE: dict[str, Function] = {
    "agree": (None, (_P, _P, _P, _N, _I, _P)),
    "bits_on": (_N, (_P, _N)),
    "changes": (None, (_P, _P, _P, _N, _I)),
    "coherence": (_N, (_P, _P, _P, _N, _N, _P, _I, _P, _P, _P, _P)),
    "count_bytes": (None, (_P, _P, _N)),
    "look": (_I, (_P, _P, _P, _N, _I)),
    "mark": (_N, (_P, _P, _P, _P, _N, _P, _N, _F, _F, _U, _P)),
    "nearest": (None, (_P, _P, _N, _P, _N, _P)),
    "norms": (None, (_P, _P, _P, _P, _P, _N, _P, _N, _P)),
    "pack_indices": (None, (_P, _P, _N, _P, _I)),
    "packed_to_gaps": (_N, (_P, _P, _P, _N, _I)),
    "signed_levels": (None, (_P, _P, _N, c_uint8)),
    "split": (None, (_P, _P, _N, _I, _I)),
    "subtract": (_N, (_P, _P, _P, _P, _N, _P)),
    "tally": (_N, (_P, _P, _P, _P, _P, _N, _I, _P, _N, _P)),
    "tally_row": (_N, (_P, _P, _P, _P, _P, _P, _N, _P, _N, _I, _P, _N, _P)),
    "without_zeros": (None, (_P, _P, _N)),
}
BLOCK = 1024
"""Products that are added up first, by themselves: see `encoder.metrics`."""
TILE = 1 << 15
"""Elements that `mark` reads, and adds up, at a time."""
SLACK = 64
"""Bytes that `packed_to_gaps` writes behind the last gap, at most."""
_FLOAT32, _FLOAT64 = 0, 3
_MORE = 255
_TURNS = 4
_COLUMNS = 512
"""Of rows whose products are made at a time: see `src/coherence.c`."""


_kernels = library.kernels_of(_TABLE, needed=True)


class _Row(Structure):
    """`ts_row` of `src/rows.h`."""

    _fields_ = (("form", c_int32), ("handle", c_int32), ("at", c_int64), ("data", c_void_p))


class _Seen(Structure):
    """`ts_seen` of `src/rows.h`."""

    _fields_ = (("differs", c_uint32), ("largest", c_uint32))


class NativeRow(NamedTuple):
    """A tensor's elements, in a file or in memory."""

    form: int
    """One of `kernels.native_types`."""
    handle: int = -1
    """The file's descriptor; below 0: in memory."""
    at: int = 0
    """The file's byte that is element 0's first."""
    data: Array | None = None
    """The elements, as bits or numbers."""

    def passed(self) -> Any:
        """As a kernel takes it."""
        return byref(_Row(self.form, self.handle, self.at, None if self.data is None else address(self.data)))


class Seen:
    """What kernels see of a row on their way, in one or several calls."""

    def __init__(self) -> None:
        self._words = _Seen(0, 0)

    def passed(self) -> Any:
        """As a kernel takes it."""
        return byref(self._words)

    @property
    def differs(self) -> bool:
        """Whether any bit is not the base's."""
        return bool(self._words.differs)

    @property
    def largest(self) -> float:
        """The largest magnitude; not finite if there was a NaN."""
        return float(np.uint32(self._words.largest).view(np.float32))


def _aligned(array: Array) -> Array:
    """The same elements, contiguous and where the processor likes them: a copy if need be."""
    return np.require(array, requirements=("C", "A"))


def room(n: int, each: int = 1) -> int:
    """Memory for the sums of blocks of n elements, `each` times."""
    return address(scratch("sums", each << max(-(-n // BLOCK) - 1, 0).bit_length(), np.float64))


def look(weights: Array, base: Array) -> tuple[bool, int]:
    """Whether two arrays of floats, as words, are equal in every bit; the largest magnitude of the first, as bits."""
    weights, base, top = _aligned(weights), _aligned(base), c_uint64()
    same = _kernels().look(byref(top), address(weights), address(base), len(weights), weights.itemsize)
    return bool(same), top.value


def mark(
    packed: Bytes,
    sums: Floats,
    seen: Seen,
    row: NativeRow,
    start: int,
    base: Singles,
    low: float,
    width: float,
    first: int,
) -> bool:
    """Signed marks where |τ| ≥ low + u · width, and what `encoder.metrics.sums` measures of them over v = 1.

    Args:
        packed: room for n symbols of two bits; set.
        sums: shape (5,): added to: nothing, ‖τ‖², ‖w‖², ⟨τ, w⟩, marks.
        seen: whether any bit of θt is not the base's. (‖τ‖² is not finite where θt holds what arithmetic cannot carry,
            if the base does not.)
        row: θt, float32.
        start: the element of the row that is the first one here.
        base: θ0, shape (n,).
        low: least magnitude, a float32.
        width: a float32. Above 0, u is the number of each parameter's place.
        first: what is mixed for the first parameter: `place_hash.first_of`.

    Returns whether all of the row could be read.
    """
    own = scratch("tile", TILE, np.float32)
    done = _kernels().mark(
        *(address(packed), address(sums), seen.passed(), row.passed(), start, address(base), len(base)),
        *(low, width, first, address(own)),
    )
    return bool(done == len(base))


def agree(tau: Array, kept: Array) -> tuple[float, ...]:
    """‖τ − τ̂‖², ‖τ‖², ‖τ̂‖², ⟨τ, τ̂⟩, both float32 or both float64, shape (n,)."""
    tau, kept = _aligned(tau), _aligned(kept.astype(tau.dtype, copy=False))
    n, sums = len(tau), np.empty(4)
    form = _FLOAT64 if tau.dtype == np.float64 else _FLOAT32
    _kernels().agree(address(sums), address(tau), address(kept), n, form, room(n, 4))
    return tuple(sums.tolist())


def changes(weights: Array, base: Array, form: int) -> Singles:
    """θt − θ0 in float32, of words of a type of 16 bits, shape (n,); `form`: the type, as `native_types` numbers it."""
    out = np.empty(len(weights), np.float32)
    _kernels().changes(address(out), address(weights), address(base), len(weights), form)
    return out


def subtract(tau: Singles, seen: Seen, row: NativeRow, runs: Integers, base: Singles) -> bool:
    """τ = θt − θ0 of runs of a row, one behind the other; whether all could be read.

    Args:
        tau: shape (n,); set.
        seen: added to.
        row: θt.
        runs: of each run its first element and the one behind its last, shape (R, 2).
        base: θ0 of the same elements, shape (n,).
    """
    done = _kernels().subtract(*(address(tau), seen.passed(), row.passed(), address(runs), len(runs), address(base)))
    return bool(done == len(base))


Tally = tuple[Floats, int, float]
"""Parameters in each bin, from the first that has any to the last; that first bin; Σ θ0² of these parameters."""


def tally(tau: Singles, base: Singles, shift: int, bins: int) -> Tally:
    """Count |τ| by its upper bits: see `recipes.histogram.magnitudes`. Zeros are not counted.

    Args:
        tau: shape (n,).
        base: θ0, shape (n,).
        shift: of |τ| as a word, to its bin.
        bins: how many there are.
    """
    tau, base = _aligned(tau), _aligned(base)
    counts, first, energy = scratch("counts", bins, np.float64), c_int64(), c_double()
    tables = scratch("tables", _TURNS * bins, np.uint32)
    used = _kernels().tally(
        *(address(counts), byref(first), byref(energy), address(tau), address(base), len(tau)),
        *(shift, address(tables), bins, room(len(tau))),
    )
    return counts[:used].copy(), first.value, energy.value


def tally_row(seen: Seen, row: NativeRow, runs: Integers, base: Singles, shift: int, bins: int) -> Tally | None:
    """The same of runs of a row against their base; None where not all of them could be read.

    Args:
        seen: added to.
        row: θt.
        runs: of each run its first element and the one behind its last, shape (R, 2).
        base: θ0 of the same elements, one behind the other, shape (n,).
        shift: as above.
        bins: likewise.
    """
    counts, first, energy = scratch("counts", bins, np.float64), c_int64(), c_double()
    tables = scratch("tables", _TURNS * bins, np.uint32)
    used = _kernels().tally_row(
        *(address(counts), byref(first), byref(energy), seen.passed(), row.passed()),
        *(address(runs), len(runs), address(base), len(base), shift, address(tables), bins, room(len(base))),
    )
    return None if used < 0 else (counts[:used].copy(), first.value, energy.value)


def norms(totals: Floats, tau: Singles, weights: Singles, merged: Singles, energy: Floats, lams: Singles) -> None:
    """Add ‖τ‖², and ‖m·v‖² of the TALL-mask at each λ.

    Args:
        found: shape (1 + G,): added to.
        tau: shape (n,).
        weights: θt, shape (n,).
        merged: θ0 + v, shape (n,).
        energy: v², shape (n,).
        lams: λ, shape (G,).
    """
    tau, weights, merged = _aligned(tau), _aligned(weights), _aligned(merged)
    memory = scratch("norms", len(totals) * BLOCK, np.float64)
    _kernels().norms(
        *(address(totals), address(tau), address(weights), address(merged), address(energy), len(tau)),
        *(address(lams), len(lams), address(memory)),
    )


def nearest(values: Singles, edges: Singles, order: Bytes) -> Bytes:
    """order[how many edges lie below each value]: shape (n,); edges ascend, at most 255."""
    values, out = _aligned(values), np.empty(len(values), np.uint8)
    _kernels().nearest(address(out), address(values), len(values), address(edges), len(edges), address(order))
    return out


def count_bytes(values: Bytes) -> Integers:
    """How often each byte comes: shape (256,)."""
    counts = np.empty(256, np.int64)
    _kernels().count_bytes(address(counts), address(values), len(values))
    return counts


def coherence(row: NativeRow, firsts: Integers, base: Singles, bits: int) -> tuple[float, ...] | None:
    """The sums that `recipes.coherence.gain_of` takes, zeros where too few rows moved; None where one cannot be read.

    Args:
        row: θt.
        firsts: the elements that rows begin with, shape (R,).
        base: θ0 of them, shape (R, n).
        bits: of the integers that τ is rounded to.
    """
    count, n = base.shape
    sums, words = np.zeros(4), scratch("words", n, np.uint16)
    tau, whole = scratch("coherence", count * n, np.float32), scratch("whole", (count + 3) * _COLUMNS, np.float64)
    products = scratch("products", count * count, np.float64)
    status = _kernels().coherence(
        *(address(sums), row.passed(), address(firsts), count, n, address(base), bits, address(tau)),
        *(address(words), address(whole), address(products)),
    )
    return None if status < 0 else tuple(sums.tolist())


def pack_indices(indices: Bytes, order: Bytes, bits: int) -> Bytes:
    """order[index], one to a byte (8 bits), or two, the first in the low half (4)."""
    out = np.empty(-(-len(indices) * bits // 8), np.uint8)
    _kernels().pack_indices(address(out), address(indices), len(indices), address(order), bits)
    return out


def signed_levels(indices: Bytes, count: int) -> npt.NDArray[np.int8]:
    """Indices into 0, the levels of +, then those of −, `count` of each, as numbers."""
    numbers = np.empty(len(indices), np.int8)
    _kernels().signed_levels(address(numbers), address(indices), len(indices), count)
    return numbers


def without_zeros(indices: Bytes, count: int) -> Bytes:
    """The indices that are not 0, `count` in all."""
    rest = np.empty(count + 1, np.uint8)
    _kernels().without_zeros(address(rest), address(indices), len(indices))
    return rest[:count]


def bits_on(packed: Bytes) -> int:
    """How many bits are set."""
    return int(_kernels().bits_on(address(packed), len(packed)))


def packed_to_gaps(packed: Bytes, n: int, count: int, bits: int) -> tuple[Bytes, Bytes]:
    """Gaps and packed signs of n packed symbols, the bits behind the last being 0; both in `scratch`.

    Args:
        packed: the symbols, shape (bytes,).
        n: how many there are.
        count: how many of them are on.
        bits: of a symbol; with 1 there are no signs.
    """
    gaps = scratch("gaps", count + n // _MORE + 1 + SLACK, np.uint8)
    signs = scratch("signs", count // 64 + 1, np.uint64)
    size = _kernels().packed_to_gaps(address(gaps), address(signs), address(packed), len(packed), bits)
    return gaps[:size], signs.view(np.uint8)[: -(-count // 8) if bits == 2 else 0]


def split(words: Array, rotated: bool) -> Bytes:
    """Bytes of equal place of unsigned words, least significant first: shape (bytes of a word, n); in `scratch`."""
    words = _aligned(words)
    planes = scratch("planes", words.nbytes, np.uint8)
    _kernels().split(address(planes), address(words), len(words), words.itemsize, rotated)
    return planes.reshape(words.itemsize, len(words))
