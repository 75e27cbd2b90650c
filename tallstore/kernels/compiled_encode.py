"""Encoding kernels that numba compiles, where it is installed (the extra `fast`).

What they find is the reference's, bit for bit: products and sums are rounded by themselves (no fastmath).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels.jit import compiled, wide
from tallstore.kernels.words import borrowed, signs_of_16
from tallstore.kernels.words import count as bits_set

__all__ = [
    "agreement",
    "agreement_bf16",
    "agreement_of_levels",
    "count",
    "differs",
    "halve",
    "levels",
    "look",
    "marks_above",
    "marks_of_tile",
    "nearest",
    "norms",
    "notice",
    "pack_indices",
    "power",
    "split",
    "tallied",
    "tally",
    "without_zeros",
]

_Array = npt.NDArray[Any]
_FEW = 8
"""Words that tell, mostly, whether a run moved."""
BLOCK = 1 << 10
"""Products that are added up first, by themselves: see `encoder.quality.sums`."""
_HALF = BLOCK >> 1
_BLOCKS = 16
"""Blocks that levels are looked up for at once."""


# Every loop begins at 0, over slices: indices that are plainly not negative are what the compiler makes vectors of.


_NONE, _MAGNITUDE, _ONCE = np.float32(0), np.uint32(0x7FFFFFFF), np.uint32(1)
_ONE, _TWO, _FOUR, _EIGHT, _HIGH = (np.uint64(n) for n in (1, 2, 4, 8, 31))
_PAIRS, _FOURS, _EIGHTS, _SIXTEENS = (
    np.uint64(n) for n in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x00FF00FF00FF00FF)
)
_SIXTEEN = 16
"""Symbols that are packed at once."""


@compiled
def look(weights: _Array, base: _Array, sign: Any) -> tuple[bool, Any]:
    """Whether two arrays are equal in every bit, and the largest magnitude of the first, as bits.

    Args:
        weights: shape (n,), floats as unsigned integers of the same size: their bits are ordered as magnitudes are.
        base: the same of the other.
        sign: what is left of a word without its sign: all ones but the first.
    """
    wide()
    differ = weights.dtype.type(0)
    largest = weights.dtype.type(0)
    for i in range(weights.shape[0]):
        word = weights[i]
        differ |= word ^ base[i]
        largest = max(largest, word & sign)
    return differ == 0, largest


@compiled
def power(count: int) -> int:
    """The least power of two that is not less."""
    found = 1
    while found < count:
        found *= 2
    return found


@compiled
def tally(tables: _Array, sums: _Array, tau: _Array, base: _Array, shift: Any) -> None:
    """Count |τ| by its upper bits: see `recipes.allocation.magnitudes`. Zeros are not counted.

    Args:
        tables: uint32, shape (4, bins): counted on by turns, so that equal ones need not wait for each other.
        sums: float64, shape (⌈n / 1024⌉,) or more: Σ θ0² of each block, where τ is not 0; set.
        tau: float32, shape (n,).
        base: θ0, float32, shape (n,).
        shift: of |τ| as uint32, to its bin.
    """
    wide()
    tables, tau, base = borrowed(tables), borrowed(tau), borrowed(base)
    a, b, c, d = tables[0], tables[1], tables[2], tables[3]
    words, there = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.float32)
    squares = np.empty(BLOCK >> 2, np.float64)
    still = np.uint32(0)
    for i in range((tau.shape[0] + BLOCK - 1) // BLOCK):
        own, before = tau[i * BLOCK : (i + 1) * BLOCK].view(np.uint32), base[i * BLOCK : (i + 1) * BLOCK]
        m = own.shape[0]
        for k in range(m):
            words[k] = own[k] & _MAGNITUDE
        for k in range(m):
            still += np.uint32(words[k] == 0)
        for k in range(m):
            there[k] = before[k] if words[k] else _NONE
        if m < BLOCK:
            there[m:] = 0
        _quarter(squares, there)
        sums[i] = halve(squares, BLOCK >> 2)
        for k in range(m >> 2):
            a[words[4 * k] >> shift] += _ONCE
            b[words[4 * k + 1] >> shift] += _ONCE
            c[words[4 * k + 2] >> shift] += _ONCE
            d[words[4 * k + 3] >> shift] += _ONCE
        for k in range(m & ~3, m):
            a[words[k] >> shift] += _ONCE
    a[0] -= still  # below 0 it goes round, until all tables are added up


@compiled
def tallied(tables: _Array, sums: _Array) -> tuple[_Array, int, float]:
    """What was tallied, of one tile or of several runs of it, all but the last of them whole blocks.

    Args:
        tables: see `tally`; used up.
        sums: float64, shape (blocks,).

    Returns how many parameters are in each bin, float64, from the first to the last that has any; that first bin; and
    Σ θ0² of these.
    """
    a, b, c, d = tables[0], tables[1], tables[2], tables[3]
    for k in range(a.shape[0]):
        a[k] += b[k] + c[k] + d[k]
    first, last = 0, a.shape[0]
    while last > 0 and a[last - 1] == 0:
        last -= 1
    while first < last and a[first] == 0:
        first += 1
    counts = np.empty(last - first, np.float64)
    for k in range(last - first):
        counts[k] = a[first + k]
    size = power(sums.shape[0])
    filled = np.zeros(size, np.float64)
    for k in range(sums.shape[0]):
        filled[k] = sums[k]
    return counts, first, halve(filled, size)


@compiled
def _quarter(squares: _Array, values: _Array) -> None:
    """What `halve` has added up when a quarter is left, of the squares of float32."""
    wide()
    values = borrowed(values)
    n = squares.shape[0]
    one, two, three, four = values[:n], values[n : 2 * n], values[2 * n : 3 * n], values[3 * n :]
    for k in range(n):
        a, b, c, d = np.float64(one[k]), np.float64(two[k]), np.float64(three[k]), np.float64(four[k])
        squares[k] = (a * a + c * c) + (b * b + d * d)


@compiled
def split(planes: _Array, words: _Array, rotated: bool) -> None:
    """Bytes of equal place together, the least significant first.

    Args:
        planes: uint8, shape (bytes of a word, n).
        words: unsigned integers, shape (n,).
        rotated: whether words are rotated left by one bit before.
    """
    words = borrowed(words)
    n, one = words.shape[0], words.dtype.type(1)
    last = words.dtype.type(8 * planes.shape[0] - 1)
    for first in range(0, n, BLOCK):
        run = words[first : first + BLOCK]
        for place in range(planes.shape[0]):
            plane = planes[place, first : first + BLOCK]
            shift = words.dtype.type(8 * place)
            if rotated:
                for k in range(run.shape[0]):
                    plane[k] = np.uint8(((run[k] << one) | (run[k] >> last)) >> shift)
            else:
                for k in range(run.shape[0]):
                    plane[k] = np.uint8(run[k] >> shift)


@compiled
def halve(values: _Array, n: int) -> Any:
    """Add the second half to the first until one is left; n is a power of two."""
    wide()
    half = n >> 1
    while half:
        for k in range(half):
            values[k] += values[k + half]
        half >>= 1
    return values[0]


@compiled
def _products(error: _Array, norm: _Array, energy: _Array, dot: _Array, tau: _Array, kept: _Array) -> None:
    for k in range(tau.shape[0]):
        missed = tau[k] - kept[k]
        error[k] = missed * missed
        norm[k] = tau[k] * tau[k]
        energy[k] = kept[k] * kept[k]
        dot[k] = tau[k] * kept[k]


@compiled
def _agreement_of_block(found: _Array, i: int, products: _Array, tau: _Array, kept: _Array) -> None:
    """`agreement` of block i; `products`: shape (4, 1024), of τ's type."""
    products, m = borrowed(products), tau.shape[0]
    if m < BLOCK:
        products[:] = 0
    _products(products[0, :m], products[1, :m], products[2, :m], products[3, :m], tau, kept)
    for j in range(4):
        found[j, i] = halve(products[j], BLOCK)


@compiled
def agreement(found: _Array, tau: _Array, kept: _Array) -> None:
    """What `encoder.quality.sums` adds up of a task vector and what is kept of it, block by block.

    Args:
        found: float64, shape (4, ⌈n / 1024⌉): ‖τ − τ̂‖², ‖τ‖², ‖τ̂‖², ⟨τ, τ̂⟩ of each block; set.
        tau: τ, float32 or float64, shape (n,).
        kept: τ̂, the same.
    """
    tau, kept = borrowed(tau), borrowed(kept)
    products = np.zeros((4, BLOCK), tau.dtype)
    for i in range(found.shape[1]):
        a, b = i * BLOCK, min((i + 1) * BLOCK, tau.shape[0])
        _agreement_of_block(found, i, products, tau[a:b], kept[a:b])


@compiled
def agreement_bf16(found: _Array, weights: _Array, base: _Array, kept: _Array) -> None:
    """The same of weights and what is kept of them, against their base, all of them bfloat16.

    Args:
        found: float64, shape (4, ⌈n / 1024⌉); set.
        weights: θt as bits, uint16, shape (n,).
        base: θ0, the same.
        kept: θ̂, the same.
    """
    weights, base, kept = borrowed(weights), borrowed(base), borrowed(kept)
    products, words = np.zeros((4, BLOCK), np.float32), np.empty((3, BLOCK), np.uint32)
    values = words.view(np.float32)
    for i in range(found.shape[1]):
        a, b = i * BLOCK, min((i + 1) * BLOCK, weights.shape[0])
        m, own, before, after = b - a, weights[a:b], base[a:b], kept[a:b]
        for k in range(m):
            words[0, k] = np.uint32(own[k]) << np.uint32(16)
            words[1, k] = np.uint32(after[k]) << np.uint32(16)
            words[2, k] = np.uint32(before[k]) << np.uint32(16)
        for k in range(m):
            values[0, k] -= values[2, k]
            values[1, k] -= values[2, k]
        _agreement_of_block(found, i, products, values[0, :m], values[1, :m])


@compiled
def agreement_of_levels(found: _Array, tau: _Array, indices: _Array, table: _Array) -> None:
    """What `agreement` measures of a task vector and the levels that stand for it, all blocks added up.

    Args:
        found: float64, shape (5,): as `encoder.quality.sums` has it; set.
        tau: τ, float32, shape (n,).
        indices: uint8, shape (n,).
        table: float32, shape (K,).
    """
    n, on = tau.shape[0], 0
    most = power((n + BLOCK - 1) // BLOCK)
    sums, room = np.zeros((4, most), np.float64), np.empty(min(n, _BLOCKS * BLOCK), np.float32)
    for a in range(0, n, _BLOCKS * BLOCK):
        b = min(a + _BLOCKS * BLOCK, n)
        kept, there = room[: b - a], indices[a:b]
        for k in range(b - a):
            kept[k] = table[there[k]]
        for k in range(b - a):
            on += kept[k] != _NONE
        agreement(sums[:, a // BLOCK : (b + BLOCK - 1) // BLOCK], tau[a:b], kept)
    for j in range(4):
        found[j] = halve(sums[j], most)
    found[4] = on


@compiled
def _uniform(place: Any) -> Any:
    """`recipes.dither.uniform`'s number for an unmixed place, uint32."""
    x = np.uint32(place ^ (place >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    x = np.uint32(x ^ (x >> np.uint32(16)))
    return np.float32(np.int32(x >> np.uint32(8))) * np.float32(2.0**-24)


@compiled
def differs(weights: _Array, base: _Array) -> bool:
    """Whether two arrays of words differ: told by the first few, mostly."""
    for k in range(min(_FEW, weights.shape[0])):
        if weights[k] != base[k]:
            return True
    found = weights.dtype.type(0)
    for k in range(weights.shape[0]):
        found |= weights[k] ^ base[k]
    differs: bool = found != 0
    return differs


@compiled
def _above(norm: _Array, kept: _Array, weights: _Array, base: _Array, low: Any) -> None:
    """τ² and, where |τ| is not below `low` nor 0, τ, else 0."""
    wide()
    for k in range(weights.shape[0]):
        tau = weights[k] - base[k]
        size = abs(tau)
        norm[k] = tau * tau
        kept[k] = tau if (size >= low) & (size > _NONE) else _NONE


@compiled
def _above_drawn(norm: _Array, kept: _Array, weights: _Array, base: _Array, low: Any, width: Any, first: int) -> None:
    """The same with limits low + u · width, u being `recipes.dither.uniform`'s numbers.

    `first`: the unmixed place of the first one. All in one loop: what is drawn is used where it is, in registers.
    """
    wide()
    begin = np.uint32(first)
    for k in range(weights.shape[0]):
        limit = _uniform(np.uint32(begin + np.uint32(k))) * width + low
        tau = weights[k] - base[k]
        size = abs(tau)
        norm[k] = tau * tau
        kept[k] = tau if (size >= limit) & (size > _NONE) else _NONE


@compiled
def _pack_signs(symbols: _Array, kept: _Array, groups: _Array) -> int:
    """Symbols of a block: 1 where a number is above 0, 2 where it is below. Returns how many are either.

    Args:
        symbols: uint32, shape (64,): sixteen symbols of two bits each; set.
        kept: float32, shape (1024,).
        groups: uint64, shape (64,): used up.
    """
    wide()
    for k in range(groups.shape[0]):
        groups[k] = signs_of_16(kept, k * _SIXTEEN)
    marks = np.uint64(0)
    for k in range(groups.shape[0]):
        marks += bits_set(groups[k])
    for k in range(groups.shape[0]):
        x = groups[k]
        x = (x | (x << _EIGHT)) & _SIXTEENS
        x = (x | (x << _FOUR)) & _EIGHTS
        x = (x | (x << _TWO)) & _FOURS
        x = (x | (x << _ONE)) & _PAIRS
        symbols[k] = np.uint32(x | (x >> _HIGH))
    return int(marks)


@compiled
def _halve_magnitudes(values: _Array) -> Any:
    """`halve` of the magnitudes of a block."""
    wide()
    for k in range(_HALF):
        values[k] = abs(values[k]) + abs(values[k + _HALF])
    return halve(values, _HALF)


@compiled
def notice(seen: _Array, weights: _Array, base: _Array) -> bool:
    """`look` of one run of several: what it finds of any of them is kept.

    Args:
        seen: uint32, shape (2,): whether any differs (0: none does), and the largest magnitude as bits; added to.
        weights: float32 as uint32, shape (n,).
        base: the same.
    """
    same: bool
    same, largest = look(weights, base, _MAGNITUDE)
    if not same:
        seen[0] = 1
    seen[1] = max(seen[1], largest)
    return same


@compiled
def marks_of_tile(
    packed: _Array,
    sums: _Array,
    moved: _Array,
    weights: _Array,
    base: _Array,
    low: Any,
    width: Any,
    first: int,
    scratch: _Array,
) -> None:
    """One tile of `marks_above`; `scratch`: float32, shape (2, 1024)."""
    n = weights.shape[0]
    packed, weights, base = borrowed(packed), borrowed(weights), borrowed(base)
    bits, before = weights.view(np.uint32), base.view(np.uint32)
    symbols, groups = np.empty(BLOCK // _SIXTEEN, np.uint32), np.empty(BLOCK // _SIXTEEN, np.uint64)
    quads = symbols.view(np.uint8)
    norm, kept = borrowed(scratch[0]), borrowed(scratch[1])
    blocks = (n + BLOCK - 1) // BLOCK
    size = power(blocks)
    norms, dots = np.zeros(size, np.float64), np.zeros(size, np.float64)
    marks = 0
    for i in range(blocks):
        a = i * BLOCK
        m = min(BLOCK, n - a)
        if not differs(bits[a : a + m], before[a : a + m]):  # no mark, and nothing to add
            packed[a >> 2 : (a + m + 3) >> 2] = 0
            continue
        moved[0] = True
        if m < BLOCK:
            norm[:] = 0
            kept[:] = 0
        own, there = weights[a : a + m], base[a : a + m]
        if width > 0:
            _above_drawn(norm[:m], kept[:m], own, there, low, width, first + a)
        else:
            _above(norm[:m], kept[:m], own, there, low)
        marks += _pack_signs(symbols, kept, groups)
        for k in range((m + 3) >> 2):
            packed[(a >> 2) + k] = quads[k]
        norms[i] = halve(norm, BLOCK)
        dots[i] = _halve_magnitudes(kept)
    sums[1] += halve(norms, size)
    sums[2] += marks
    sums[3] += halve(dots, size)
    sums[4] += marks


@compiled
def marks_above(
    packed: _Array,
    sums: _Array,
    moved: _Array,
    weights: _Array,
    base: _Array,
    low: Any,
    width: Any,
    first: int,
    tile: int,
) -> None:
    """Signed marks where |τ| ≥ low + u · width, and what `encoder.quality.sums` measures of them over v = 1.

    Args:
        packed: uint8, room for n symbols of two bits.
        sums: float64, shape (5,): what each tile adds up to is added: unset, ‖τ‖², ‖w‖², ⟨τ, w⟩, marks.
        moved: bool, shape (1,): set where any bit of θt is not the base's. (‖τ‖² is not finite where θt holds what
            arithmetic cannot carry, if the base does not.)
        weights: θt, float32, shape (n,).
        base: θ0 as the task's type has it, float32, shape (n,).
        low: float32.
        width: float32. Above 0, u is the number of each parameter's place.
        first: the unmixed place of the first parameter, modulo 2^32.
        tile: parameters that are added up first, by themselves: a multiple of 4.
    """
    scratch = np.zeros((2, BLOCK), np.float32)
    for a in range(0, weights.shape[0], tile):
        b = min(a + tile, weights.shape[0])
        marks_of_tile(
            packed[a >> 2 : (b + 3) >> 2], sums, moved, weights[a:b], base[a:b], low, width, first + a, scratch
        )


@compiled
def levels(
    indices: _Array, numbers: _Array, totals: _Array, tau: _Array, bounds: _Array, width: Any, first: int
) -> float:
    """The level of each magnitude, how many there are of each, and what these add up to: see `encoder.leveled`.

    Args:
        indices: uint8, shape (n,): 0, then each level of +, then each of −; set.
        numbers: int64, shape (1 + 2 K,): how many elements have each index; set.
        totals: float64, the same shape: the sums of their magnitudes, added up in four tables by turns, so that equal
            ones need not wait for each other; set.
        tau: τ, float32, shape (n,).
        bounds: float32, ascending, shape (K,).
        width: float32. Above 0, bounds are raised by this times the number of each parameter's place.
        first: the unmixed place of the first parameter, modulo 2^32.

    Returns ‖τ‖².
    """
    indices, tau = borrowed(indices), borrowed(tau)
    n, count = tau.shape[0], bounds.shape[0]
    number, total = np.zeros((4, 1 + 2 * count), np.int64), np.zeros((4, 1 + 2 * count), np.float64)
    size, shift, shifted = np.empty(BLOCK, np.float32), np.zeros(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    cell, squares = np.empty(BLOCK, np.int32), np.zeros(BLOCK, np.float64)
    blocks = (n + BLOCK - 1) // BLOCK
    most = power(blocks)
    sums = np.zeros(most, np.float64)
    for i in range(blocks):
        a = i * BLOCK
        m = min(BLOCK, n - a)
        own, found = tau[a : a + m], indices[a : a + m]
        if m < BLOCK:
            squares[:] = 0
        if width > 0:
            begin = np.uint32(first + a)
            for k in range(m):
                shift[k] = _uniform(np.uint32(begin + np.uint32(k))) * width
        for k in range(m):
            size[k] = abs(own[k])
            shifted[k] = size[k] - shift[k]
            cell[k] = 0
        for j in range(count):
            bound = bounds[j]
            for k in range(m):
                cell[k] += shifted[k] >= bound
        for k in range(m):
            there = cell[k] if size[k] > _NONE else 0
            found[k] = np.uint8(there + count if (own[k] < _NONE) & (there > 0) else there)
        for k in range(m):
            value = np.float64(own[k])
            squares[k] = value * value
        for k in range(m >> 2):
            for j in range(4):
                number[j, found[4 * k + j]] += 1
                total[j, found[4 * k + j]] += np.float64(size[4 * k + j])
        for k in range(m & ~3, m):
            number[k & 3, found[k]] += 1
            total[k & 3, found[k]] += np.float64(size[k])
        sums[i] = halve(squares, BLOCK)
    for i in range(1 + 2 * count):
        numbers[i] = number[0, i] + number[1, i] + number[2, i] + number[3, i]
        totals[i] = (total[0, i] + total[2, i]) + (total[1, i] + total[3, i])
    norm: float = halve(sums, most)
    return norm


@compiled
def pack_indices(out: _Array, indices: _Array, order: _Array, bits: int) -> None:
    """Write indices, one a byte, or two, the first in the low half.

    Args:
        out: uint8, shape (⌈n · bits / 8⌉,); set.
        indices: uint8, shape (n,).
        order: uint8, shape (256,): what to write for each.
        bits: 8 or 4.
    """
    n = indices.shape[0]
    if bits == 8:
        for k in range(n):
            out[k] = order[indices[k]]
        return
    for k in range(n >> 1):
        out[k] = order[indices[2 * k]] | (order[indices[2 * k + 1]] << 4)
    if n & 1:
        out[n >> 1] = order[indices[n - 1]]


@compiled
def without_zeros(rest: _Array, indices: _Array) -> None:
    """What is not 0, one behind the other.

    Args:
        rest: uint8, room for one more than there are; set.
        indices: uint8, shape (n,).
    """
    at = 0
    for k in range(indices.shape[0]):
        rest[at] = indices[k]  # not a branch: what is 0 is written too, and the next one over it
        at += indices[k] != 0


@compiled
def nearest(out: _Array, values: _Array, edges: _Array, order: _Array) -> None:
    """Look up how many edges lie below each value.

    Args:
        out: uint8, shape (n,).
        values: float32, shape (n,).
        edges: float32, ascending, shape (K − 1,).
        order: uint8, shape (K,): what to write for each count.
    """
    below = np.empty(BLOCK, np.int32)
    for first in range(0, values.shape[0], BLOCK):
        run, found = values[first : first + BLOCK], out[first : first + BLOCK]
        n = run.shape[0]
        below[:] = 0
        for i in range(edges.shape[0]):
            edge = edges[i]
            for k in range(n):
                below[k] += run[k] > edge
        for k in range(n):
            found[k] = order[below[k]]


@compiled
def count(counts: _Array, values: _Array) -> None:
    """Count bytes, in four tables by turns, so that equal ones need not wait for each other.

    Args:
        counts: int64, shape (4, 256): counted on.
        values: uint8, shape (n,).
    """
    n = values.shape[0]
    for i in range(n >> 2):
        for j in range(4):
            counts[j, values[4 * i + j]] += 1
    for k in range(n & ~3, n):
        counts[0, values[k]] += 1


@compiled
def norms(found: _Array, tau: _Array, weights: _Array, merged: _Array, energy: _Array, lams: _Array) -> None:
    """‖τ‖², and ‖m·v‖² of the TALL-mask at each λ.

    Args:
        found: float64, shape (1 + G,): added to.
        tau: float32, shape (n,).
        weights: θt, float32, shape (n,).
        merged: θ0 + v, float32, shape (n,).
        energy: v², float64, shape (n,).
        lams: λ, float32, shape (G,).
    """
    sums = np.zeros((found.shape[0], BLOCK), np.float64)
    moved, distance = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for first in range(0, tau.shape[0], BLOCK):
        own, there, before, square = (
            tau[first : first + BLOCK],
            weights[first : first + BLOCK],
            merged[first : first + BLOCK],
            energy[first : first + BLOCK],
        )
        n = own.shape[0]
        for k in range(n):
            moved[k] = abs(own[k])
            distance[k] = abs(before[k] - there[k])
            sums[0, k] += np.float64(own[k]) * np.float64(own[k])
        for i in range(lams.shape[0]):
            lam, row = lams[i], sums[1 + i]
            for k in range(n):
                row[k] += square[k] if moved[k] > lam * distance[k] else 0.0
    for i in range(found.shape[0]):
        found[i] += halve(sums[i], BLOCK)
