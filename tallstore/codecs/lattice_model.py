"""What tells how likely steps on the lattice are: chosen by counting, chunk by chunk.

Exponents of the base are octaves, and so are the shifts of rows: a row whose updates are twice as large behaves as one
whose weights are half as large. Contexts that hardly differ share a table. All decisions are made on whole numbers, so
that they are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.codecs.base import Row
from tallstore.codecs.lattice_rows import directed
from tallstore.kernels.lattice import CLASSES, LEVELS, MOST_TABLES, Lattice, Model, Prepared, Rows, frequencies
from tallstore.kernels.lattice_fast import count_segments, count_symbols, prepare

__all__ = ["both_signs", "choose", "estimate", "lanes_for", "lowest", "undirected"]

Integers = npt.NDArray[np.int64]

BITS = 10
"""Frequencies add up to 2^10: tables of 4 KiB each, and a few thousandths lost to rounding them."""
MOST_SHIFT = 3
"""Octaves by which rows may differ from each other."""
_SEGMENT = 256
"""Fewest elements of a segment: short rows are taken together; and about as many of it are looked at."""
_ROUNDS = 2
_ABOVE = 1 << 11
"""One element in so many may have a larger exponent than the highest level's."""
_WEIGHT_BITS = 4
"""What a symbol's frequency takes, about."""
_COEFFICIENT_BITS = 4
"""What an integer of a direction takes, about."""
_POINT = 1 << 12
"""Bits of information are counted in such parts."""
_MASS = 1 << 17
"""Frequencies are brought to this scale before they are given weights."""
_SCALE = np.array([0, *((4 + q % 4) << (q // 4) for q in range(1, 64))], np.int64)
_MIDDLE = (_SCALE[1:-1] + _SCALE[2:]) // 2
"""Up to which frequency each weight from 1 on is the nearest."""


def lanes_for(n: int) -> int:
    """How many lanes a chunk of n elements has: each costs 16 bits, and more are quicker."""
    return 128 if n >= 1 << 19 else 32 if n >= 1 << 12 else 8


def choose(prepared: Prepared, low: int, row: Row) -> Model:
    """The model of a chunk.

    Args:
        prepared: its steps.
        low: the exponent of level 0.
        row: see `Row`.
    """
    width, first = _segments(row, len(prepared.levels))
    rows = undirected()
    if width:
        counts = count_segments(prepared, width, first, max(1, width // _SEGMENT))
        rows = undirected(width, first, _shifts(counts))
        rows = directed(prepared, rows)
    counts = count_symbols(prepared, rows)
    counts = counts[:, : LEVELS + int(rows.shifts.max())]
    if len(rows.along):
        folded = _folded(counts.sum(0))
        told = _POINT * _COEFFICIENT_BITS * (rows.across.size + rows.along.size)
        table, tables = _merged(counts.reshape(-1, counts.shape[2]), signed=True)
        # Without directions, tables are few, and merging them saves next to nothing of what they cost together.
        if int(_costs(tables, signed=True).sum()) + told < int(_costs(folded[folded.any(1)]).sum()):
            weights = _weights(tables)
            return Model(bits=BITS, low=low, rows=rows, table=table.reshape(counts.shape[:2]), weights=weights)
        rows = undirected(width, first, rows.shifts)
    else:
        folded = _folded(counts[0])
    if not rows.shifts.any():
        rows = undirected()
    table, tables = _merged(folded)
    return Model(bits=BITS, low=low, rows=rows, table=table[None], weights=both_signs(_weights(tables, signed=False)))


def undirected(width: int = 0, first: int = 0, shifts: npt.NDArray[np.uint8] | None = None) -> Rows:
    """Rows without directions; by default, all elements in one."""
    shifts = np.zeros(1, np.uint8) if shifts is None else shifts
    across, along = np.zeros((len(shifts), 0), np.int8), np.zeros((0, width), np.int8)
    return Rows(width=width, first=first, shifts=shifts, across=across, along=along, marks=np.zeros(0, np.uint16))


def estimate(lattice: Lattice, after: npt.NDArray[Any], base: npt.NDArray[Any], elements: int | None = None) -> float:
    """Bits per element that steps will take, by a sample of a tensor; rows are taken to be all alike.

    Args:
        lattice: of the type.
        after: elements of the task as words, shape (n,), n > 0: runs of it, one behind the other.
        base: the base's in their place.
        elements: of the tensor: what its tables take is spread over all of them. By default, the sample is all.
    """
    prepared = prepare(lattice, after, base, lowest(lattice, base))
    _, tables = _merged(_folded(count_symbols(prepared, undirected())[0, :LEVELS]))
    longest = tables.shape[1] - (tables[:, ::-1] > 0).argmax(1)
    weights = _WEIGHT_BITS * int(longest.sum())
    bits = int(_costs(tables).sum()) / _POINT + 8 * len(prepared.extra) - weights
    return bits / len(base) + weights / (elements or len(base))


def lowest(lattice: Lattice, base: npt.NDArray[Any]) -> int:
    """The exponent of level 0: the highest level's is about the largest that there is, a few outliers aside."""
    some = base[:: max(1, len(base) >> 14)]
    above = np.cumsum(np.bincount(lattice.keys(some), minlength=lattice.mask + 1)[::-1])[::-1]
    top = int(np.flatnonzero(above > len(some) // _ABOVE)[-1])
    return max(0, top - LEVELS + 1)


def _segments(row: Row, n: int) -> Row:
    """Elements of a segment and of the first one."""
    length, gone = row
    if not length or n < 2 * _SEGMENT:
        return 0, 0
    times = -(-_SEGMENT // length)
    width, first = times * length, times * length - gone
    return (width, first) if first < n else (0, 0)


def _shifts(counts: Integers) -> npt.NDArray[np.uint8]:
    """The shift of every segment: what makes its symbols take the least, in turns with what they then take.

    `counts`: elements by segment, level and class: shape (S, LEVELS, CLASSES).
    """
    flat = counts.reshape(len(counts), -1).astype(np.float64)  # products and sums of whole numbers, exact
    cheapest = np.full(len(counts), MOST_SHIFT // 2)
    for _ in range(_ROUNDS):
        inside = np.stack([cheapest == shift for shift in range(MOST_SHIFT + 1)]).astype(np.float64) @ flat
        inside = inside.reshape(MOST_SHIFT + 1, LEVELS, CLASSES)
        total = np.zeros((LEVELS + MOST_SHIFT, CLASSES))
        for shift, each in enumerate(inside):
            total[shift : shift + LEVELS] += each
        bits = _bits(total)
        costs = np.stack([bits[shift : shift + LEVELS].reshape(-1) for shift in range(MOST_SHIFT + 1)], axis=1)
        cheapest = (flat @ costs).argmin(1)
    shifts: npt.NDArray[np.uint8] = (cheapest - cheapest.min()).astype(np.uint8)
    return shifts


def _bits(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What each class takes in each context, in parts of a bit: whole numbers. Shape of `counts`."""
    all_of = counts.sum(1)
    there = np.flatnonzero(all_of >= 64)
    if len(there):  # contexts that hardly occur are taken for the nearest that does
        near = there[np.abs(np.arange(len(counts))[:, None] - there).argmin(1)]
        counts = np.where(all_of[:, None] >= 64, counts, counts[near])
    smooth = 2 * counts + 1
    # Rounded to so few digits, logarithms are the same on every machine.
    bits: npt.NDArray[np.float64] = np.rint(_POINT * np.log2(smooth.sum(1, keepdims=True) / smooth))
    return bits


def _folded(counts: Integers) -> Integers:
    """Elements by magnitude's symbol, of those by symbol."""
    folded: Integers = counts[:, ::2].copy()
    folded[:, 1:] += counts[:, 1::2]
    return folded


def _merged(counts: Integers, *, signed: bool = False) -> tuple[npt.NDArray[np.uint8], Integers]:
    """The table of each context, and the counts of each table: neighbours are merged while that saves."""
    used = np.flatnonzero(counts.any(1))
    begins, there = used.tolist(), counts[used, : int(np.flatnonzero(counts.any(0))[-1]) + 1]
    tables = list(there)
    costs, joined = _costs(there, signed=signed).tolist(), _costs(there[1:] + there[:-1], signed=signed).tolist()
    while joined:
        gains = [both - left - right for both, left, right in zip(joined, costs, costs[1:], strict=False)]
        at = gains.index(min(gains))
        if gains[at] >= 0 and len(tables) <= MOST_TABLES:
            break
        tables[at] = tables[at] + tables.pop(at + 1)
        begins.pop(at + 1)
        costs[at : at + 2] = [joined.pop(at)]
        near = [i for i in (at - 1, at) if 0 <= i < len(joined)]
        both = np.array([tables[i] + tables[i + 1] for i in near])
        for i, cost in zip(near, _costs(both, signed=signed), strict=True):
            joined[i] = int(cost)
    table = np.searchsorted(begins, np.arange(len(counts)), side="right") - 1
    return np.maximum(table, 0).astype(np.uint8), np.stack(tables)


def _costs(counts: Integers, *, signed: bool = False) -> Integers:
    """What so many symbols take with a table of their own, in parts of a bit: shape (tables, A) to (tables,).

    Of magnitudes' symbols, those above 0 take a bit more: their sign.
    """
    if not len(counts):
        return np.zeros(0, np.int64)
    total = counts.sum(1)
    bits = np.rint(_POINT * np.log2(np.maximum(total[:, None], 1) / np.maximum(counts, 1))).astype(np.int64)
    longest = counts.shape[1] - (counts[:, ::-1] > 0).argmax(1)
    signs = 0 if signed else total - counts[:, 0]
    summed: Integers = (counts * bits).sum(1) + _POINT * (signs + longest * _WEIGHT_BITS)
    return summed


def both_signs(weights: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Weights of 0, +1, −1, +2 … from those of magnitudes: shape (tables, A) to (tables, 2A − 1)."""
    return np.ascontiguousarray(np.repeat(weights, 2, axis=1)[:, 1:])


def _weights(counts: Integers, *, signed: bool = True) -> npt.NDArray[np.uint8]:
    """Weights nearest to the counts, and so large that every symbol that occurs has a frequency."""
    counts = counts[:, : int(np.flatnonzero(counts.any(0))[-1]) + 1]
    if signed and counts.shape[1] % 2 == 0:
        counts = np.pad(counts, ((0, 0), (0, 1)))
    there = counts > 0
    share = counts * _MASS
    if not signed:
        share[:, 1:] //= 2
    share //= counts.sum(1, keepdims=True)
    share = np.maximum(share, _MASS >> BITS)  # or near to it: a frequency of 1
    weights = np.where(there, 1 + np.searchsorted(_MIDDLE, share), 0).astype(np.uint8)

    def short() -> npt.NDArray[np.bool_]:
        quotas = frequencies(weights, BITS) if signed else frequencies(both_signs(weights), BITS)[:, ::2]
        return there & (quotas < 1)

    while (few := short()).any():
        weights += few
    return weights
