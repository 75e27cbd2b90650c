"""What is chosen of a chunk's steps before they are coded: shifts of rows, directions, tables and their weights.

All decisions are made on whole numbers, or single operations on them, so that they are the same on every machine. The
native kernels (`native/src/lattice_choices.c`) choose the same.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tallstore.kernels.lattice import CLASSES, LEVELS, MOST_TABLES, Bytes, Counts, Integers, frequencies
from tallstore.kernels.logarithm import log2

__all__ = [
    "BITS",
    "FINEST",
    "LOGS",
    "MOST_ROWS",
    "POINT",
    "WEIGHT_BITS",
    "along",
    "both_signs",
    "logs",
    "shifts",
    "tables",
]

Floats = npt.NDArray[np.float64]

BITS = 10
"""Frequencies add up to 2^10: tables of 4 KiB each, and a few thousandths lost to rounding them."""
MOST_SHIFT = 3
"""Octaves by which rows may differ from each other."""
POINT = 1 << 12
"""Bits of information are counted in such parts."""
FINEST = 127
"""Magnitude of integers while directions are looked for."""
MOST_ROWS = 256
"""From which directions are found at most."""
ROUNDS = 2
"""Of choosing shifts by costs, and costs by shifts."""
_FEWEST = 64
"""Elements of a context that say what its classes cost."""
WEIGHT_BITS = 4
"""What a symbol's frequency takes, about."""
_MASS = 1 << 17
"""Frequencies are brought to this scale before they are given weights."""
_SCALE = np.array([0, *((4 + q % 4) << (q // 4) for q in range(1, 64))], np.int64)
_MIDDLE = (_SCALE[1:-1] + _SCALE[2:]) // 2
"""Up to which frequency each weight from 1 on is the nearest."""
_FINE = 10
LOGS: npt.NDArray[np.uint16] = np.rint(POINT * log2(1 + np.arange(1 << _FINE) / (1 << _FINE))).astype(np.uint16)
"""Logarithms from 1 to 2, in parts of a bit."""


def shifts(counts: Counts) -> Bytes:
    """The shift of every segment: what makes its symbols take the least, in turns with what they then take.

    `counts`: elements by segment, level and class, at most 2^13 in a segment: shape (S, LEVELS, CLASSES).
    """
    flat = counts.reshape(len(counts), -1).astype(np.float64)  # products and sums of whole numbers, exact
    chosen = np.full(len(counts), MOST_SHIFT // 2)
    for _ in range(ROUNDS):
        inside = np.stack([chosen == shift for shift in range(MOST_SHIFT + 1)]).astype(np.float64) @ flat
        inside = inside.reshape(MOST_SHIFT + 1, LEVELS, CLASSES)
        total = np.zeros((LEVELS + MOST_SHIFT, CLASSES))
        for shift, each in enumerate(inside):
            total[shift : shift + LEVELS] += each
        bits = _class_costs(total.astype(np.int64))
        costs = np.stack([bits[shift : shift + LEVELS].reshape(-1) for shift in range(MOST_SHIFT + 1)], axis=1)
        chosen = (flat @ costs.astype(np.float64)).argmin(1)
    return chosen.astype(np.uint8)


def along(begin: Integers, symbols: npt.NDArray[np.int8], turns: int) -> Integers:
    """Directions along rows, of the matrix of signs, by subspace iteration.

    Args:
        begin: numbers up to FINEST to begin with, shape (rank, width).
        symbols: rows, at most MOST_ROWS of them: shape (rows, width).
        turns: how often rows and columns are taken for each other.
    """
    matrix = np.sign(symbols).astype(np.float64)
    down = begin.T
    for _ in range(turns):
        across = _apart((matrix @ down.astype(np.float64)).astype(np.int64))
        down = _apart((matrix.T @ across.astype(np.float64)).astype(np.int64))
    return np.ascontiguousarray(down.T)


def tables(counts: Integers, *, signed: bool) -> tuple[Bytes, Bytes, int]:
    """The table of each context, each table's weights, and what all of it takes, in parts of a bit.

    Neighbours are merged while that saves, and until they are few enough.

    Args:
        counts: elements by context and symbol; one at least: shape (contexts, symbols).
        signed: whether symbols are 0, +1, −1, +2 …; else they are magnitudes', and each sign takes a bit more.

    Returns:
        shapes (contexts,) and (tables, a), a being how many symbols occur; where `signed`, a is made odd.
    """
    counts = counts[:, : _occurring(counts, signed=signed)]
    used = np.flatnonzero(counts.any(1))
    begins, kept = used.tolist(), list(counts[used])
    costs = [_cost(each, signed=signed) for each in kept]
    joined = [_cost(a + b, signed=signed) for a, b in pairwise(kept)]
    while joined:
        gains = [both - left - right for both, left, right in zip(joined, costs, costs[1:], strict=False)]
        at = gains.index(min(gains))
        if gains[at] >= 0 and len(kept) <= MOST_TABLES:
            break
        kept[at] = kept[at] + kept.pop(at + 1)
        begins.pop(at + 1)
        costs[at : at + 2] = [joined.pop(at)]
        for i in (at - 1, at):
            if 0 <= i < len(joined):
                joined[i] = _cost(kept[i] + kept[i + 1], signed=signed)
    table = np.searchsorted(begins, np.arange(len(counts)), side="right") - 1
    return np.maximum(table, 0).astype(np.uint8), _weights(np.stack(kept), signed=signed), sum(costs)


def _occurring(counts: Integers, *, signed: bool) -> int:
    """How many symbols occur, up to the last one; where `signed`, an odd number."""
    kinds = int(np.flatnonzero(counts.any(0))[-1]) + 1
    return min(kinds | 1, counts.shape[1]) if signed else kinds


def both_signs(weights: Bytes) -> Bytes:
    """Weights of 0, +1, −1, +2 … from those of magnitudes: shape (tables, A) to (tables, 2A − 1)."""
    return np.ascontiguousarray(np.repeat(weights, 2, axis=1)[:, 1:])


def logs(counts: Integers) -> Integers:
    """Bits of information of one in so many, in parts of a bit; 0 counts as 1."""
    counts = np.maximum(counts, 1)
    octave = np.frexp(counts.astype(np.float64))[1].astype(np.int64) - 1
    logs: Integers = POINT * octave + LOGS[(counts << _FINE >> octave) & ((1 << _FINE) - 1)]
    return logs


def _class_costs(counts: Integers) -> Integers:
    """What each class takes in each context, in 64 parts of a bit. Shape of `counts`: (contexts, CLASSES)."""
    all_of = counts.sum(1)
    there = np.flatnonzero(all_of >= _FEWEST)
    if len(there):  # contexts that hardly occur are taken for the nearest that does
        counts = counts[there[np.abs(np.arange(len(counts))[:, None] - there).argmin(1)]]
    smooth = 2 * counts + 1
    costs: Integers = logs(smooth.sum(1, keepdims=True)) - logs(smooth) >> 6
    return costs


def _cost(counts: Integers, *, signed: bool) -> int:
    """What so many symbols take with a table of their own, in parts of a bit: shape (A,)."""
    total = counts.sum()
    signs = 0 if signed else total - counts[0]
    longest = int(np.flatnonzero(counts)[-1]) + 1
    return int(total * logs(total) - (counts * logs(counts)).sum() + POINT * (signs + longest * WEIGHT_BITS))


def _weights(counts: Integers, *, signed: bool) -> Bytes:
    """Weights nearest to the counts, and so large that every symbol that occurs has a frequency."""
    there = counts > 0
    share = counts * _MASS
    if not signed:
        share[:, 1:] //= 2
    share //= counts.sum(1, keepdims=True)
    share = np.maximum(share, _MASS >> BITS)  # or near to it: a frequency of 1
    weights = np.where(there, 1 + np.searchsorted(_MIDDLE, share), 0).astype(np.uint8)

    def short() -> npt.NDArray[np.bool_]:
        coded = frequencies(weights, BITS) if signed else frequencies(both_signs(weights), BITS)[:, ::2]
        return there & (coded < 1)

    while (few := short()).any():
        weights += few
    return weights


def _apart(vectors: Integers) -> Integers:
    """Vectors of whole numbers, shape (n, rank), each with what those in front of it have in common taken out."""
    out = np.empty_like(vectors)
    for at in range(vectors.shape[1]):
        each = vectors[:, at].astype(np.float64)
        for before in out[:, :at].T:
            norm = int(before @ before)
            if norm:
                each -= int(vectors[:, at] @ before) / norm * before.astype(np.float64)
        top = float(np.abs(each).max())
        out[:, at] = np.rint(each * (FINEST / top if top else 0.0)).astype(np.int64)
    return out
