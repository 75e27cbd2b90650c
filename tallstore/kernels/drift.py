"""Steps of what goes on from a start that has drifted from a base, as symbols; and their range coding: the reference.

Steps, their symbols and the range coder are those of `kernels.lattice`, from the start's elements in place of the
base's. What is told of an element besides its level is its drift: how many steps its start is away from the base. What
never moved mostly stays, so much so that many elements share contexts in which nothing moves but an exception or two:
such elements are still. They take no symbol, and exceptions are listed. What drifted goes on, or comes back where the
task is an earlier checkpoint than its start: symbols are as seen by who looks where the drift went. Drifts of about
the same size share a grade; of those of grade 0, which have hardly drifted, the shift of their row tells more.

Symbols of a block are coded by themselves, its first one in lane 0: so elements that are still cost next to no time.

The native kernels (`native/src/drift_encode.c`, `drift_decode.c`) do the same, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.errors import DamagedError
from tallstore.kernels import lattice as plain
from tallstore.kernels.lattice import (
    ENDS,
    LEVELS,
    LOWEST,
    SYMBOLS,
    Bytes,
    Counts,
    Integers,
    Lattice,
    Prepared,
    Words,
    drift_of,
    frequencies,
    places,
    refill,
    segment_of,
    slots,
    with_bits,
)

__all__ = ["BLOCK", "CLASSES", "GRADES", "STILL", "DriftModel", "DriftSymbols", "Told", "still_of", "tell"]

GRADES = 8
"""Of drifts, by how far they went."""
CLASSES = 16
"""Of drifts, each of which has a grade: the last one is of all that went as far, or farther."""
BLOCK = 1 << 12
"""Elements whose symbols are coded by themselves."""
STILL = 0xFF
"""In place of a table's number: elements of its contexts have no symbols."""


@dataclass(frozen=True, kw_only=True)
class DriftModel:
    """What tells how likely each symbol is. All of it is in the coded bytes."""

    bits: int
    """Frequencies of a table add up to 2^bits."""
    low: int
    """The exponent of level 0."""
    unit: int
    """A class of drifts is 2^unit steps."""
    grades: Bytes
    """Of each class: shape (CLASSES,)."""
    width: int
    """See `Rows`."""
    first: int
    """See `Rows`."""
    shifts: Bytes
    """Of each segment, for its elements of grade 0: shape (S,)."""
    table: Bytes
    """The table of each context: of those of grade 0, levels plus shifts, and of the levels of every other grade."""
    weights: Bytes
    """How often symbols 0, +1, −1, +2 … are, on a scale of `frequencies`: shape (tables, 2A − 1)."""


@dataclass(frozen=True)
class Told:
    """What drift tells of n elements."""

    grade: Bytes
    """Shape (n,)."""
    negative: npt.NDArray[np.int8]
    """−1 where it went downwards, else 0: shape (n,)."""

    def seen(self, symbols: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Symbols as drift has them, and back."""
        turned: npt.NDArray[Any] = (symbols ^ self.negative) - self.negative
        return turned


@dataclass(frozen=True)
class DriftSymbols:
    """Coded symbols."""

    states: npt.NDArray[np.uint32]
    """Of the lanes, where decoding begins: shape (L,)."""
    words: npt.NDArray[np.uint16]
    """The stream that they share."""
    extra: Bytes
    """See `Prepared`."""
    places: npt.NDArray[np.uint32]
    """Of still elements that moved, in order: shape (X,)."""
    odd: npt.NDArray[np.int8]
    """Their symbols, as drift has them: shape (X,)."""


def still_of(model: DriftModel) -> Bytes:
    """The table of each context, or STILL where that has no symbol but 0."""
    moving = np.any(model.weights[model.table, 1:] > 0, axis=1)
    return np.where(moving, model.table, STILL).astype(np.uint8)


def tell(lattice: Lattice, start: Words, base: Words, unit: int, grades: Bytes) -> Told:
    """What drift tells of elements, words of shape (n,)."""
    drift = drift_of(lattice, start, base).astype(np.int64)
    classes = np.minimum(np.abs(drift) >> unit, CLASSES - 1)
    return Told(grades[classes], -(drift < 0).astype(np.int8))


def count_still(prepared: Prepared, told: Told, width: int, first: int, one_in: int) -> Counts:
    """`lattice.count_segments`, of elements of grade 0."""
    segment = segment_of(len(told.grade), width, first)
    at = (segment * LEVELS + prepared.levels) * plain.CLASSES
    at += np.minimum(np.abs(prepared.symbols), plain.CLASSES - 1)
    place = np.arange(len(at)) - np.maximum(first + (segment - 1) * width, 0)
    at, segments = at[(place % one_in == 0) & (told.grade == 0)], int(segment[-1]) + 1
    counts = np.bincount(at, minlength=segments * LEVELS * plain.CLASSES).astype(np.int16)
    return counts.reshape(segments, LEVELS, plain.CLASSES)


def count_symbols(prepared: Prepared, told: Told, width: int, first: int, shifts: Bytes) -> Integers:
    """Elements by context and symbol, as drift has it: shape (contexts, 2·SYMBOLS − 1)."""
    contexts, every = LEVELS * GRADES + int(shifts.max()), 2 * SYMBOLS - 1
    at = _contexts(prepared.levels, told.grade, width, first, shifts) * every + places(told.seen(prepared.symbols))
    return np.bincount(at, minlength=contexts * every).reshape(contexts, every)


def encode(prepared: Prepared, told: Told, model: DriftModel, lanes: int) -> DriftSymbols:
    """Code a chunk in so many lanes. Every symbol that occurs in a context that is not still has a frequency there."""
    share = frequencies(model.weights, model.bits)
    begin = np.cumsum(share, axis=1) - share
    table, symbols = _tables(prepared.levels, told, model), told.seen(prepared.symbols)
    states, pieces = np.full(lanes, LOWEST, np.int64), []
    for start in range((len(table) - 1) // BLOCK * BLOCK, -1, -BLOCK):
        own, said = table[start : start + BLOCK], symbols[start : start + BLOCK]
        at = own[own != STILL], places(said[own != STILL])
        for first in range((len(at[0]) - 1) // lanes * lanes, -1, -lanes):
            here = at[0][first : first + lanes], at[1][first : first + lanes]
            f, x = share[here], states[: len(here[0])]
            full = x >= f << (32 - model.bits)
            pieces.append((x[full] & 0xFFFF).astype(np.uint16))
            x[full] >>= 16
            x[:] = (x // f << model.bits) + x % f + begin[here]
    words = np.concatenate(pieces[::-1]) if pieces else np.empty(0, np.uint16)
    odd = np.flatnonzero((table == STILL) & (symbols != 0))
    return DriftSymbols(states.astype(np.uint32), words, prepared.extra, odd.astype(np.uint32), symbols[odd])


def decode(lattice: Lattice, words: Words, base: Words, model: DriftModel, steps: DriftSymbols) -> None:
    """Turn a start's elements into the task's, in place; `base`: the base's, shape (n,).

    Raises:
        DamagedError: the stream does not end as an encoder's does.
    """
    told = tell(lattice, words, base, model.unit, model.grades)
    table = _tables(lattice.levels(words, model.low), told, model)
    symbol, share, offset = slots(frequencies(model.weights, model.bits))
    mask, symbols = (1 << model.bits) - 1, np.zeros(len(words), np.int64)
    states, stream, used = steps.states.astype(np.int64), steps.words.astype(np.int64), 0
    for start in range(0, len(words), BLOCK):
        coded = start + np.flatnonzero(table[start : start + BLOCK] != STILL)
        for first in range(0, len(coded), len(states)):
            these = coded[first : first + len(states)]
            x = states[: len(these)]
            at = table[these], x & mask
            symbols[these] = symbol[at]
            x[:] = share[at] * (x >> model.bits) + offset[at]
            used += refill(x, stream[used:])
    if used != len(stream) or (states != LOWEST).any():
        raise DamagedError(ENDS)
    said = steps.odd != 0
    symbols[steps.places[said]] = steps.odd[said]
    d = with_bits(told.seen(symbols), steps.extra)
    words[:] = lattice.turned(lattice.turned(words) + d.astype(words.dtype))


def _contexts(levels: Bytes, grade: Bytes, width: int, first: int, shifts: Bytes) -> Integers:
    """Of each element its context."""
    graded = grade.astype(np.int64) * LEVELS + int(shifts.max())
    shifted = shifts[segment_of(len(levels), width, first)].astype(np.int64)
    contexts: Integers = levels.astype(np.int64) + np.where(grade > 0, graded, shifted)
    return contexts


def _tables(levels: Bytes, told: Told, model: DriftModel) -> Integers:
    """Of each element its table, or STILL."""
    contexts = _contexts(levels, told.grade, model.width, model.first, model.shifts)
    return still_of(model).astype(np.int64)[contexts]
