"""Decoding kernels that numba compiles, where it is there (the extra `fast`): one pass over memory, in vectors.

Elementwise sums as the reference has them: products and sums are rounded by themselves, since nothing here allows the
compiler to fuse or reorder (no fastmath). Every decoding kernel looks at a run of elements before it writes it, and
stops at the first run whose base has a NaN: an addition might change its bits, so the caller leaves it to the
reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels.jit import compiled, wide
from tallstore.kernels.words import WIDE_SUMS, add_64, span_of_64, word_at

__all__ = [
    "RUN",
    "add_gaps",
    "add_gaps_16",
    "add_gaps_anywhere",
    "delta4",
    "delta8",
    "gaps_to_packed",
    "join_four",
    "join_two",
    "mask_ones",
    "mask_vector",
    "measure_gaps",
    "measure_rows",
    "merge_gaps",
    "merge_masks",
    "merge_rows",
    "narrow",
    "spread",
    "sum_gaps",
    "widen",
]

RUN = 1 << 12
"""Elements that are looked at before they are written: they stay in the first-level cache."""

_Array = npt.NDArray[Any]

# Every loop begins at 0, over slices: indices that are plainly not negative are what the compiler makes vectors of.


@compiled
def _clean(base: _Array) -> bool:
    """Whether no element is a NaN."""
    odd = np.int32(0)
    for i in range(base.shape[0]):
        odd |= np.int32(base[i] != base[i])  # NaN alone
    clean: bool = odd == 0
    return clean


@compiled
def _as(one: Any, number: Any) -> Any:
    """A number in the type of another one."""
    return type(one)(number)


def _steps_of_bytes(bits: int) -> _Array:
    """What each symbol of a byte adds, as int8 side by side in a word: 1, −1 or 0. Shape (256,)."""
    each = 8 // bits
    symbols = (np.arange(256)[:, None] >> (bits * np.arange(each))) & (2**bits - 1)
    return np.ascontiguousarray(((symbols & 1) - (symbols >> 1)).astype(np.int8)).view(f"<u{each}")[:, 0]


_SIGNED, _BINARY = _steps_of_bytes(2), _steps_of_bytes(1)


@compiled
def _unpack(steps: _Array, packed: _Array, table: _Array) -> None:
    """Steps of packed symbols: int8, as many as whole bytes have."""
    words = steps.view(table.dtype)
    for i in range(packed.shape[0]):
        words[i] = table[packed[i]]


@compiled
def _add(out: _Array, base: _Array, steps: _Array, scale: Any) -> bool:
    """out = base + steps · scale. Whether the base has no NaN."""
    odd = np.int32(0)
    for k in range(base.shape[0]):
        before = base[k]
        # 0, −1 or +1: times scale it is exact, and x − (+0) is x.
        out[k] = before - _as(scale, np.int32(-steps[k])) * scale
        odd |= np.int32(before != before)  # noqa: PLR0124 - NaN alone differs from itself
    clean: bool = odd == 0
    return clean


@compiled
def _add_vector(out: _Array, base: _Array, steps: _Array, one: Any, scale: Any, vector: _Array) -> bool:
    """out = base + steps · (scale · vector) where the step is not 0. Whether the base has no NaN."""
    odd = np.int32(0)
    for k in range(base.shape[0]):
        before, step = base[k], _as(one, np.int32(steps[k]))
        moved = before + step * (scale * _as(one, vector[k]))
        out[k] = moved if step != 0 else before
        odd |= np.int32(before != before)  # noqa: PLR0124 - NaN alone differs from itself
    clean: bool = odd == 0
    return clean


@compiled
def mask_ones(out: _Array, base: _Array, packed: _Array, bits: int, scale: Any, apart: bool) -> int:
    """out = base ± scale by packed symbols of so many bits; out and base of one type, and `scale` ≥ 0 too.

    `apart`: out is not the base's own memory, so that a run may be written before it is known to be clean.

    Returns where it stopped: the number of elements, or the beginning of a run of `RUN` with a NaN in its base.
    """
    n, a, steps = base.shape[0], 0, np.empty(RUN, np.int8)
    while a < n:
        b = min(a + RUN, n)
        before, own = base[a:b], packed[a * bits >> 3 : (b * bits + 7) >> 3]
        if not (apart or _clean(before)):
            break
        if bits == 1:
            _unpack(steps, own, _BINARY)
        else:
            _unpack(steps, own, _SIGNED)
        if not _add(out[a:b], before, steps, scale):
            break
        a = b
    return a


@compiled
def mask_vector(
    out: _Array, base: _Array, packed: _Array, bits: int, one: Any, scale: Any, vector: _Array, apart: bool
) -> int:
    """out = base ± scale · vector (float32) by packed symbols. As `mask_ones`."""
    n, a, steps = base.shape[0], 0, np.empty(RUN, np.int8)
    while a < n:
        b = min(a + RUN, n)
        before, own = base[a:b], packed[a * bits >> 3 : (b * bits + 7) >> 3]
        if not (apart or _clean(before)):
            break
        if bits == 1:
            _unpack(steps, own, _BINARY)
        else:
            _unpack(steps, own, _SIGNED)
        if not _add_vector(out[a:b], before, steps, one, scale, vector[a:b]):
            break
        a = b
    return a


@compiled
def delta4(out: _Array, base: _Array, packed: _Array, table: _Array) -> None:
    """out = base + table[index], two indices a byte; table has 16 levels of the base's type."""
    n = base.shape[0]
    for i in range(n >> 1):
        byte = packed[i]
        out[2 * i] = base[2 * i] + table[byte & 15]
        out[2 * i + 1] = base[2 * i + 1] + table[byte >> 4]
    if n & 1:
        out[n - 1] = base[n - 1] + table[packed[n >> 1] & 15]


@compiled
def delta8(out: _Array, base: _Array, packed: _Array, table: _Array) -> None:
    """out = base + table[index], an index a byte; table has 256 levels of the base's type."""
    for i in range(base.shape[0]):
        out[i] = base[i] + table[packed[i]]


@compiled
def sum_gaps(gaps: _Array) -> tuple[Any, Any]:
    """What gaps (uint8; 255: go on) add up to, and how many of them end."""
    wide()
    total, ends = np.int64(0), np.int64(0)
    for a in range(0, gaps.shape[0], RUN):
        run = gaps[a : a + RUN]
        here, over = np.uint32(0), np.uint32(0)
        for i in range(run.shape[0]):
            here += np.uint32(run[i])
            over += np.uint32(run[i] != 255)
        total += here
        ends += over
    return total, ends


@compiled
def gaps_to_packed(out: _Array, gaps: _Array, signs: _Array, bits: int) -> None:
    """Packed symbols from gaps and signs, one bit a mark.

    Args:
        out: uint8, packed symbols, all zero, with room for every mark.
        gaps: uint8 (255: go on), the last one below 255.
        signs: uint8, packed, a bit a mark; none where masks are binary.
        bits: of a symbol.
    """
    place, marks = np.int64(0), 0
    for i in range(gaps.shape[0]):
        gap = np.int64(gaps[i])
        place += gap
        if gap == 255:
            continue
        if bits == 1:
            out[place >> 3] |= np.uint8(1 << (place & 7))
        else:
            symbol = 1 + ((np.int64(signs[marks >> 3]) >> (marks & 7)) & 1)
            out[place >> 2] |= np.uint8(symbol << (2 * (place & 3)))
        place += 1
        marks += 1


# Indices here are unsigned: they come from no loop's counter, and a signed one would be looked at for being negative.
_ZERO, _ONE, _THREE, _SEVEN, _GO_ON = (np.uint64(n) for n in (0, 1, 3, 7, 255))
_WHOLE = np.uint64(64)


_HALF_SIGN, _HALF_SIZE, _HALF_NORMAL, _HALF_INFINITE = (np.uint32(n) for n in (0x8000, 0x7FFF, 0x400, 0x7C00))
"""Of the bits of a float16: sign and magnitude; the least normal magnitude, and the infinite one."""
_SIZE, _INFINITE, _LEAST_HALF, _BEYOND_HALF = (np.uint32(n) for n in (0x7FFFFFFF, 0x7F800000, 0x38800000, 0x47800000))
"""Of a float32's: magnitude; infinity, float16's least normal magnitude 2^-14, and 2^16, which it has no more."""
_REBASED, _13, _16 = np.uint32(0x38000000), np.uint32(13), np.uint32(16)
"""What exponents differ by; bits of a mantissa that float16 lacks, and that bfloat16 does."""
_LAST, _BELOW_13, _BELOW_16, _UPPER_19, _UPPER_16 = (np.uint32(n) for n in (1, 0xFFF, 0x7FFF, 0xFFFFE000, 0xFFFF0000))
"""Of what is rounded away: less than half of a last place at the most; and what is left of a word without it."""


@compiled
def _from_half(word: _Array, value: _Array, half: Any) -> None:
    """The float32 of a float16, no NaN, given as bits; `word` and `value` are one element as bits and as number."""
    size = half & _HALF_SIZE
    if size < _HALF_NORMAL:  # by a product, which is exact, whatever this thread makes of small numbers
        value[0] = np.float32(np.int32(size)) * np.float32(2.0**-24)
    elif size < _HALF_INFINITE:
        word[0] = (size << _13) + _REBASED
    else:
        word[0] = _INFINITE
    word[0] |= (half & _HALF_SIGN) << _16


@compiled
def _to_half(word: _Array, value: _Array) -> Any:
    """The float16 nearest to a float32, no NaN, as bits, ties to even. The element is changed."""
    sign = (word[0] >> _16) & _HALF_SIGN
    word[0] &= _SIZE
    if word[0] >= _BEYOND_HALF:
        size = _HALF_INFINITE
    elif word[0] >= _LEAST_HALF:  # what is carried into the exponent belongs there
        size = np.uint32((word[0] - _REBASED + np.uint32(0xFFF) + ((word[0] >> _13) & np.uint32(1))) >> _13)
    else:  # the unit of small ones is 2^-24: added to 2^23, a number of them is rounded to a whole one
        value[0] = value[0] * np.float32(2.0**24) + np.float32(2.0**23)
        size = np.uint32(word[0] & np.uint32(0x7FFFFF))
    return sign | size


@compiled
def add_gaps_anywhere(out: _Array, state: _Array, gaps: _Array, signs: _Array, plus: Any, minus: Any) -> None:
    """out += `plus` or `minus` at every mark of a run of elements; runs follow each other from a chunk's first element.

    Args:
        out: shape (n,), float.
        state: uint64, shape (4,): gaps and marks that are behind, the element behind the last mark, and the run's first
            element: all 0 at a chunk's beginning, and set for the next run.
        gaps: uint8 (255: go on).
        signs: uint8, packed, a bit a mark, 1 where `minus` is added; none: `plus` everywhere.
        plus: of the type of `out`.
        minus: the same.
    """
    first = state[3]
    end = first + np.uint64(out.shape[0])
    _add_some(out, state, gaps, signs, plus, minus, first, end, gaps.shape[0])
    state[3] = end


@compiled
def _add_some(
    out: _Array,
    state: _Array,
    gaps: _Array,
    signs: _Array,
    plus: Any,
    minus: Any,
    first: Any,
    end: Any,
    most: int,
) -> bool:
    """The same, up to so many gaps; whether there is a mark, or what goes on, within the run behind them."""
    at, mark, place = state[0], state[1], state[2]
    count, signed = np.uint64(most), signs.shape[0] > 0
    more = True
    while at < count:
        gap = np.uint64(gaps[at])
        there = place + gap
        if there >= end:
            more = False
            break
        at += _ONE
        place = there
        if gap == _GO_ON:
            continue
        negative = signed and (np.uint64(signs[mark >> _THREE]) >> (mark & _SEVEN)) & _ONE
        out[there - first] += minus if negative else plus
        place += _ONE
        mark += _ONE
    state[0], state[1], state[2] = at, mark, place
    return more


@compiled
def _add_gaps_wide(out: _Array, state: _Array, gaps: _Array, signs: _Array, plus: Any, minus: Any) -> None:
    """The same, 64 marks at a time where none of their gaps goes on."""
    first = state[3]
    end = first + np.uint64(out.shape[0])
    count, signed = gaps.shape[0], signs.shape[0] > 0
    more = True
    while more and np.int64(state[0]) < count:
        at, mark, place = np.int64(state[0]), np.int64(state[1]), np.int64(state[2])
        while at + 64 <= count and (not signed or (mark >> 3) + 9 <= signs.shape[0]):
            span = span_of_64(out, gaps, at)
            if span < 0 or place + span > np.int64(end):
                break
            negative = np.uint64(0)
            if signed:
                shift = np.uint64(mark & 7)
                negative = word_at(signs, mark >> 3) >> shift
                if shift:
                    negative |= np.uint64(signs[(mark >> 3) + 8]) << (_WHOLE - shift)
            add_64(out, place - np.int64(first), gaps, at, negative, plus, minus)
            at, mark, place = at + 64, mark + 64, place + span
        state[0], state[1], state[2] = np.uint64(at), np.uint64(mark), np.uint64(place)
        more = _add_some(out, state, gaps, signs, plus, minus, first, end, min(at + 64, count))
    state[3] = end


add_gaps = _add_gaps_wide if WIDE_SUMS else add_gaps_anywhere


@compiled
def add_gaps_16(out: _Array, state: _Array, gaps: _Array, signs: _Array, plus: Any, minus: Any, brain: bool) -> bool:
    """The same for bfloat16 (`brain`) and float16: `out` is uint16; sums are float32, rounded to nearest, ties to even.

    Returns whether it went to the end. Of float16 it stops at a mark on a NaN: the reference says what becomes of its
    bits.
    """
    at, mark, place, first = state[0], state[1], state[2], state[3]
    end, count, signed = first + np.uint64(out.shape[0]), np.uint64(gaps.shape[0]), signs.shape[0] > 0
    word = np.zeros(1, np.uint32)
    value = word.view(np.float32)
    while at < count:
        gap = np.uint64(gaps[at])
        there = place + gap
        if there >= end:
            break
        at += _ONE
        place = there
        if gap == _GO_ON:
            continue
        negative = signed and (np.uint64(signs[mark >> _THREE]) >> (mark & _SEVEN)) & _ONE
        before = np.uint32(out[there - first])
        if brain:
            word[0] = before << _16
            value[0] += minus if negative else plus
            if value[0] != value[0]:
                after = np.uint32(0x7FC0)
            else:
                after = (word[0] + np.uint32(0x7FFF) + ((word[0] >> _16) & np.uint32(1))) >> _16
        elif (before & _HALF_SIZE) > _HALF_INFINITE:
            return False
        else:
            _from_half(word, value, before)
            value[0] += minus if negative else plus
            after = _to_half(word, value)
        out[there - first] = np.uint16(after)
        place += _ONE
        mark += _ONE
    state[0], state[1], state[2], state[3] = at, mark, place, end
    return True


@compiled
def widen(out: _Array, words: _Array, brain: bool) -> None:
    """The float32 that narrow floats are.

    Args:
        out: float32, shape (n,); set.
        words: their bits, uint16, shape (n,).
        brain: whether they are bfloat16; else they are float16.
    """
    for a in range(0, words.shape[0], RUN):
        values, own = out[a : a + RUN], words[a : a + RUN]
        bits, n = values.view(np.uint32), own.shape[0]
        if brain:
            for k in range(n):
                bits[k] = np.uint32(own[k]) << _16
            continue
        for k in range(n):  # small ones by a product, as above
            values[k] = np.float32(np.int32(np.uint32(own[k]) & _HALF_SIZE)) * np.float32(2.0**-24)
        for k in range(n):
            size = np.uint32(np.uint32(own[k]) & _HALF_SIZE)
            found = np.uint32((size << _13) + _REBASED)
            found = found if size < _HALF_INFINITE else np.uint32(found + _REBASED)
            found = found if size >= _HALF_NORMAL else bits[k]
            bits[k] = found | np.uint32((np.uint32(own[k]) & _HALF_SIGN) << _16)


@compiled
def narrow(values: _Array, small: _Array, brain: bool) -> None:
    """Round to what a narrow type has, to nearest, ties to even; what is too large for it is infinite.

    Args:
        values: float32, shape (n,), no NaN; changed.
        small: float32, room for n: used.
        brain: whether the type is bfloat16; else it is float16.
    """
    bits, n = values.view(np.uint32), values.shape[0]
    if brain:
        for k in range(n):
            bits[k] = np.uint32(bits[k] + _BELOW_16 + ((bits[k] >> _16) & _LAST)) & _UPPER_16
        return
    unit, whole, tiny = np.float32(2.0**24), np.float32(2.0**23), small[:n].view(np.uint32)
    for k in range(n):  # small ones as above
        small[k] = ((abs(values[k]) * unit + whole) - whole) * np.float32(2.0**-24)
    for k in range(n):
        size = np.uint32(bits[k] & _SIZE)
        found = np.uint32((size + _BELOW_13 + ((size >> _13) & _LAST)) & _UPPER_19)
        found = found if found < _BEYOND_HALF else _INFINITE
        found = found if size >= _LEAST_HALF else tiny[k]
        bits[k] = found | np.uint32(bits[k] & ~_SIZE)


@compiled
def merge_rows(out: _Array, rows: _Array, least: int, inner: Any, outer: Any) -> None:
    """out += outer · (inner · Σ rows where at least so many rows are not 0, else 0), added up as `recipes.sums` does.

    Args:
        out: shape (n,), float32 or float64. Elements to which 0 is added keep every bit.
        rows: shape (T, n), of the same type.
        least: the number of rows; 0: everywhere.
        inner: a factor, of the same type.
        outer: another one.
    """
    levels = np.empty((4, RUN), rows.dtype)
    users = np.empty(RUN, np.int32)
    for start in range(0, rows.shape[1], RUN):
        here = out[start : start + RUN]
        size = here.shape[0]
        _sum_rows(levels, users, rows, start, size)
        _move(here, levels[0, :size], users[:size], least, inner, outer)


@compiled
def measure_rows(squares: _Array, rows: _Array, least: int, inner: Any) -> float:
    """The sum of squares of what `merge_rows` adds, outer factor 1; those of the rows are added to `squares`.

    Args:
        squares: shape (T,), float64.
        rows: shape (T, n), float32 or float64.
        least: the number of rows; 0: everywhere.
        inner: a factor, of the type of the rows.
    """
    levels = np.empty((4, RUN), rows.dtype)
    users = np.empty(RUN, np.int32)
    total = 0.0
    for start in range(0, rows.shape[1], RUN):
        size = min(RUN, rows.shape[1] - start)
        for t in range(rows.shape[0]):
            row = rows[t]
            squares[t] += _squares(row[start : start + size])
        _sum_rows(levels, users, rows, start, size)
        for i in range(size):
            levels[0, i] = levels[0, i] * inner * _as(inner, np.int32(users[i] >= least))
        total += _squares(levels[0, :size])
    return total


@compiled
def _gap_rows(
    rows: _Array,
    size: int,
    states: _Array,
    gaps: _Array,
    gap_at: _Array,
    signs: _Array,
    sign_at: _Array,
    scales: _Array,
) -> None:
    """The next elements of rows that are given by their gaps, `size` of them; see `merge_gaps`."""
    for t in range(rows.shape[0]):
        row = rows[t]
        row[:size] = 0
        own = gaps[gap_at[t] : gap_at[t + 1]]
        if own.shape[0]:
            add_gaps(row[:size], states[t], own, signs[sign_at[t] : sign_at[t + 1]], scales[t], -scales[t])


@compiled
def merge_gaps(
    out: _Array,
    gaps: _Array,
    gap_at: _Array,
    signs: _Array,
    sign_at: _Array,
    scales: _Array,
    least: int,
    inner: Any,
    outer: Any,
) -> None:
    """What `merge_rows` does, of rows that are ± s at marks and 0 elsewhere.

    Args:
        out: shape (n,), float32 or float64.
        gaps: uint8: those of all rows, one behind the other: see `add_gaps`.
        gap_at: int64, shape (T + 1,): where each row's begin. A row without any is 0.
        signs: uint8: of all rows likewise.
        sign_at: int64, shape (T + 1,).
        scales: s, shape (T,), of the type of `out`.
        least: as there.
        inner: as there.
        outer: as there.
    """
    count = scales.shape[0]
    room, states = np.empty((count, RUN), out.dtype), np.zeros((count, 4), np.uint64)
    levels = np.empty((4, RUN), out.dtype)
    users = np.empty(RUN, np.int32)
    for start in range(0, out.shape[0], RUN):
        here = out[start : start + RUN]
        size = here.shape[0]
        _gap_rows(room, size, states, gaps, gap_at, signs, sign_at, scales)
        _sum_rows(levels, users, room, 0, size)
        _move(here, levels[0, :size], users[:size], least, inner, outer)


@compiled
def measure_gaps(
    squares: _Array,
    n: int,
    gaps: _Array,
    gap_at: _Array,
    signs: _Array,
    sign_at: _Array,
    scales: _Array,
    least: int,
    inner: Any,
) -> float:
    """What `measure_rows` does, of n elements of such rows."""
    count = scales.shape[0]
    room, states = np.zeros((count, RUN), scales.dtype), np.zeros((count, 4), np.uint64)
    total = 0.0
    for start in range(0, n, RUN):
        size = min(RUN, n - start)
        room[:, size:] = 0  # what is left of the run before, which adds nothing so
        _gap_rows(room, size, states, gaps, gap_at, signs, sign_at, scales)
        total += measure_rows(squares, room, least, inner)
    return total


@compiled
def merge_masks(
    out: _Array,
    vector: _Array,
    packed: _Array,
    bits: int,
    scales: _Array,
    whole: bool,
    least: int,
    inner: Any,
    outer: Any,
) -> None:
    """The same of rows s·m·v that are still packed; those that are on are counted, whatever v is.

    Args:
        out: shape (n,), float32 or float64.
        vector: v: shape (n,), of the same type.
        packed: shape (T, bytes of n symbols), uint8.
        bits: of a symbol.
        scales: s: shape (T,), of the type of `out`.
        whole: v itself is added, in place of the sum of the rows.
        least: the number of rows; 0: everywhere.
        inner: a factor, of the same type.
        outer: another one.
    """
    levels = np.empty((4, RUN), out.dtype)
    users = np.empty(RUN, np.int32)
    count = 0 if whole else packed.shape[0]
    for start in range(0, out.shape[0], RUN):
        here, values = out[start : start + RUN], vector[start : start + RUN]
        size = here.shape[0]
        levels[: 4 if count >= 16 else 1] = 0
        users[:] = 0
        for t in range(packed.shape[0]):
            row = packed[t, start * bits >> 3 : ((start + size) * bits + 7) >> 3]
            _add_symbols(levels[0, :size], users[:size], row, bits, values, scales[t])
            _carry(levels, t + 1, size)
        if whole:
            levels[0, :size] = values
        elif count >= 16:
            for level in range(1, 4):
                for i in range(size):
                    levels[0, i] += levels[level, i]
        _move(here, levels[0, :size], users[:size], least, inner, outer)


@compiled
def _add_symbols(top: _Array, users: _Array, packed: _Array, bits: int, vector: _Array, scale: Any) -> None:
    """Add s·m·v of packed symbols, and count those that are not 0."""
    n, none = top.shape[0], _as(scale, 0)
    each = 8 // bits
    for i in range(n // each):
        byte = np.int32(packed[i])
        if bits == 1:
            for j in range(8):
                on, kept = (byte >> j) & 1, scale * vector[8 * i + j]
                top[8 * i + j] += kept if on else none
                users[8 * i + j] += on
        else:
            for j in range(4):
                symbol, kept = (byte >> (2 * j)) & 3, scale * vector[4 * i + j]
                top[4 * i + j] += kept if symbol == 1 else (-kept if symbol else none)
                users[4 * i + j] += np.int32(symbol != 0)
    for k in range(n // each * each, n):
        symbol = (np.int32(packed[k // each]) >> (bits * (k % each))) & (2 * bits - 1)
        kept = scale * vector[k]
        top[k] += kept if symbol == 1 else (-kept if symbol else none)
        users[k] += np.int32(symbol != 0)


@compiled
def _squares(values: _Array) -> float:
    """Their sum, by eight sums side by side."""
    sums = np.zeros(8)
    n = values.shape[0] & ~7
    for i in range(0, n, 8):
        for j in range(8):
            sums[j] += np.float64(values[i + j]) * np.float64(values[i + j])
    for i in range(n, values.shape[0]):
        sums[0] += np.float64(values[i]) * np.float64(values[i])
    total = 0.0
    for j in range(8):
        total += sums[j]
    return total


@compiled
def _sum_rows(levels: _Array, users: _Array, rows: _Array, start: int, size: int) -> None:
    """The sum of at most `RUN` elements of rows into the first of four levels, and how many of them are not 0.

    (Rows are taken whole and cut then: so the compiler knows that their elements follow each other.)
    """
    count = rows.shape[0]
    levels[: 4 if count >= 16 else 1] = 0
    users[:] = 0
    for t in range(count):
        row = rows[t]
        _add_row(levels[0, :size], users[:size], row[start : start + size])
        _carry(levels, t + 1, size)
    if count >= 16:
        for level in range(1, 4):
            for i in range(size):
                levels[0, i] += levels[level, i]


@compiled
def _add_row(top: _Array, users: _Array, row: _Array) -> None:
    """Add a row, and count where it is not 0."""
    for i in range(top.shape[0]):
        top[i] += row[i]
        users[i] += np.int32(row[i] != 0)


@compiled
def _carry(levels: _Array, count: int, size: int) -> None:
    """Each level that has taken 16 goes into the next one."""
    level = 0
    while count % 16 == 0 and level < 3:
        for i in range(size):
            levels[level + 1, i] += levels[level, i]
            levels[level, i] = 0
        count //= 16
        level += 1


@compiled
def _move(out: _Array, total: _Array, users: _Array, least: int, inner: Any, outer: Any) -> None:
    for i in range(out.shape[0]):
        step = total[i] * inner * _as(inner, np.int32(users[i] >= least)) * outer
        moved = out[i] + step
        out[i] = out[i] if step == 0 else moved


@compiled
def join_two(out: _Array, low: _Array, high: _Array) -> None:
    """Words of two bytes from planes of their bytes (uint8, shape (n,)), rotated right by one bit."""
    for i in range(out.shape[0]):
        word = np.uint16(low[i]) | np.uint16(np.uint16(high[i]) << np.uint16(8))
        out[i] = np.uint16(word >> np.uint16(1)) | np.uint16(word << np.uint16(15))


@compiled
def join_four(out: _Array, low: _Array, second: _Array, third: _Array, high: _Array) -> None:
    """The same of four bytes."""
    for i in range(out.shape[0]):
        word = (
            np.uint32(low[i])
            | np.uint32(second[i]) << np.uint32(8)
            | np.uint32(third[i]) << np.uint32(16)
            | np.uint32(high[i]) << np.uint32(24)
        )
        out[i] = word >> np.uint32(1) | word << np.uint32(31)


@compiled
def spread(out: _Array, on: _Array, n: int, rest: _Array, bits: int) -> None:
    """Packed indices of n elements, from those of the elements that are not 0.

    Args:
        out: uint8, packed, `bits` (4 or 8) an index, all zero.
        on: uint8, packed bits: which elements are not 0.
        n: elements.
        rest: uint8, packed, `bits` an index: for each element that is on its index less 1.
        bits: 4 or 8.
    """
    at = 0
    for i in range(n):
        if (on[i >> 3] >> (i & 7)) & 1:
            if bits == 8:
                out[i] = rest[at] + 1
            else:
                index = ((rest[at >> 1] >> (4 * (at & 1))) & 15) + 1
                out[i >> 1] |= np.uint8(index << (4 * (i & 1)))
            at += 1
