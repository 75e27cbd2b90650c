"""Encoding kernels that numba compiles, where it is installed (the extra `fast`).

What they find is the reference's, bit for bit: products and sums are rounded by themselves (no fastmath).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels.jit import compiled

__all__ = ["look", "marks_above", "packed_to_gaps"]

_Array = npt.NDArray[Any]
RUN = 1 << 12


# Every loop begins at 0, over slices: indices that are plainly not negative are what the compiler makes vectors of.


@compiled
def packed_to_gaps(gaps: _Array, signs: _Array, packed: _Array, bits: int) -> tuple[int, int]:
    """Gaps (255: go on) and packed signs of packed symbols: the inverse of `gaps_to_packed`.

    Args:
        gaps: uint8, room for marks + n / 255 + 1.
        signs: uint8, all zero, room for a bit a mark.
        packed: uint8, n symbols.
        bits: of a symbol.

    Returns the bytes of gaps and the marks.
    """
    each = np.int64(8 // bits)
    ones = np.uint8((1 << bits) - 1)
    places, negative = np.empty(each * RUN + 8, np.int32), np.empty(each * RUN + 8, np.uint8)
    at, marks, last = 0, 0, -1
    for first in range(0, packed.shape[0], RUN):
        run = packed[first : first + RUN]
        found = 0
        for i in range(run.shape[0]):
            byte = run[i]
            # Written always and kept if it is a mark: quicker than a branch that no processor foresees.
            for j in range(each):
                symbol = (byte >> np.uint8(bits * j)) & ones
                places[found] = each * i + j
                negative[found] = symbol >> np.uint8(1)
                found += symbol != 0
        for i in range(found):
            place = each * first + places[i]
            gap = place - last - 1
            last = place
            while gap >= 255:
                gaps[at] = 255
                at += 1
                gap -= 255
            gaps[at] = gap
            at += 1
            signs[marks >> 3] |= np.uint8(negative[i] << np.uint8(marks & 7))
            marks += 1
    return at, marks


@compiled
def look(weights: _Array, base: _Array) -> tuple[bool, Any]:
    """Whether two arrays of one float type are equal in every bit, and the largest magnitude of the first.

    Args:
        weights: shape (n,).
        base: shape (n,), as integers of the same size: the bits.

    The magnitude is infinite where there is an infinity or a NaN.
    """
    words = weights.view(base.dtype)
    differ = 0
    for i in range(weights.shape[0]):
        differ |= words[i] ^ base[i]
    largest = weights.dtype.type(0)
    odd = 0
    for i in range(weights.shape[0]):
        size = abs(weights[i])
        largest = max(largest, size)
        odd += weights[i] != weights[i]
    return differ == 0, weights.dtype.type(np.inf) if odd else largest


BLOCK = 1 << 10
"""Products that are added up first, by themselves: see `encoder.quality.sums`."""


@compiled
def _halve(values: _Array, n: int) -> Any:
    """Add the second half to the first until one is left; n is a power of two."""
    half = n >> 1
    while half:
        for k in range(half):
            values[k] += values[k + half]
        half >>= 1
    return values[0]


@compiled
def _numbers(out: _Array, first: int) -> None:
    """`recipes.dither.uniform`'s numbers, from the one on whose unmixed place is `first`."""
    for k in range(out.shape[0]):
        x = np.uint32(first + k)
        x = np.uint32(x ^ (x >> np.uint32(16)))
        x = np.uint32(x * np.uint32(0x7FEB352D))
        x = np.uint32(x ^ (x >> np.uint32(15)))
        x = np.uint32(x * np.uint32(0x846CA68B))
        x = np.uint32(x ^ (x >> np.uint32(16)))
        out[k] = np.float32(np.int32(x >> np.uint32(8))) * np.float32(2.0**-24)


@compiled
def _above(symbols: _Array, norm: _Array, dot: _Array, weights: _Array, base: _Array, limits: _Array, zero: Any) -> int:
    count = 0
    for k in range(weights.shape[0]):
        tau = weights[k] - base[k]
        size = abs(tau)
        on = (size >= limits[k]) & (size > zero)
        symbols[k] = np.uint8(on) << np.uint8(tau < zero)
        norm[k] = tau * tau
        dot[k] = size if on else zero
        count += on
    return count


@compiled
def marks_above(packed: _Array, sums: _Array, weights: _Array, base: _Array, low: Any, width: Any, first: int) -> None:
    """Signed marks where |τ| ≥ low + u · width, and what `encoder.quality.sums` measures of them over v = 1.

    Args:
        packed: uint8, room for n symbols of two bits, all zero.
        sums: float64, shape (5,): what the tile adds up to is added: unset, ‖τ‖², ‖w‖², ⟨τ, w⟩, marks.
        weights: θt, float32, shape (n,), at most a tile.
        base: θ0 as the task's type has it, float32, shape (n,).
        low: float32.
        width: float32. Above 0, u is the number of each parameter's place.
        first: the unmixed place of the first parameter, modulo 2^32.
    """
    n = weights.shape[0]
    symbols = np.zeros(BLOCK, np.uint8)
    words = symbols.view(np.uint32)
    norm, dot = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
    limits = np.full(BLOCK, low, np.float32)
    blocks = (n + BLOCK - 1) // BLOCK
    size = 1
    while size < blocks:
        size *= 2
    norms, dots = np.zeros(size, np.float64), np.zeros(size, np.float64)
    marks = 0
    for i in range(blocks):
        a = i * BLOCK
        m = min(BLOCK, n - a)
        if m < BLOCK:
            symbols[:] = 0
            norm[:] = 0
            dot[:] = 0
        if width > 0:
            _numbers(limits[:m], first + a)
            for k in range(m):
                limits[k] = limits[k] * width
            for k in range(m):
                limits[k] = limits[k] + low
        here = _above(
            symbols[:m], norm[:m], dot[:m], weights[a : a + m], base[a : a + m], limits[:m], weights.dtype.type(0)
        )
        marks += here
        for k in range((m + 3) >> 2):
            w = words[k]
            packed[(a >> 2) + k] = np.uint8((w | (w >> 6) | (w >> 12) | (w >> 18)) & 0xFF)
        norms[i] = _halve(norm, BLOCK)
        dots[i] = _halve(dot, BLOCK)
    sums[1] += _halve(norms, size)
    sums[2] += marks
    sums[3] += _halve(dots, size)
    sums[4] += marks
