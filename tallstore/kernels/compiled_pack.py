"""Rows from their file to what packing wants of them in one call, a run at a time while it is in the cache.

What is found is what `compiled_encode` finds of rows that are in memory. A row is float32, or narrower: then it is
widened to float32 on the way, and what its type's rounding makes of the marks is measured by going over it once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels import compiled as steps
from tallstore.kernels import compiled_encode as encode
from tallstore.kernels import compiled_fill as fill
from tallstore.kernels.forms import BFLOAT16, FLOAT16, FLOAT32
from tallstore.kernels.jit import compiled

__all__ = ["marks_above", "moved", "rounded_levels", "rounded_marks", "tally"]

_Array = npt.NDArray[Any]
_RUN = 1 << 14
"""Elements: whole blocks."""
_SHORT = steps.RUN
"""Elements of a row that rounding is measured on at a time: whole blocks too."""


@compiled
def _fetch(out: _Array, words: _Array, handle: int, at: int, form: int) -> bool:
    """Read a run of a row. Returns whether all of it could be read.

    Args:
        out: float32, shape (n,); set.
        words: uint16, shape (n,): the bits of a narrow row; set. Of a float32 row, anything.
        handle: the descriptor of the file.
        at: its byte that is the run's first.
        form: the row's.
    """
    if form == FLOAT32:
        read: bool = fill.read_all(out.view(np.uint8), handle, at)
        return read
    if not fill.read_all(words.view(np.uint8), handle, at):
        return False
    steps.widen(out, words, form == BFLOAT16)
    return True


@compiled
def _size(form: int) -> int:
    """Bytes an element."""
    return 4 if form == FLOAT32 else 2


@compiled
def moved(tau: _Array, seen: _Array, handle: int, first: int, runs: _Array, base: _Array, form: int) -> int:
    """τ = θt − θ0 of runs of a tensor, one behind the other. Returns how many elements could be read.

    Args:
        tau: float32, shape (n,).
        seen: see `compiled_encode.notice`.
        handle: the descriptor of the file that holds θt.
        first: its byte that is element 0's first.
        runs: int64, shape (R, 2): of each run its first element and the one behind its last.
        base: θ0 of the same elements, float32, shape (n,).
        form: the tensor's: see `forms`.
    """
    words, before, size = tau.view(np.uint32), base.view(np.uint32), _size(form)
    narrow = np.empty(min(_RUN, base.shape[0]), np.uint16)
    done = 0
    for i in range(runs.shape[0]):
        for start in range(runs[i, 0], runs[i, 1], _RUN):
            end = done + min(_RUN, runs[i, 1] - start)
            if not _fetch(tau[done:end], narrow[: end - done], handle, first + size * start, form):
                return done
            encode.notice(seen, words[done:end], before[done:end])
            own, there = tau[done:end], base[done:end]
            for k in range(end - done):
                own[k] -= there[k]
            done = end
    return done


@compiled
def tally(
    tables: _Array,
    sums: _Array,
    seen: _Array,
    handle: int,
    first: int,
    runs: _Array,
    base: _Array,
    shift: Any,
    form: int,
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
        form: the tensor's: see `forms`.

    Returns how many elements could be read.
    """
    n, size = base.shape[0], _size(form)
    tau, narrow = np.empty(min(_RUN, n), np.float32), np.empty(min(_RUN, n), np.uint16)
    words, before = tau.view(np.uint32), base.view(np.uint32)
    done, filled = 0, 0
    for i in range(runs.shape[0]):
        at = runs[i, 0]
        while at < runs[i, 1]:
            m = min(tau.shape[0] - filled, runs[i, 1] - at)
            if not _fetch(tau[filled : filled + m], narrow[:m], handle, first + size * at, form):
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
    seen: _Array,
    words: _Array,
    handle: int,
    at: int,
    base: _Array,
    low: Any,
    width: Any,
    first: int,
    tile: int,
    form: int,
) -> int:
    """What `compiled_encode.marks_above` does of a row that lies in a file. Returns how many elements could be read.

    Args:
        packed: uint8, room for n symbols of two bits.
        sums: float64, shape (5,): added to.
        moved: bool, shape (1,): set where any bit of θt is not the base's.
        seen: of a float16 row, see `compiled_encode.notice`. Of others it is left as it is: ‖τ‖² tells.
        words: uint16, shape (n,): the bits of a narrow row; set. Of a float32 row, anything.
        handle: the descriptor of the file that holds θt.
        at: its byte that is the row's first.
        base: θ0, float32, shape (n,).
        low: float32.
        width: float32.
        first: the unmixed place of the first parameter.
        tile: parameters that are added up first, by themselves: a multiple of 4.
        form: the row's: see `forms`.
    """
    n: int = base.shape[0]
    size = _size(form)
    own, scratch = np.empty(min(tile, n), np.float32), np.zeros((2, encode.BLOCK), np.float32)
    for a in range(0, n, tile):
        b = min(a + tile, n)
        weights, before = own[: b - a], base[a:b]
        if not _fetch(weights, words[a:b], handle, at + size * a, form):
            return a
        if form == FLOAT16:
            encode.notice(seen, weights.view(np.uint32), before.view(np.uint32))
        marks = packed[a >> 2 : (b + 3) >> 2]
        encode.marks_of_tile(marks, sums, moved, weights, before, low, width, first + a, scratch)
    return n


@compiled
def _agreement(found: _Array, tau: _Array, after: _Array, base: _Array, small: _Array, form: int) -> None:
    """What `compiled_encode.agreement` measures once `after`, θ0 + step in float32, is rounded; it is used up."""
    steps.narrow(after, small, form == BFLOAT16)
    for k in range(after.shape[0]):
        after[k] -= base[k]
    encode.agreement(found, tau, after)


@compiled
def rounded_marks(found: _Array, words: _Array, base: _Array, packed: _Array, scale: Any, form: int) -> None:
    """What `encoder.quality.sums` measures of a narrow row and what a decoder makes of its marks over v = 1.

    Args:
        found: float64, shape (5,): ‖τ − τ̂‖², ‖τ‖², ‖τ̂‖², ⟨τ, τ̂⟩ are set; how many marks there are is left.
        words: θt as bits, uint16, shape (n,).
        base: θ0, float32, shape (n,): finite numbers of that type.
        packed: uint8, n symbols of two bits.
        scale: s, float32, finite and not below 0.
        form: BFLOAT16 or FLOAT16.
    """
    n = words.shape[0]
    size = encode.power((n + encode.BLOCK - 1) // encode.BLOCK)
    sums, room = np.zeros((4, size), np.float64), np.empty((3, min(_SHORT, n)), np.float32)
    for a in range(0, n, _SHORT):
        b = min(a + _SHORT, n)
        tau, after, before = room[0, : b - a], room[1, : b - a], base[a:b]
        steps.widen(tau, words[a:b], form == BFLOAT16)
        if not encode.differs(tau.view(np.uint32), before.view(np.uint32)):  # no mark, and nothing to add
            continue
        for k in range(b - a):
            tau[k] -= before[k]
        steps.mask_ones(after, before, packed[a >> 2 : (b + 3) >> 2], 2, scale, True)
        blocks = sums[:, a // encode.BLOCK : (b + encode.BLOCK - 1) // encode.BLOCK]
        _agreement(blocks, tau, after, before, room[2], form)
    for j in range(4):
        found[j] = encode.halve(sums[j], size)


@compiled
def rounded_levels(found: _Array, tau: _Array, base: _Array, indices: _Array, table: _Array, form: int) -> None:
    """The same of a row's levels.

    Args:
        found: float64, shape (5,): as there.
        tau: τ, float32, shape (n,).
        base: θ0, float32, shape (n,): finite numbers of that type.
        indices: uint8, shape (n,).
        table: levels, float32, shape (K,).
        form: BFLOAT16 or FLOAT16.
    """
    n = tau.shape[0]
    size = encode.power((n + encode.BLOCK - 1) // encode.BLOCK)
    sums, room = np.zeros((4, size), np.float64), np.empty((2, min(_SHORT, n)), np.float32)
    for a in range(0, n, _SHORT):
        b = min(a + _SHORT, n)
        after, before = room[0, : b - a], base[a:b]
        steps.delta8(after, before, indices[a:b], table)
        blocks = sums[:, a // encode.BLOCK : (b + encode.BLOCK - 1) // encode.BLOCK]
        _agreement(blocks, tau[a:b], after, before, room[1], form)
    for j in range(4):
        found[j] = encode.halve(sums[j], size)
