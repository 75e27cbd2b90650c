"""Steps on the lattice of numbers that a float type holds, as symbols; and their range coding: the reference.

Bit patterns of one sign ascend with the magnitude. Turning the negative ones over makes integers o that ascend with the
value, and what fine-tuning did to an element the difference d of two: a few units in the last place. How likely which d
is depends on the base's exponent, as an update moves small weights by many units and large ones by none. A step d is

    a symbol: the magnitude itself below 16; above, its octave and the octave's half; with the sign of d; and
    the bits of the magnitude that the symbol leaves open: all but the first two.

Symbols are coded by range asymmetric numeral systems (J. Duda, arXiv 1311.2540; rANS as F. Giesen interleaves it,
arXiv 1402.3392), with a table of frequencies per context, in lanes: element i belongs to lane i mod L, all lanes share
one stream of 16-bit words. Which table is told by the base's exponent and its row's shift.

The native kernels (`native/src/lattice.c`) do the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.errors import DamagedError

__all__ = ["CONTEXTS", "LATTICES", "LEVELS", "Lattice", "Model", "Prepared", "Steps", "frequencies", "segments_of"]

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Words = npt.NDArray[Any]

LEVELS = 16
"""Exponents that have contexts of their own: from the model's lowest on; those outside count as the nearest."""
CONTEXTS = 2 * LEVELS - 1
"""Most contexts that there can be: of levels and shifts, which are below LEVELS too."""
CLASSES = 4
"""Of magnitudes, where rows are compared."""
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
        found: Words = words ^ (sign * words.dtype.type((1 << (self.bits - 1)) - 1))
        return found

    def keys(self, words: Words) -> Integers:
        """The exponents of elements."""
        found: Integers = (words >> words.dtype.type(self.shift)).astype(np.int64) & self.mask
        return found

    def levels(self, words: Words, low: int) -> Bytes:
        """The same as 0 … LEVELS − 1, from one exponent on."""
        return np.clip(self.keys(words) - low, 0, LEVELS - 1).astype(np.uint8)


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
class Model:
    """What tells how likely each symbol is. All of it is in the coded bytes."""

    bits: int
    """Frequencies of a table add up to 2^bits."""
    low: int
    """The exponent of level 0."""
    width: int
    """Elements of a segment, most often a row's; 0 if all are one."""
    first: int
    """Elements of the first segment."""
    table: Bytes
    """The table of each context: shape (contexts,). An element's context is its level plus its segment's shift."""
    weights: Bytes
    """Shape (tables, A): how often the magnitudes' symbols are, on a scale of `frequencies`."""
    shifts: Bytes
    """Of each segment."""


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
class Steps:
    """Coded symbols."""

    states: npt.NDArray[np.uint32]
    """Of the lanes, where decoding begins: shape (L,)."""
    words: npt.NDArray[np.uint16]
    """The stream that they share."""
    extra: Bytes
    """See `Prepared`."""


def frequencies(weights: Bytes, bits: int) -> npt.NDArray[np.int64]:
    """Of 2^bits, by table and magnitude's symbol; of symbols above 0 both signs have it. Shape of `weights`.

    A weight q is a frequency of (4 + q mod 4)·2^⌊q/4⌋, or none for 0, to scale; what rounding down leaves goes to
    symbol 0.
    """
    q = weights.astype(np.int64)
    scaled = np.where(q == 0, 0, (4 + (q & 3)) << (q >> 2))
    total = scaled[:, :1] + 2 * scaled[:, 1:].sum(1, keepdims=True)
    found: Integers = (scaled << bits) // np.maximum(total, 1)
    found[:, 0] = (1 << bits) - 2 * found[:, 1:].sum(1)
    return found


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


def prepare(lattice: Lattice, after: Words, base: Words, low: int) -> Prepared:
    """The steps from the base's elements to the task's, words of shape (n,), as symbols."""
    words = lattice.turned(after) - lattice.turned(base)
    d = words.view(words.dtype.str.replace("u", "i")).astype(np.int64)
    symbols, left = magnitudes_of(d)
    extra = _pack_bits(np.abs(d) & ((1 << left) - 1), left)
    return Prepared(np.where(d < 0, -symbols, symbols).astype(np.int8), lattice.levels(base, low), extra)


def segments_of(n: int, width: int, first: int) -> int:
    """How many segments n elements have."""
    return 1 + -(-max(n - first, 0) // width) if width else 1


def count_segments(prepared: Prepared, width: int, first: int, one_in: int) -> Integers:
    """Elements by segment, level and class of magnitude (0, 1, 2, more): shape (segments, LEVELS, CLASSES).

    Of each segment, one element in so many is counted, its first among them.
    """
    segment, segments = _segment(len(prepared.levels), width, first), segments_of(len(prepared.levels), width, first)
    at = (segment * LEVELS + prepared.levels) * CLASSES + np.minimum(np.abs(prepared.symbols), CLASSES - 1)
    place = np.arange(len(at)) - np.maximum(first + (segment - 1) * width, 0)
    at = at[place % one_in == 0]
    return np.bincount(at, minlength=segments * LEVELS * CLASSES).reshape(segments, LEVELS, CLASSES)


def count_symbols(prepared: Prepared, width: int, first: int, shifts: Bytes) -> Integers:
    """Elements by context and magnitude's symbol: shape (CONTEXTS, SYMBOLS)."""
    context = prepared.levels + shifts[_segment(len(prepared.levels), width, first)].astype(np.int64)
    at = context * SYMBOLS + np.abs(prepared.symbols)
    return np.bincount(at, minlength=CONTEXTS * SYMBOLS).reshape(CONTEXTS, SYMBOLS)


def encode(prepared: Prepared, model: Model, lanes: int) -> Steps:
    """Code a chunk in so many lanes. Every symbol that occurs in a context has a frequency there."""
    size, symbols = 1 << model.bits, prepared.symbols.astype(np.int64)
    both, begin = both_signs(frequencies(model.weights, model.bits))
    tables = _tables(prepared.levels, model)
    at = tables, np.where(symbols < 0, -2 * symbols, np.maximum(2 * symbols - 1, 0))
    share_of, begin_of = both[at], begin[at]
    states = np.full(lanes, LOWEST, np.int64)
    pieces: list[npt.NDArray[np.uint16]] = []
    for start in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        f, b = share_of[start : start + lanes], begin_of[start : start + lanes]
        x = states[: len(f)]
        full = x >= f << (32 - model.bits)
        pieces.append((x[full] & 0xFFFF).astype(np.uint16))
        x[full] >>= 16
        x[:] = (x // f) * size + x % f + b
    words = np.concatenate(pieces[::-1]) if pieces else np.empty(0, np.uint16)
    return Steps(states.astype(np.uint32), words, prepared.extra)


def decode(lattice: Lattice, words: Words, model: Model, steps: Steps) -> None:
    """Turn the base's elements into the task's, in place.

    Raises:
        DamagedError: the stream does not end as an encoder's does.
    """
    n, lanes, mask = len(words), len(steps.states), (1 << model.bits) - 1
    symbol, share, offset = (each.reshape(-1) for each in slots(frequencies(model.weights, model.bits)))
    table = _tables(lattice.levels(words, model.low), model) << model.bits
    found = np.empty(n, np.int64)
    states, stream, used = steps.states.astype(np.int64), steps.words.astype(np.int64), 0
    for start in range(0, n, lanes):
        entry = table[start : start + lanes]
        x = states[: len(entry)]
        entry += x & mask
        found[start : start + lanes] = symbol[entry]
        x[:] = share[entry] * (x >> model.bits) + offset[entry]
        few = np.flatnonzero(x < LOWEST)
        if used + len(few) > len(stream):
            raise DamagedError(ENDS)
        x[few] = x[few] << 16 | stream[used : used + len(few)]
        used += len(few)
    if used != len(stream) or (states != LOWEST).any():
        raise DamagedError(ENDS)
    d = _with_bits(found, steps.extra)
    words[:] = lattice.turned(lattice.turned(words) + d.astype(words.dtype))


def slots(share: Integers) -> tuple[Integers, Integers, Integers]:
    """Of every slot its signed symbol, that symbol's frequency, and where in it the slot is: shape (tables, 2^bits)."""
    both, begin = both_signs(share)
    signed = np.arange(both.shape[1])
    signed = np.where(signed & 1, (signed + 1) // 2, -(signed // 2))
    symbol = np.stack([np.repeat(signed, row) for row in both])
    wide = np.stack([np.repeat(row, row) for row in both])
    first = np.stack([np.repeat(row, times) for row, times in zip(begin, both, strict=True)])
    return symbol, wide, np.arange(symbol.shape[1]) - first


def _segment(n: int, width: int, first: int) -> Integers:
    """Of each element its segment."""
    return (np.arange(n) + (width - first)) // width if width else np.zeros(n, np.int64)


def _tables(levels: Bytes, model: Model) -> Integers:
    """Of each element its table."""
    shifts = model.shifts[_segment(len(levels), model.width, model.first)]
    return model.table.astype(np.int64)[levels + shifts.astype(np.int64)]


def both_signs(share: Integers) -> tuple[Integers, Integers]:
    """Frequencies of 0, +1, −1, +2, −2 …, and where each begins: shape (tables, 2A − 1)."""
    both = np.repeat(share, 2, axis=1)[:, 1:]
    return both, np.cumsum(both, axis=1) - both


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


def _with_bits(symbols: Integers, extra: Bytes) -> Integers:
    """Steps of signed symbols and the bits that they leave open."""
    magnitudes = np.abs(symbols)
    widths = np.where(magnitudes < DIRECT, 0, 3 + (magnitudes - DIRECT) // 2)
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
    open_bits = (pairs >> (starts & 31).astype(np.uint64)).astype(np.int64) & ((1 << widths[some]) - 1)
    least = least_of(magnitudes)
    least[some] += open_bits
    return np.where(symbols < 0, -least, least)
