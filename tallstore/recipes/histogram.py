"""Histograms of task vectors' magnitudes: what tensors are known by when bits are given out.

32 bins to the octave, the same on every machine. Everything is added up one after the other: `sum` leaves open in which
order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from tallstore.kernels.native import encode
from tallstore.kernels.registry import kernel

__all__ = ["BINS", "EDGES", "NARROW_BYTES", "SHIFT", "Floats", "Magnitudes", "add_up", "added", "magnitudes"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

SHIFT = 18
"""Of |τ| as a word, to its bin."""
BINS = 1 << (31 - SHIFT)
"""Bins of a histogram: the exponent of a float32 and the upper five bits of its mantissa, 32 to the octave."""
_FINITE = 0x7F800000 >> SHIFT
_WORDS = np.minimum(np.arange(BINS, dtype=np.uint32), _FINITE - 1) << SHIFT
EDGES = _WORDS.view(np.float32).astype(np.float64)
_MIDDLE = (EDGES * (1 + 2.0**-6)).astype(np.float64)
"""Lower edge and middle of each bin."""
NARROW_BYTES = 2
"""Bytes that types of few bits have at most."""


@dataclass
class Magnitudes:
    """Histogram of |τ| of one tensor of one task, over the parameters that moved at all."""

    counts: Floats = field(default_factory=lambda: np.zeros(0))
    """Of the bins from `first` on. The rest, most of them by far, are empty."""
    first: int = 0
    base_energy: float = 0.0
    """Σ θ0² where τ ≠ 0."""
    still: float = 0.0
    """Parameters that did not move, in a type of few bits: they lie scattered, and marks tell which did."""
    narrow: bool = False
    """Whether they are of a type of few bits."""
    _sums: tuple[float, float] | None = field(default=None, init=False, repr=False, compare=False)
    """`moved` and `energy`, once one of them was asked for, and until they change."""

    def of(self, n: int, *, narrow: bool) -> Magnitudes:
        """The same of n parameters, not scaled yet."""
        return replace(self, still=n - float(self.counts.sum()), narrow=True) if narrow else self

    def add(self, other: Magnitudes) -> None:
        """Add another run of the same tensor."""
        self._sums = None
        self.base_energy += other.base_energy
        self.still += other.still
        if not len(self.counts):
            self.counts, self.first = other.counts.copy(), other.first
            return
        first = min(self.first, other.first)
        counts = np.zeros(max(self.first + len(self.counts), other.first + len(other.counts)) - first)
        for each in (self, other):
            counts[each.first - first : each.first - first + len(each.counts)] += each.counts
        self.counts, self.first = counts, first

    @property
    def middle(self) -> Floats:
        """The middle of each bin."""
        return _MIDDLE[self.first : self.first + len(self.counts)]

    @property
    def edges(self) -> Floats:
        """The lower edge of each bin."""
        return EDGES[self.first : self.first + len(self.counts)]

    def scale(self, weight: float) -> None:
        """Let every parameter that was counted stand for so many."""
        if weight != 1.0:
            self._sums = None
            self.counts *= weight
            self.base_energy *= weight
            self.still *= weight

    def _moved_and_energy(self) -> tuple[float, float]:
        if self._sums is None:
            energy = self.counts * np.square(self.middle)
            self._sums = (float(added(self.counts)), float(added(energy))) if len(energy) else (0.0, 0.0)
        return self._sums

    @property
    def energy(self) -> float:
        """Σ τ²."""
        return self._moved_and_energy()[1]

    @property
    def moved(self) -> float:
        """Parameters that moved."""
        return self._moved_and_energy()[0]

    @property
    def among(self) -> float:
        """Parameters that marks are among."""
        return self.moved + self.still

    @property
    def rms(self) -> float:
        """Root mean square of those."""
        moved = self.moved
        return math.sqrt(self.energy / moved) if moved else 0.0

    @property
    def change(self) -> float:
        """‖τ‖² by ‖θ0‖², over the parameters that moved: at most 1."""
        return min(1.0, self.energy / self.base_energy) if self.base_energy else 1.0

    @property
    def weight(self) -> float:
        """How much a relative error in this tensor counts: parameters that moved, by how far for their size."""
        return self.moved * math.sqrt(self.change)


@kernel
def magnitudes(tau: Singles, base: Singles, *, narrow: bool = False) -> Magnitudes:
    """Count |τ|, shape (N,), beside the base's values. `narrow`: of a type of few bits."""
    bins = (np.abs(tau).view(np.uint32) >> SHIFT).astype(np.intp)
    counts = np.bincount(bins, minlength=BINS).astype(np.float64)
    moved, base_energy = np.count_nonzero(tau), add_up(np.square(base * (tau != 0), dtype=np.float64))
    counts[0] -= len(tau) - moved
    (used,) = np.nonzero(counts)
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    return Magnitudes(counts[first:last].copy(), first, float(base_energy)).of(len(tau), narrow=narrow)


@magnitudes.native
def _(tau: Singles, base: Singles, *, narrow: bool = False) -> Magnitudes:
    return Magnitudes(*encode.tally(tau, base, SHIFT, BINS)).of(len(tau), narrow=narrow)


def added(values: Floats) -> Floats:
    """Sums over the last axis, which are added up one after the other: `sum` leaves open in which order."""
    total: Floats = np.cumsum(values, axis=-1)[..., -1]
    return total


def add_up(values: Floats) -> float:
    """Their sum in one order of additions: in blocks of 1024 half upon half, then so the blocks' sums."""
    blocks = -(-len(values) // _BLOCK)
    filled = np.zeros((1 << max(blocks - 1, 0).bit_length(), _BLOCK))
    filled.reshape(-1)[: len(values)] = values
    return float(_halve(_halve(filled)))


def _halve(values: Floats) -> Floats:
    while (half := values.shape[-1] // 2) > 0:
        values = values[..., :half] + values[..., half:]
    total: Floats = values[..., 0]
    return total


_BLOCK = 1024
