"""Rows of float32 from their file to what packing wants of them in one call, a run at a time while it is in the cache.

What is found is what `compiled_encode` finds of rows that are in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels import compiled_encode as encode
from tallstore.kernels import compiled_fill as fill
from tallstore.kernels.jit import compiled

__all__ = ["marks_above", "moved", "tally"]

_Array = npt.NDArray[Any]
_RUN = 1 << 14
"""Elements: whole blocks."""


@compiled
def moved(tau: _Array, seen: _Array, handle: int, first: int, runs: _Array, base: _Array) -> int:
    """τ = θt − θ0 of runs of a tensor, one behind the other. Returns how many elements could be read.

    Args:
        tau: float32, shape (n,).
        seen: see `compiled_encode.notice`.
        handle: the descriptor of the file that holds θt.
        first: its byte that is element 0's first.
        runs: int64, shape (R, 2): of each run its first element and the one behind its last.
        base: θ0 of the same elements, float32, shape (n,).
    """
    raw, words, before = tau.view(np.uint8), tau.view(np.uint32), base.view(np.uint32)
    done = 0
    for i in range(runs.shape[0]):
        for start in range(runs[i, 0], runs[i, 1], _RUN):
            end = done + min(_RUN, runs[i, 1] - start)
            if not fill.read_all(raw[4 * done : 4 * end], handle, first + 4 * start):
                return done
            encode.notice(seen, words[done:end], before[done:end])
            own, there = tau[done:end], base[done:end]
            for k in range(end - done):
                own[k] -= there[k]
            done = end
    return done


@compiled
def tally(
    tables: _Array, sums: _Array, seen: _Array, handle: int, first: int, runs: _Array, base: _Array, shift: Any
) -> int:
    """`compiled_encode.tally` of τ = θt − θ0 of runs of a tensor, one behind the other.

    Args:
        tables: uint32, shape (4, bins): counted on.
        sums: float64, shape (⌈n / 1024⌉,): set.
        seen: see `compiled_encode.notice`.
        handle: the descriptor of the file that holds θt.
        first: its byte that is element 0's first.
        runs: int64, shape (R, 2): of each run its first element and the one behind its last.
        base: θ0 of the same elements, float32, shape (n,).
        shift: of |τ| as uint32, to its bin.

    Returns how many elements could be read.
    """
    n = base.shape[0]
    tau = np.empty(min(_RUN, n), np.float32)
    raw, words, before = tau.view(np.uint8), tau.view(np.uint32), base.view(np.uint32)
    done, filled = 0, 0
    for i in range(runs.shape[0]):
        at = runs[i, 0]
        while at < runs[i, 1]:
            m = min(tau.shape[0] - filled, runs[i, 1] - at)
            if not fill.read_all(raw[4 * filled : 4 * (filled + m)], handle, first + 4 * at):
                return done
            at, filled = at + m, filled + m
            end = done + filled
            if filled < tau.shape[0] and end < n:
                continue
            own, there = tau[:filled], base[done:end]
            encode.notice(seen, words[:filled], before[done:end])
            for k in range(filled):
                own[k] -= there[k]
            encode.tally(tables, sums[done // encode.BLOCK :], own, there, shift)
            done, filled = end, 0
    return done


@compiled
def marks_above(
    packed: _Array,
    sums: _Array,
    moved: _Array,
    handle: int,
    at: int,
    base: _Array,
    low: Any,
    width: Any,
    first: int,
    tile: int,
) -> int:
    """What `compiled_encode.marks_above` does of a row that lies in a file. Returns how many elements could be read.

    Args:
        packed: uint8, room for n symbols of two bits.
        sums: float64, shape (5,): added to.
        moved: bool, shape (1,): set where any bit of θt is not the base's.
        handle: the descriptor of the file that holds θt.
        at: its byte that is the row's first.
        base: θ0, float32, shape (n,).
        low: float32.
        width: float32.
        first: the unmixed place of the first parameter.
        tile: parameters that are added up first, by themselves: a multiple of 4.
    """
    n: int = base.shape[0]
    own, scratch = np.empty(min(tile, n), np.float32), np.zeros((2, encode.BLOCK), np.float32)
    for a in range(0, n, tile):
        b = min(a + tile, n)
        weights, before = own[: b - a], base[a:b]
        if not fill.read_all(weights.view(np.uint8), handle, at + 4 * a):
            return a
        marks = packed[a >> 2 : (b + 3) >> 2]
        encode.marks_of_tile(marks, sums, moved, weights, before, low, width, first + a, scratch)
    return n
