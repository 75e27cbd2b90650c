"""What tells how likely steps are of what has drifted from a base: chosen by counting, chunk by chunk.

As `lattice_model`: tables are shared by contexts that hardly differ, and all decisions are made on whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.codecs.base import Row
from tallstore.codecs.lattice_model import folded, lowest, segmented
from tallstore.kernels import lattice_fast as plain
from tallstore.kernels.drift import GRADES, DriftModel, Told
from tallstore.kernels.drift_fast import count_still, count_symbols, join, tell
from tallstore.kernels.lattice import LEVELS, MOST_TABLES, Integers, Lattice, Prepared, Words, drift_of
from tallstore.kernels.lattice_choices import BITS, POINT, logs

__all__ = ["DriftChoice", "choose"]

_GRADES = np.array([0, 1, 2, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 6, 7, 7], np.uint8)
"""Of classes of drift: far ones, which are few, are told apart by octaves."""
_NO_SHIFTS = np.zeros(1, np.uint8)
_NEAR = 3
"""Bits of the class that drifts have most often."""
_LOOKED_AT = 1 << 12
"""About as many elements of a segment say what its shift is: of those that hardly drifted, few moved."""
_SAMPLED = 1 << 12
"""About as many drifts say what a class is."""
_EXCEPTION = 24
"""Bits that one takes."""
_QUICKER = 1 << 9
"""That one of so many elements is still is worth a bit."""
_SKIPPED = 4
"""Where fewer than one element in so many would be still, it takes longer to pass over them than to decode them."""
_LEAST = 6
"""What a frequency of one in 2^BITS takes from all others, in parts of a bit an element."""
_LANES = ((1 << 18, 128), (1 << 15, 64), (1 << 12, 32), (0, 8))
"""From how many symbols on there are so many lanes: each costs 16 bits, and more are quicker."""


class DriftChoice(NamedTuple):
    """What `drift_fast.encode` takes."""

    prepared: Prepared
    told: Told
    model: DriftModel
    lanes: int
    exceptions: int


def choose(lattice: Lattice, after: Words, start: Words, base: Words, row: Row) -> DriftChoice | None:
    """The model of a chunk; None where nothing drifted, or that tells no more than exponents do.

    Args:
        lattice: of the type.
        after: elements of the task as words, shape (n,).
        start: what it starts from, in their place.
        base: what that drifted from, in their place.
        row: see `Row`.
    """
    every = max(1, len(start) // _SAMPLED)
    moved = np.abs(drift_of(lattice, start[::every], base[::every]).astype(np.int64))
    moved = moved[moved > 0]
    if not len(moved):
        return None
    low = lowest(lattice, start)
    prepared = plain.prepare(lattice, after, start, low)
    unit = max(0, int(np.median(moved)).bit_length() - _NEAR)
    told = tell(lattice, start, base, unit, _GRADES)
    counts = count_symbols(prepared, told, 0, 0, _NO_SHIFTS)
    plan = min(_plans(prepared, told, row, counts), key=lambda each: each.cost)
    without = plain.tables(folded(counts.reshape(GRADES, LEVELS, -1).sum(0)), signed=False)[2]
    if plan.cost >= without:
        return None
    model = DriftModel(
        bits=BITS,
        low=low,
        unit=unit,
        grades=_GRADES,
        width=plan.width,
        first=plan.first,
        shifts=plan.shifts,
        table=plan.table,
        weights=plan.weights,
    )
    lanes = next(lanes for symbols, lanes in _LANES if plan.symbols >= symbols)
    return DriftChoice(prepared, told, model, lanes, plan.exceptions)


class _DriftPlan(NamedTuple):
    """Contexts, and their tables."""

    width: int
    first: int
    shifts: npt.NDArray[np.uint8]
    table: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.uint8]
    symbols: int
    """That are coded."""
    exceptions: int
    cost: int
    """Of all of it, in parts of a bit."""


def _plans(prepared: Prepared, told: Told, row: Row, counts: Integers) -> Iterator[_DriftPlan]:
    """Without shifts of rows, of which `counts` are, and with those that elements of grade 0 tell."""
    yield _plan(counts, 0, 0, _NO_SHIFTS)
    width, first = segmented(row, len(prepared.levels))
    if width:
        shifts = plain.shifts(count_still(prepared, told, width, first, max(1, width // _LOOKED_AT)))
        if (shifts != shifts[0]).any():
            shifts -= shifts.min()
            yield _plan(count_symbols(prepared, told, width, first, shifts), width, first, shifts)


def _plan(counts: Integers, width: int, first: int, shifts: npt.NDArray[np.uint8]) -> _DriftPlan:
    still = _still(counts)
    if _SKIPPED * int(counts[still].sum()) < int(counts.sum()):
        still[:] = False
    moving = np.where(still[:, None], 0, counts)
    table, weights, cost = _tables(moving)
    if still.any():
        table = np.where(still, len(weights), table).astype(np.uint8)
        weights = np.concatenate([weights, np.eye(1, weights.shape[1], dtype=np.uint8)])
    exceptions = int(counts[still, 1:].sum())
    shares = np.bincount(shifts)
    told_by = len(shifts) * int(logs(np.array([len(shifts)]))[0]) - int((shares * logs(shares)).sum())
    cost += POINT * _EXCEPTION * exceptions + told_by
    return _DriftPlan(width, first, shifts, table, weights, int(moving.sum()), exceptions, cost)


def _still(counts: Integers) -> npt.NDArray[np.bool_]:
    """Contexts of which few enough elements moved that those are exceptions: shape (contexts,)."""
    total, moved, kinds = counts.sum(1), counts[:, 1:].sum(1), (counts[:, 1:] > 0).sum(1)
    coded = total * logs(total) - (counts * logs(counts)).sum(1)
    rounded = _LEAST * kinds * total + POINT * BITS * moved  # with the least frequency that each has
    still = POINT * _EXCEPTION * moved <= np.maximum(coded, rounded) + POINT * total // _QUICKER
    few: npt.NDArray[np.bool_] = np.logical_and(still, total > 0)
    return few


def _tables(counts: Integers) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int]:
    """The table of each context and their weights, one less than there may be; and what all of it takes.

    See `lattice_choices.tables`, which joins neighbours, and `drift_choices.join`, which joins any others.
    """
    if not counts.any():
        return np.zeros(len(counts), np.uint8), np.zeros((0, 1), np.uint8), 0
    near, few, _ = plain.tables(counts, signed=True)
    rows = np.zeros((len(few), few.shape[1]), np.int64)
    np.add.at(rows, near, counts[:, : few.shape[1]])
    joined, cost = join(rows)
    if len(firsts := np.unique(joined)) == MOST_TABLES:  # room for one that is still
        joined[joined == firsts[-1]] = firsts[-2]
        firsts = firsts[:-1]
    together = np.zeros((len(firsts), rows.shape[1]), np.int64)
    np.add.at(together, np.searchsorted(firsts, joined), rows)
    final, weights, _ = plain.tables(together, signed=True)
    return final[np.searchsorted(firsts, joined)][near], weights, cost
