"""Steps on the lattice of numbers that a float type holds, as symbols; and their range coding: the reference.

Bit patterns of one sign ascend with the magnitude. Turning the negative ones over makes integers o that ascend with the
value, and what fine-tuning did to an element the difference d of two: a few units in the last place. How likely which d
is depends on the base's exponent, as an update moves small weights by many units and large ones by none. A step d is

    a symbol: the magnitude itself below 16; above, its octave and the octave's half; with the sign of d; and
    the bits of the magnitude that the symbol leaves open: all but the first two.

Symbols are coded by range asymmetric numeral systems (J. Duda, arXiv 1311.2540; rANS as F. Giesen interleaves it,
arXiv 1402.3392), with a table of frequencies per context, in lanes: element i belongs to lane i mod L, all lanes share
one stream of 16-bit words. Which table is told by the base's exponent, its row's shift, and how strongly a few
directions say which way the element moved: gradients are nearly of low rank, and so are the signs of what many steps
of training add up to. A direction is an integer per place in a segment and one per segment; an element's prediction is
the sum of their products. What is coded is the step as the prediction has it: turned over where that is negative.

The native kernels (`native/src/lattice_encode.c`, `lattice_decode.c`) do the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.errors import DamagedError

__all__ = [
    "CONTEXTS",
    "LATTICES",
    "LEVELS",
    "MOST_BITS",
    "Lattice",
    "LatticeSymbols",
    "Model",
    "Prepared",
    "Rows",
    "drift_of",
    "frequencies",
    "open_bits",
    "segment_of",
    "segments_of",
    "with_bits",
]

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int16]
"""Of elements of a segment, at most 2^13."""
Words = npt.NDArray[Any]

LEVELS = 16
"""Exponents that have contexts of their own: from the model's lowest on; those outside count as the nearest."""
CONTEXTS = 2 * LEVELS - 1
"""Most contexts that there can be: of levels and shifts, which are below LEVELS too."""
CLASSES = 4
"""Of magnitudes, where rows are compared."""
GRADES = 4
"""Of predictions, by how strong they are."""
MOST_TABLES = 64
MOST_BITS = 12
"""Frequencies of a table add up to 2 to the power of at most so many."""
MOST_RANK = 8
"""Directions that there can be."""
LARGEST = 7
"""Magnitude of a direction's integers."""
DIRECT = 16
"""Magnitudes below this are symbols by themselves."""
SYMBOLS = DIRECT + 2 * (31 - 4) + 1
"""Of magnitudes, in any type: the largest is 2³¹."""
LOWEST = 1 << 16
"""Of a lane's state: it is from here to 2³²."""
ENDS = "coded steps do not end with their elements"
OPEN_BITS = "open bits of steps do not end with their elements"


@dataclass(frozen=True)
class Lattice:
    """How the bits of a float type are read."""

    bits: int
    """Of an element: the sign is the highest."""
    shift: int
    """Where the exponent begins."""
    mask: int
    """Of the exponent, shifted down."""

    @property
    def word(self) -> np.dtype[Any]:
        """Elements as unsigned integers."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def symbols(self) -> int:
        """Magnitudes' symbols that there are: of the largest, 2^(bits − 1), the last one."""
        return DIRECT + 2 * (self.bits - 1 - 4) + 1

    def turned(self, words: Words) -> Words:
        """Bit patterns to integers (modulo 2^bits) that ascend with the value, and back."""
        sign = words >> words.dtype.type(self.bits - 1)
        flipped: Words = words ^ (sign * words.dtype.type((1 << (self.bits - 1)) - 1))
        return flipped

    def keys(self, words: Words) -> Integers:
        """The exponents of elements."""
        bins: Integers = (words >> words.dtype.type(self.shift)).astype(np.int64) & self.mask
        return bins

    def levels(self, words: Words, low: int) -> Bytes:
        """The same as 0 … LEVELS − 1, from one exponent on."""
        exponents = (words >> words.dtype.type(self.shift)).astype(np.int16) & np.int16(self.mask)
        levels: Bytes = np.clip(exponents - np.int16(low), 0, LEVELS - 1).astype(np.uint8)
        return levels


LATTICES: Mapping[str, Lattice] = {
    "F32": Lattice(32, 23, 255),
    "BF16": Lattice(16, 7, 255),
    "F16": Lattice(16, 10, 31),
    "F8_E4M3": Lattice(8, 3, 15),
    "F8_E5M2": Lattice(8, 2, 31),
    "F8_E4M3FNUZ": Lattice(8, 3, 15),
    "F8_E5M2FNUZ": Lattice(8, 2, 31),
}
"""The element types whose steps are coded."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is told of each segment of a chunk, a segment being a row of a matrix, or a few short ones."""

    width: int
    """Elements of a segment; 0 if all are one."""
    first: int
    """Elements of the first segment: its last ones, where a chunk begins within a row."""
    shifts: Bytes
    """Of each segment: shape (S,)."""
    across: npt.NDArray[np.int8]
    """Of each segment, its integer in each direction: shape (S, k)."""
    along: npt.NDArray[np.int8]
    """Of each direction, the integer of each place in a segment: shape (k, width)."""
    marks: npt.NDArray[np.uint16]
    """From which strength of the prediction on its grade is 1, 2, 3: shape (GRADES − 1,), ascending from 1 on."""

    @property
    def grades(self) -> int:
        """Grades of predictions that there are."""
        return GRADES if len(self.along) else 1

    def predictions(self, n: int) -> Integers:
        """Of each of n elements: shape (n,)."""
        if not len(self.along):
            return np.zeros(n, np.int64)
        every = self.across.astype(np.float64) @ self.along.astype(np.float64)  # exact: they are small
        skipped = self.width - self.first
        return every.reshape(-1)[skipped : skipped + n].astype(np.int64)

    def grade(self, predictions: Integers) -> Integers:
        """Of each element its grade."""
        return np.searchsorted(self.marks, np.abs(predictions), side="right")


@dataclass(frozen=True, kw_only=True)
class Model:
    """What tells how likely each symbol is. All of it is in the coded bytes."""

    bits: int
    """Frequencies of a table add up to 2^bits."""
    low: int
    """The exponent of level 0."""
    rows: Rows
    """What is told of segments."""
    table: Bytes
    """The table of each context: shape (grades, contexts). An element's context is its level plus its row's shift."""
    weights: Bytes
    """How often symbols 0, +1, −1, +2 … are, on a scale of `frequencies`: shape (tables, 2A − 1)."""


@dataclass(frozen=True)
class Prepared:
    """Steps of n elements, not coded yet."""

    symbols: npt.NDArray[np.int8]
    """The symbols of magnitudes, with the sign of the step."""
    levels: Bytes
    """Of the base's exponents."""
    extra: Bytes
    """Bits that symbols leave open, least significant first, element by element; zeros fill the last byte."""


@dataclass(frozen=True)
class LatticeSymbols:
    """Coded symbols."""

    states: npt.NDArray[np.uint32]
    """Of the lanes, where decoding begins: shape (L,)."""
    words: npt.NDArray[np.uint16]
    """The stream that they share."""
    extra: Bytes
    """See `Prepared`."""


def frequencies(weights: Bytes, bits: int) -> npt.NDArray[np.int64]:
    """Of 2^bits, by table and symbol. Shape of `weights`.

    A weight q is a frequency of (4 + q mod 4)·2^⌊q/4⌋, or none for 0, to scale; what rounding down leaves goes to
    symbol 0.
    """
    q = weights.astype(np.int64)
    scaled = np.where(q == 0, 0, (4 + (q & 3)) << (q >> 2))
    quotas: Integers = (scaled << bits) // np.maximum(scaled.sum(1, keepdims=True), 1)
    quotas[:, 0] = (1 << bits) - quotas[:, 1:].sum(1)
    return quotas


def places(symbols: npt.NDArray[Any]) -> Integers:
    """Where signed symbols are in the order 0, +1, −1, +2 …"""
    symbols = symbols.astype(np.int64)
    return np.where(symbols > 0, 2 * symbols - 1, -2 * symbols)


def magnitudes_of(d: Integers) -> tuple[Integers, Integers]:
    """The symbols of |d|, and how many bits each leaves open."""
    m = np.abs(d)
    _, octave = np.frexp(m.astype(np.float64))
    octave = octave.astype(np.int64) - 1
    half = (m >> np.maximum(octave - 1, 0)) & 1
    large = m >= DIRECT
    return np.where(large, DIRECT + 2 * (octave - 4) + half, m), np.where(large, octave - 1, 0)


def least_of(symbols: Integers) -> Integers:
    """The least magnitude of a magnitude's symbol."""
    octave = 4 + (symbols - DIRECT) // 2
    return np.where(symbols < DIRECT, symbols, (2 + (symbols & 1)) << np.maximum(octave - 1, 0))


def open_bits(magnitudes: Integers) -> Integers:
    """How many bits each magnitude's symbol leaves open."""
    return np.where(magnitudes < DIRECT, 0, 3 + (magnitudes - DIRECT) // 2)


def prepare(lattice: Lattice, after: Words, base: Words, low: int) -> Prepared:
    """The steps from the base's elements to the task's, words of shape (n,), as symbols."""
    d = drift_of(lattice, after, base).astype(np.int64)
    symbols, left = magnitudes_of(d)
    extra = _pack_bits(np.abs(d) & ((1 << left) - 1), left)
    return Prepared(np.where(d < 0, -symbols, symbols).astype(np.int8), lattice.levels(base, low), extra)


def drift_of(lattice: Lattice, words: Words, origin: Words) -> Words:
    """How many steps elements are away from others, words of shape (n,): as signed words."""
    steps = lattice.turned(words) - lattice.turned(origin)
    signed: Words = steps.view(steps.dtype.str.replace("u", "i"))
    return signed


def segments_of(n: int, width: int, first: int) -> int:
    """How many segments n elements have."""
    return 1 + -(-max(n - first, 0) // width) if width else 1


def count_segments(prepared: Prepared, width: int, first: int, one_in: int) -> Counts:
    """Elements by segment, level and class of magnitude (0, 1, 2, more): shape (segments, LEVELS, CLASSES).

    Of each segment, one element in so many is counted, its first among them.
    """
    segment, segments = segment_of(len(prepared.levels), width, first), segments_of(len(prepared.levels), width, first)
    at = (segment * LEVELS + prepared.levels) * CLASSES + np.minimum(np.abs(prepared.symbols), CLASSES - 1)
    place = np.arange(len(at)) - np.maximum(first + (segment - 1) * width, 0)
    at = at[place % one_in == 0]
    counts = np.bincount(at, minlength=segments * LEVELS * CLASSES).astype(np.int16)
    return counts.reshape(segments, LEVELS, CLASSES)


def project(prepared: Prepared, rows: Rows) -> Integers:
    """Products of the signs of every segment's steps with each direction: shape (segments, k)."""
    n, skipped = len(prepared.symbols), rows.width - rows.first
    signs = np.zeros(len(rows.shifts) * rows.width, np.float64)
    signs[skipped : skipped + n] = np.sign(prepared.symbols)
    projected: Integers = (signs.reshape(-1, rows.width) @ rows.along.T.astype(np.float64)).astype(np.int64)
    return projected


def count_symbols(prepared: Prepared, rows: Rows) -> Integers:
    """Elements by grade, context and symbol, as predictions have it: shape (grades, CONTEXTS, 2·SYMBOLS − 1)."""
    n, every = len(prepared.levels), 2 * SYMBOLS - 1
    predicted = rows.predictions(n)
    at = (rows.grade(predicted) * CONTEXTS + _contexts(prepared.levels, rows)) * every
    at += places(np.where(predicted < 0, -prepared.symbols, prepared.symbols))
    counts = np.bincount(at, minlength=rows.grades * CONTEXTS * every)
    return counts.reshape(rows.grades, CONTEXTS, every)


def encode(prepared: Prepared, model: Model, lanes: int) -> LatticeSymbols:
    """Code a chunk in so many lanes. Every symbol that occurs in a context has a frequency there."""
    size, n = 1 << model.bits, len(prepared.symbols)
    share = frequencies(model.weights, model.bits)
    begin = np.cumsum(share, axis=1) - share
    predicted = model.rows.predictions(n)
    at = (
        _tables(prepared.levels, predicted, model),
        places(np.where(predicted < 0, -prepared.symbols, prepared.symbols)),
    )
    share_of, begin_of = share[at], begin[at]
    states = np.full(lanes, LOWEST, np.int64)
    pieces: list[npt.NDArray[np.uint16]] = []
    for start in range((n - 1) // lanes * lanes, -1, -lanes):
        f, b = share_of[start : start + lanes], begin_of[start : start + lanes]
        x = states[: len(f)]
        full = x >= f << (32 - model.bits)
        pieces.append((x[full] & 0xFFFF).astype(np.uint16))
        x[full] >>= 16
        x[:] = (x // f) * size + x % f + b
    words = np.concatenate(pieces[::-1]) if pieces else np.empty(0, np.uint16)
    return LatticeSymbols(states.astype(np.uint32), words, prepared.extra)


def decode(lattice: Lattice, words: Words, model: Model, steps: LatticeSymbols) -> None:
    """Turn the base's elements into the task's, in place.

    Raises:
        DamagedError: the stream does not end as an encoder's does.
    """
    n, lanes, mask = len(words), len(steps.states), (1 << model.bits) - 1
    symbol, share, offset = (each.reshape(-1) for each in slots(frequencies(model.weights, model.bits)))
    predicted = model.rows.predictions(n)
    table = _tables(lattice.levels(words, model.low), predicted, model) << model.bits
    symbols = np.empty(n, np.int64)
    states, stream, used = steps.states.astype(np.int64), steps.words.astype(np.int64), 0
    for start in range(0, n, lanes):
        entry = table[start : start + lanes]
        x = states[: len(entry)]
        entry += x & mask
        symbols[start : start + lanes] = symbol[entry]
        x[:] = share[entry] * (x >> model.bits) + offset[entry]
        used += refill(x, stream[used:])
    if used != len(stream) or (states != LOWEST).any():
        raise DamagedError(ENDS)
    d = with_bits(np.where(predicted < 0, -symbols, symbols), steps.extra)
    words[:] = lattice.turned(lattice.turned(words) + d.astype(words.dtype))


def refill(states: Integers, stream: npt.NDArray[Any]) -> int:
    """Let states that became small read on, in their order; how many words that took.

    Raises:
        DamagedError: there are not so many.
    """
    few = np.flatnonzero(states < LOWEST)
    if len(few) > len(stream):
        raise DamagedError(ENDS)
    states[few] = states[few] << 16 | stream[: len(few)]
    return len(few)


def slots(share: Integers) -> tuple[Integers, Integers, Integers]:
    """Of every slot its signed symbol, that symbol's frequency, and where in it the slot is: shape (tables, 2^bits)."""
    begin = np.cumsum(share, axis=1) - share
    signed = np.arange(share.shape[1])
    signed = np.where(signed & 1, (signed + 1) // 2, -(signed // 2))
    symbol = np.stack([np.repeat(signed, row) for row in share])
    wide = np.stack([np.repeat(row, row) for row in share])
    first = np.stack([np.repeat(row, times) for row, times in zip(begin, share, strict=True)])
    return symbol, wide, np.arange(symbol.shape[1]) - first


def segment_of(n: int, width: int, first: int) -> Integers:
    """Of each element its segment."""
    return (np.arange(n) + (width - first)) // width if width else np.zeros(n, np.int64)


def _contexts(levels: Bytes, rows: Rows) -> Integers:
    """Of each element its context."""
    shifts = rows.shifts[segment_of(len(levels), rows.width, rows.first)]
    contexts: Integers = levels.astype(np.int64) + shifts.astype(np.int64)
    return contexts


def _tables(levels: Bytes, predicted: Integers, model: Model) -> Integers:
    """Of each element its table."""
    return model.table.astype(np.int64)[model.rows.grade(predicted), _contexts(levels, model.rows)]


def _pack_bits(values: Integers, widths: Integers) -> Bytes:
    """Values of so many bits one behind the other, least significant bit first."""
    some = np.flatnonzero(widths)
    values, widths = values[some].astype(np.uint64), widths[some]
    ends = np.cumsum(widths)
    total = int(ends[-1]) if len(ends) else 0
    starts = ends - widths
    out = np.zeros(total // 32 + 2, np.uint32)
    shifted = values << (starts & 31).astype(np.uint64)
    np.bitwise_or.at(out, starts >> 5, (shifted & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    np.bitwise_or.at(out, (starts >> 5) + 1, (shifted >> np.uint64(32)).astype(np.uint32))
    return out.astype("<u4").view(np.uint8)[: -(-total // 8)]


def with_bits(symbols: Integers, extra: Bytes) -> Integers:
    """Steps of signed symbols and the bits that they leave open."""
    magnitudes = np.abs(symbols)
    widths = open_bits(magnitudes)
    ends = np.cumsum(widths)
    total = int(ends[-1]) if len(ends) else 0
    if len(extra) != -(-total // 8):
        raise DamagedError(OPEN_BITS)
    padded = np.zeros(len(extra) // 4 * 4 + 12, np.uint8)
    padded[: len(extra)] = extra
    if total % 8 and extra[-1] >> (total % 8):
        raise DamagedError(OPEN_BITS)
    some = np.flatnonzero(widths)
    starts = (ends - widths)[some]
    lines = padded.view("<u4").astype(np.uint64)
    pairs = lines[starts >> 5] | lines[(starts >> 5) + 1] << np.uint64(32)
    left = (pairs >> (starts & 31).astype(np.uint64)).astype(np.int64) & ((1 << widths[some]) - 1)
    least = least_of(magnitudes)
    least[some] += left
    return np.where(symbols < 0, -least, least)
