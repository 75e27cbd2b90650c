"""Decoding on a GPU: packed symbols, or indices of levels, applied to the base in one pass over memory.

A program does one block of elements, seen as rows of eight: a row's symbols are a byte or two, its 4-bit indices are
four bytes. A block is as long as all its threads need to move 128 bits each, once: then rows and threads meet without
shared memory. Blocks do not cross chunks. Only the last block asks which elements there are: the question would cost
the others their wide accesses.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tallstore.kernels.gpu.elements import WIDE, as_elements, load, narrow, on_device, store, widen
from tallstore.kernels.reference import SYMBOL_BITS, wide

__all__ = ["apply_packed_delta", "apply_packed_mask"]

_WARPS = 8
_BLOCK_BYTES = _WARPS * 32 * 16
_ONES, _FLOATS, _LEVELS = 0, 1, 2
"""How v comes: v ≡ 1, float32, or 4-bit indices into a table for each chunk."""


def apply_packed_mask(
    out: Tensor,
    base: Tensor,
    packed: Tensor,
    kind: str,
    scales: Tensor,
    chunk: int,
    vector: Tensor | None = None,
    vector_tables: Tensor | None = None,
) -> None:
    """Write θ̂ into `out`, as `kernels.reference.apply_mask` does. All tensors are contiguous and on one device.

    Args:
        out: shape (N,), the task's type D. May be `base` itself.
        base: θ0, shape (N,), any maskable type.
        packed: uint8, the symbols of all chunks, packed as by `kernels.reference.pack`, one chunk behind the other.
        kind: of the symbols, `binary` or `signed`.
        scales: s of each chunk, shape (chunks,), float32.
        chunk: elements of a chunk, a power of two from 1024 up.
        vector: v, shape (N,), float32; None where v ≡ 1. With `vector_tables`: uint8, two 4-bit indices a byte.
        vector_tables: shape (chunks, 16), float32: what the indices stand for.
    """
    n = len(out)
    assert len(base) == n
    assert all(t.is_contiguous() for t in (out, base, packed, scales))
    if n == 0:
        return
    block = min(_BLOCK_BYTES // out.element_size(), chunk)
    how = _ONES if vector is None else _FLOATS if vector_tables is None else _LEVELS
    with on_device(out):
        _mask_kernel[(triton.cdiv(n, block),)](
            as_elements(out),
            as_elements(base),
            packed,
            scales,
            scales if vector is None else vector,
            scales if vector_tables is None else vector_tables,
            n,
            chunk // block,
            BITS=SYMBOL_BITS[kind],
            VECTOR=how,
            W=WIDE[wide(out.dtype)],
            BLOCK=block,
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )


def apply_packed_delta(out: Tensor, base: Tensor, packed: Tensor, bits: int, tables: Tensor, chunk: int) -> None:
    """Write round_D(f32(θ0) + d) into `out`, as `kernels.reference.apply_delta` does. See `apply_packed_mask`.

    Args:
        out: shape (N,), the task's type D. May be `base` itself.
        base: θ0, shape (N,), any maskable type.
        packed: uint8, an index for each element: of 8 bits, or of 4 with the earlier one in a byte's low half.
        bits: 4 or 8.
        tables: what the indices stand for, shape (chunks, 2^bits), float32.
        chunk: elements of a chunk, a power of two from 1024 up.
    """
    n = len(out)
    assert len(base) == n
    assert all(t.is_contiguous() for t in (out, base, packed, tables))
    if n == 0:
        return
    block = min(_BLOCK_BYTES // out.element_size(), chunk)
    with on_device(out):
        _delta_kernel[(triton.cdiv(n, block),)](
            as_elements(out),
            as_elements(base),
            packed,
            tables,
            n,
            chunk // block,
            BITS=bits,
            W=WIDE[wide(out.dtype)],
            BLOCK=block,
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )


@triton.jit
def _words(packed, left, row, BITS: tl.constexpr, ALL: tl.constexpr):
    """A row's eight fields of BITS bits as one int32, shape (R, 1): byte by byte, for they need not be aligned."""
    word = load(packed + row * BITS, left, row * 8, ALL).to(tl.int32)
    for i in tl.static_range(1, BITS):
        byte = load(packed + row * BITS + i, left, row * 8 + i * (8 // BITS), ALL)
        word |= byte.to(tl.int32) << (8 * i)
    return word


@triton.jit
def _levels(packed, table, left, row, column, BITS: tl.constexpr, ALL: tl.constexpr):
    """What indices stand for: float32, shape (R, 8)."""
    if BITS == 8:
        index = load(packed + (row * 8 + column), left, row * 8 + column, ALL).to(tl.int32)
    else:
        index = (_words(packed, left, row, BITS, ALL) >> (column * BITS)) & ((1 << BITS) - 1)
    return tl.load(table + index)


@triton.jit
def _mask_block(
    out,
    base,
    packed,
    scale,
    vector,
    table,
    left,
    BITS: tl.constexpr,
    VECTOR: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    ALL: tl.constexpr,
):
    row = tl.arange(0, BLOCK // 8)[:, None]
    column = tl.arange(0, 8)[None, :]
    at = row * 8 + column
    D = out.dtype.element_ty
    start = load(base + at, left, at, ALL)
    symbol = (_words(packed, left, row, BITS, ALL) >> (column * BITS)) & ((1 << BITS) - 1)
    if VECTOR == 0:
        step = scale.to(W)
    elif VECTOR == 1:
        step = load(vector + at, left, at, ALL).to(W) * scale.to(W)
    else:
        step = _levels(vector, table, left, row, column, 4, ALL).to(W) * scale.to(W)
    value = widen(start, W)
    moved = value + step
    if BITS == 2:
        moved = tl.where(symbol == 2, value - step, moved)
    # Elements of the task's own type pass as bits: a NaN stays the NaN it is.
    if start.dtype == D:
        kept = start
    else:
        kept = narrow(value, D)
    result = tl.where(symbol == 0, kept, narrow(moved, D))
    store(out + at, result, left, at, ALL)


@triton.jit
def _mask_kernel(
    out,
    base,
    packed,
    scales,
    vector,
    vector_tables,
    n,
    blocks_a_chunk,
    BITS: tl.constexpr,
    VECTOR: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    chunk = block // blocks_a_chunk
    first = block.to(tl.int64) * BLOCK
    out += first
    base += first
    packed += first // 8 * BITS
    scale = tl.load(scales + chunk)
    table = vector_tables
    if VECTOR == 1:
        vector += first
    if VECTOR == 2:
        vector += first // 2
        table += chunk * 16
    left = n - first
    if left >= BLOCK:
        _mask_block(out, base, packed, scale, vector, table, left, BITS, VECTOR, W, BLOCK, True)
    else:
        _mask_block(out, base, packed, scale, vector, table, left, BITS, VECTOR, W, BLOCK, False)


@triton.jit
def _delta_block(
    out, base, packed, table, left, BITS: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr, ALL: tl.constexpr
):
    row = tl.arange(0, BLOCK // 8)[:, None]
    column = tl.arange(0, 8)[None, :]
    at = row * 8 + column
    step = _levels(packed, table, left, row, column, BITS, ALL)
    value = widen(load(base + at, left, at, ALL), W) + step.to(W)
    result = narrow(value, out.dtype.element_ty)
    store(out + at, result, left, at, ALL)


@triton.jit
def _delta_kernel(
    out, base, packed, tables, n, blocks_a_chunk, BITS: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    first = block.to(tl.int64) * BLOCK
    out += first
    base += first
    packed += first * BITS // 8
    table = tables + (block // blocks_a_chunk).to(tl.int64) * (1 << BITS)
    left = n - first
    if left >= BLOCK:
        _delta_block(out, base, packed, table, left, BITS, W, BLOCK, True)
    else:
        _delta_block(out, base, packed, table, left, BITS, W, BLOCK, False)
