"""Elements of a chunk that moved, one behind the other: in types of few bits often a small part of all.

A step below half a unit in the last place is none, so that a short fine-tune in bfloat16 leaves most weights as they
were, bit for bit. Nothing is marked there, nothing kept and nothing lost: what is looked for over several turns, the
scale that is right of what a decoder rounds (see `metrics.settled`), is looked for among the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.codecs.base import Bytes, Floats
from tallstore.kernels import reference
from tallstore.kernels.native import levels as native
from tallstore.kernels.registry import kernel

__all__ = ["Moved", "moved_of", "scattered"]


class Moved(NamedTuple):
    """Those elements, m of n."""

    places: npt.NDArray[np.uint32]
    """Where each is, from the chunk's first on: ascending, shape (m,)."""
    tau: Floats
    """τ, not 0: shape (m,)."""
    base: Floats
    """θ0, shape (m,): numbers of the row's type."""
    n: int
    """Elements of the chunk."""
    start: int
    """Where in the tensor the chunk begins."""
    form: int
    """The row's type: one of `native_types.NARROW`."""

    def some(self, most: int) -> Moved:
        """About so many of them, at most, in runs that are evenly spaced; all of them where they are no more."""
        runs = len(self.tau) // _RUN
        step = runs * _RUN // most + 1
        if step < 2:
            return self
        here = (np.arange(0, runs, step)[:, None] * _RUN + np.arange(_RUN)).reshape(-1)
        return self._replace(places=self.places[here], tau=self.tau[here], base=self.base[here])


_RUN = 512
"""Elements of a run."""


def moved_of(tau: Floats, base: Floats, start: int, form: int) -> Moved:
    """Those of a chunk in memory: τ and θ0 of all, shape (n,)."""
    places = np.flatnonzero(tau).astype(np.uint32)
    return Moved(places, tau[places], base[places], len(tau), start, form)


@kernel
def scattered(symbols: Bytes, places: npt.NDArray[np.uint32], n: int, bits: int) -> Bytes:
    """Symbols of a chunk's elements, zeros where none is given: packed as signed marks (2 bits), or one a byte (8).

    Args:
        symbols: shape (m,).
        places: where they are, ascending, shape (m,).
        n: elements of the chunk.
        bits: 2 or 8.
    """
    out = np.zeros(n, np.uint8)
    out[places] = symbols
    return reference.pack(out, "signed") if bits == 2 else out


@scattered.native
def _(symbols: Bytes, places: npt.NDArray[np.uint32], n: int, bits: int) -> Bytes:
    out = np.empty(-(-n * bits // 8), np.uint8)
    native.scatter(out, places, symbols, bits)
    return out
