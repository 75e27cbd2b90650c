"""Encoding on a GPU: the task vectors of T tensors become v and T packed masks in one pass over memory.

A program does one block of elements, seen as rows of eight so that a row's symbols are whole bytes. A thread holds its
elements of all T tasks in registers: there is nothing of size T × N but the tensors themselves. Loops over tasks are
unrolled, and a kernel is compiled for each T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tallstore.kernels.gpu.elements import WIDE, as_elements, divide, load, narrow, on_device, store, task_vector, widen
from tallstore.kernels.reference import packed_size, wide
from tallstore.kernels.rules import MOST_TASKS, Rule

__all__ = ["MOST_TASKS", "encode", "packed_stride"]

WARPS = 4
_REGISTERS = 80
"""What the values of all tasks may take of a thread's 255."""


def packed_stride(kind: str, n: int) -> int:
    """Bytes from one task's packed symbols to the next one's: so many that wide accesses stay aligned."""
    return -(-packed_size(kind, n) // 16) * 16


def encode(
    base: Tensor,
    rows: Sequence[Tensor],
    rule: Rule,
    *,
    packed: Tensor | None = None,
    vector: Tensor | None = None,
    given: bool = False,
    start: int = 0,
) -> None:
    """What a recipe does to one tile. All tensors are contiguous and on one device.

    Args:
        base: θ0, shape (N,), any maskable type.
        rows: θt of each of at most MOST_TASKS tasks, shape (N,), any maskable types.
        rule: what the recipe does.
        packed: uint8, shape (T', packed_stride(kind, N)): where the masks go. None: they are not made.
        vector: shape (N,). If `given`, v as it is stored, float32. Else v goes there, rounded to its type (float32 or
            bfloat16), and the masks are made against that. None: v ≡ 1.
        given: whether v is there already.
        start: where in its tensor the tile begins.
    """
    n, n_tasks = len(base), len(rows)
    assert 0 < n_tasks <= MOST_TASKS
    assert all(len(row) == n and row.is_contiguous() for row in (base, *rows))
    if n == 0:
        return
    kind = torch.float64 if any(wide(row.dtype) == torch.float64 for row in rows) else torch.float32
    made = "ones" if vector is None else "given" if given else rule.vector
    numbers = _numbers(rule, n_tasks, kind, base.device)
    if packed is None:
        masks, stride = as_elements(base), 0
    else:
        masks = packed.view(torch.int16) if rule.signed else packed
        stride = masks.stride(0)
    block = WARPS * 32 * _elements_a_thread(n_tasks, max(row.element_size() for row in rows), made)
    with on_device(base):
        _encode_kernel[(triton.cdiv(n, block),)](
            as_elements(base),
            tuple(as_elements(row) for row in rows),
            as_elements(base if vector is None else vector),
            masks,
            numbers.limits,
            numbers.widths,
            numbers.seeds,
            numbers.trims,
            n,
            stride,
            start,
            T=n_tasks,
            VECTOR=made,
            MASK="none" if packed is None else rule.mask,
            SIGNED=rule.signed,
            HASHED=any(rule.widths),
            TRIMMED=bool(rule.trims),
            MAJORITY=rule.majority > 0,
            EXCHANGES=tuple(end for pair in rule.exchanges for end in pair),
            FACTORS=tuple(1 / math.sqrt(k) for k in range(1, n_tasks + 1)),
            W=WIDE[kind],
            BLOCK=block,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )


@dataclass(frozen=True)
class _Numbers:
    """A rule's numbers, one a row, as tensors on the device."""

    limits: Tensor
    widths: Tensor
    seeds: Tensor
    trims: Tensor


def _numbers(rule: Rule, n_tasks: int, kind: torch.dtype, device: torch.device) -> _Numbers:
    none = (0.0,) * n_tasks
    return _Numbers(
        torch.tensor(rule.limits or none, dtype=kind).to(device, non_blocking=True),
        torch.tensor(rule.widths or none, dtype=torch.float32).to(device, non_blocking=True),
        torch.tensor(rule.seeds or none, dtype=torch.int64).to(device, non_blocking=True),
        torch.tensor(rule.trims or none, dtype=torch.float32).to(device, non_blocking=True),
    )


def _elements_a_thread(n_tasks: int, item: int, vector: str) -> int:
    """128 bits of each task's elements, fewer where the values of all tasks would not fit the registers."""
    most = 16 // item
    # The sort has a copy of the values beside the elements as loaded.
    copies = 2 if vector in {"best", "best magnitude"} else 1
    while most > 1 and copies * most * n_tasks * max(item, 4) // 4 > _REGISTERS:
        most //= 2
    return most


@triton.jit
def _exchange(rows, LOW: tl.constexpr, HIGH: tl.constexpr):
    low = tl.minimum(rows[LOW], rows[HIGH])
    high = tl.maximum(rows[LOW], rows[HIGH])
    return rows[:LOW] + (low,) + rows[LOW + 1 : HIGH] + (high,) + rows[HIGH + 1 :]


@triton.jit
def _sum(rows, T: tl.constexpr):
    """As `recipes.ordered_sum.sum_rows`: runs of 16 are added up one by one, then the runs."""
    total = tl.zeros_like(rows[0])
    run = tl.zeros_like(rows[0])
    for t in tl.static_range(T):
        run += rows[t]
        if t % 16 == 15:
            total += run
            run = tl.zeros_like(rows[0])
    if T >= 16:
        return run + total
    else:
        return run


@triton.jit
def _best(rows, BOTH: tl.constexpr, FACTORS: tl.constexpr, EXCHANGES: tl.constexpr, T: tl.constexpr, W: tl.constexpr):
    """As `recipes.closed_form.reference`, with one division: the best candidate's. BOTH: from either side."""
    zero = tl.zeros_like(rows[0])
    ordered = ()
    for t in tl.static_range(T):
        # −0.0 becomes +0.0: which zero is the smaller one is up to the device.
        ordered = ordered + (rows[t] + 0.0,)
    for i in tl.static_range(len(EXCHANGES) // 2):
        ordered = _exchange(ordered, EXCHANGES[2 * i], EXCHANGES[2 * i + 1])
    top, bottom, best, chosen, count = zero, zero, zero, zero, zero + 1.0
    for k in tl.static_range(1, T + 1):
        top += ordered[T - k]
        if BOTH:
            bottom -= ordered[k - 1]
            total = tl.where(top >= bottom, top, -bottom)
        else:
            total = top
        score = tl.abs(total) * FACTORS[k - 1]
        wins = score >= best
        chosen = tl.where(wins, total, chosen)
        count = tl.where(wins, zero + k, count)
        best = tl.maximum(best, score)
    return divide(chosen, count, W) + 0.0


@triton.jit
def _elect(rows, T: tl.constexpr):
    """As `recipes.emr.elect`."""
    total = _sum(rows, T)
    high = rows[0]
    low = rows[0]
    for t in tl.static_range(1, T):
        high = tl.maximum(high, rows[t])
        low = tl.minimum(low, rows[t])
    return tl.where(total > 0, high, tl.where(total < 0, low, tl.zeros_like(total)))


@triton.jit
def _disjoint(rows, MEAN: tl.constexpr, MAJORITY: tl.constexpr, T: tl.constexpr, W: tl.constexpr):
    """As `recipes.election.disjoint_merge`."""
    total = _sum(rows, T)
    zero = tl.zeros_like(total)
    if MAJORITY:
        positive = total >= 0
    else:
        positive = total > 0
    agreeing = ()
    count = zero
    for t in tl.static_range(T):
        # No sum can be −0.0, so which zero stands for a value left out makes no difference.
        agrees = tl.where(positive, rows[t] > 0, rows[t] < 0)
        agreeing = agreeing + (tl.where(agrees, rows[t], zero),)
        count += tl.where(agrees, zero + 1.0, zero)
    merged = _sum(agreeing, T)
    if MEAN:
        return divide(merged, tl.maximum(count, zero + 1.0), W)
    else:
        return merged


@triton.jit
def _uniform(place, seed):
    """As `recipes.dither.uniform`: float32 numbers in [0, 1) for places in a tensor, int64."""
    high = (place >> 32).to(tl.uint32)
    x = place.to(tl.uint32) + (seed.to(tl.uint32) ^ (high * 0x85EBCA6B)) * 0x9E3779B1
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _vector(
    rows,
    trims,
    VECTOR: tl.constexpr,
    TRIMMED: tl.constexpr,
    MAJORITY: tl.constexpr,
    EXCHANGES: tl.constexpr,
    FACTORS: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    if TRIMMED:
        kept = ()
        for t in tl.static_range(T):
            large = tl.abs(rows[t]).to(tl.float32) >= tl.load(trims + t)
            kept = kept + (tl.where(large, rows[t], tl.zeros_like(rows[t])),)
        rows = kept
    if VECTOR == "sum":
        return _sum(rows, T)
    elif VECTOR == "mean":
        return divide(_sum(rows, T), tl.zeros_like(rows[0]) + T, W)
    elif VECTOR == "elect":
        return _elect(rows, T)
    elif VECTOR == "best":
        return _best(rows, True, FACTORS, EXCHANGES, T, W)
    elif VECTOR == "best magnitude":
        lengths = ()
        for t in tl.static_range(T):
            lengths = lengths + (tl.abs(rows[t]),)
        return _best(lengths, False, FACTORS, EXCHANGES, T, W)
    else:
        return _disjoint(rows, VECTOR == "disjoint mean", MAJORITY, T, W)


@triton.jit
def _is_on(
    tau,
    weights,
    v,
    merged,
    place,
    row,
    limits,
    widths,
    seeds,
    MASK: tl.constexpr,
    SIGNED: tl.constexpr,
    HASHED: tl.constexpr,
    W: tl.constexpr,
):
    """Where a row's mask is on."""
    length = tl.abs(tau)
    if MASK == "tall":
        return length > tl.abs(merged - widen(weights, W)) * tl.load(limits + row)
    elif MASK == "agrees":
        return ((tau > 0) & (v > 0)) | ((tau < 0) & (v < 0))
    elif MASK == "nearer":
        return length > tl.abs(v - (length if SIGNED else tau))
    else:
        limit = tl.load(limits + row)
        if HASHED:
            raised = _uniform(place, tl.load(seeds + row)) * tl.load(widths + row)
            limit = (raised + limit.to(tl.float32)).to(W)
        return (length >= limit) & (tau != 0)


@triton.jit
def _encode_block(
    base,
    sources,
    vector,
    masks,
    limits,
    widths,
    seeds,
    trims,
    first,
    left,
    stride,
    place,
    T: tl.constexpr,
    VECTOR: tl.constexpr,
    MASK: tl.constexpr,
    SIGNED: tl.constexpr,
    HASHED: tl.constexpr,
    TRIMMED: tl.constexpr,
    MAJORITY: tl.constexpr,
    EXCHANGES: tl.constexpr,
    FACTORS: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    ALL: tl.constexpr,
):
    line = tl.arange(0, BLOCK // 8)
    column = tl.arange(0, 8)[None, :]
    at = line[:, None] * 8 + column
    start = load(base + first + at, left, at, ALL)
    weights = ()
    rows = ()
    for t in tl.static_range(T):
        weights = weights + (load(sources[t] + first + at, left, at, ALL),)
    for t in tl.static_range(T):
        rows = rows + (task_vector(weights[t], start, W),)
    if VECTOR == "ones":
        v = tl.full(at.shape, 1.0, W)
    elif VECTOR == "given":
        v = widen(load(vector + first + at, left, at, ALL), W)
    else:
        v = _vector(rows, trims, VECTOR, TRIMMED, MAJORITY, EXCHANGES, FACTORS, T, W)
        stored = narrow(v.to(tl.float32), vector.dtype.element_ty)
        store(vector + first + at, stored, left, at, ALL)
        v = widen(stored, W)
    if MASK != "none":
        merged = widen(start, W) + v
        # A task's symbols of a row are a field of 8 or 16 bits. Several tasks' fields make a word, so that threads
        # that share a row put their parts together once for all of them.
        FIELD: tl.constexpr = 16 if SIGNED else 8
        TOGETHER: tl.constexpr = 32 // FIELD
        unit = tl.full(at.shape, 1, tl.int32) << (column * (FIELD // 8))
        for t in tl.static_range(0, T, TOGETHER):
            word = tl.zeros_like(at)
            for i in tl.static_range(TOGETHER):
                if t + i < T:
                    tau = rows[t + i]
                    on = _is_on(
                        tau,
                        weights[t + i],
                        v,
                        merged,
                        place + at,
                        t + i,
                        limits,
                        widths,
                        seeds,
                        MASK,
                        SIGNED,
                        HASHED,
                        W,
                    )
                    if not ALL:
                        on = on & (at < left)
                    symbol = unit << (i * FIELD)
                    if SIGNED:
                        symbol = tl.where(tau < 0, symbol << 1, symbol)
                    word |= tl.where(on, symbol, 0)
            field = tl.sum(word, axis=1)
            for i in tl.static_range(TOGETHER):
                if t + i < T:
                    byte = (field >> (i * FIELD)).to(masks.dtype.element_ty)
                    store(masks + (t + i) * stride + first // 8 + line, byte, left, line * 8, ALL)


@triton.jit
def _encode_kernel(
    base,
    sources,
    vector,
    masks,
    limits,
    widths,
    seeds,
    trims,
    n,
    stride,
    start,
    T: tl.constexpr,
    VECTOR: tl.constexpr,
    MASK: tl.constexpr,
    SIGNED: tl.constexpr,
    HASHED: tl.constexpr,
    TRIMMED: tl.constexpr,
    MAJORITY: tl.constexpr,
    EXCHANGES: tl.constexpr,
    FACTORS: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    left = n - first
    place = start + first
    if left >= BLOCK:
        _encode_block(
            base, sources, vector, masks, limits, widths, seeds, trims, first, left, stride, place,
            T, VECTOR, MASK, SIGNED, HASHED, TRIMMED, MAJORITY, EXCHANGES, FACTORS, W, BLOCK, True,
        )  # fmt: skip
    else:
        _encode_block(
            base, sources, vector, masks, limits, widths, seeds, trims, first, left, stride, place,
            T, VECTOR, MASK, SIGNED, HASHED, TRIMMED, MAJORITY, EXCHANGES, FACTORS, W, BLOCK, False,
        )  # fmt: skip
