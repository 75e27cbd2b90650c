"""Layers of a mixed batch on a GPU: packed differences times activations, tokens grouped by task.

The tasks' codes for one layer lie in one block of memory, one task behind the other. A program computes a tile of
tokens, all of one task, times a tile of outputs: codes are looked up as they are needed, and what they stand for never
leaves the registers. As S-LoRA (arXiv 2311.03285) and BitDelta (arXiv 2402.10193) compute theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from tallstore.kernels.gpu.elements import WIDE, as_elements, narrow, on_device, widen
from tallstore.kernels.packed_rows import PackedRows
from tallstore.kernels.reference import Bytes

__all__ = ["StackedCodes", "add_products"]

_TOKENS, _ROWS, _WIDTH = 16, 64, 64


@dataclass(frozen=True, eq=False)
class StackedCodes:
    """What several tasks add to one layer, on a device."""

    codes: Tensor
    """uint8, shape (tasks, bytes): codes of `bits` bits, the first in the lowest ones."""
    tables: Tensor
    """What they stand for: float32, shape (tasks, chunks, 2^bits)."""
    bits: int
    chunk: int
    """Elements a chunk: a power of two."""
    rows: int
    width: int
    dtype: torch.dtype
    """The tasks' type D: float32, or a narrower one, which is the base's too: moved elements are rounded to it."""

    @classmethod
    def of(cls, tasks: Sequence[PackedRows], device: torch.device | str) -> StackedCodes:
        """Of tasks' rows in the form `codes`, alike in shape, chunks and type, of numbers and without a vector."""
        first = tasks[0]
        bits = max(each.bits for each in tasks)
        assert all(each.form == "codes" and not each.steps and each.vector is None for each in tasks)
        assert all((each.rows, each.width, each.chunk) == (first.rows, first.width, first.chunk) for each in tasks)
        codes = np.stack([_wider(each, bits) for each in tasks])
        tables = np.zeros((len(tasks), len(first.tables), 1 << bits), np.float32)
        for table, each in zip(tables, tasks, strict=True):
            table[:, : each.tables.shape[1]] = each.tables
        return cls(
            torch.from_numpy(codes).to(device),
            torch.from_numpy(tables).to(device),
            bits,
            first.chunk,
            first.rows,
            first.width,
            first.dtype,
        )


def add_products(
    y: Tensor, x: Tensor, base: Tensor, stacked: StackedCodes, runs: Sequence[tuple[int, int, int]]
) -> None:
    """Add x · (θ̂ − θ0)ᵀ to a layer's outputs, as `kernels.packed_rows.product` has it.

    Args:
        y: shape (tokens, rows), float32, contiguous.
        x: shape (tokens, width), float32, contiguous.
        base: θ0, shape (rows, width), contiguous; of the tasks' type, if that is narrower than float32.
        stacked: what tasks add.
        runs: (task's number in the stack, first token, the one behind the last).
    """
    tiles = [(task, a, min(a + _TOKENS, last)) for task, first, last in runs for a in range(first, last, _TOKENS)]
    if not tiles or not stacked.rows:
        return
    assert stacked.dtype in {torch.float32, base.dtype}
    where = torch.tensor(tiles, dtype=torch.int32, device=y.device)
    elements = as_elements(base)
    with on_device(y):
        _product_kernel[(len(tiles), triton.cdiv(stacked.rows, _ROWS))](
            y,
            x,
            elements,
            stacked.codes,
            stacked.tables,
            where,
            stacked.rows,
            stacked.width,
            stacked.codes.shape[1],
            stacked.tables.shape[1],
            stacked.chunk.bit_length() - 1,
            BITS=stacked.bits,
            ROUNDS=stacked.dtype != torch.float32,
            TOKENS=_TOKENS,
            ROWS=_ROWS,
            WIDTH=_WIDTH,
            W=WIDE[torch.float32],
            enable_fp_fusion=False,
        )


@triton.jit
def _product_kernel(
    y,
    x,
    base,
    codes,
    tables,
    tiles,
    rows,
    width,
    task_bytes,
    chunks,
    shift,
    BITS: tl.constexpr,
    ROUNDS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    W: tl.constexpr,
):
    tile = tiles + tl.program_id(0) * 3
    task = tl.load(tile).to(tl.int64)
    token = tl.load(tile + 1) + tl.arange(0, TOKENS)[:, None]
    there = token < tl.load(tile + 2)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    codes += task * task_bytes
    tables += task * chunks * (1 << BITS)
    sums = tl.zeros((TOKENS, ROWS), W)
    for start in range(0, width, WIDTH):
        column = start + tl.arange(0, WIDTH)
        own = tl.load(x + token.to(tl.int64) * width + column[None, :], mask=there & (column[None, :] < width), other=0)
        at = row[None, :].to(tl.int64) * width + column[:, None]
        inside = (row[None, :] < rows) & (column[:, None] < width)
        byte = tl.load(codes + at * BITS // 8, mask=inside, other=0).to(tl.int32)
        code = (byte >> (at * BITS % 8).to(tl.int32)) & ((1 << BITS) - 1)
        value = tl.load(tables + (at >> shift) * (1 << BITS) + code, mask=inside, other=0)
        if ROUNDS:
            before = tl.load(base + at, mask=inside, other=0)
            start_value = widen(before, W)
            moved = widen(narrow(start_value + value, before.dtype), W) - start_value
            value = tl.where(value == 0, value, moved)
        sums += tl.dot(own, value, input_precision="ieee")
    place = y + token.to(tl.int64) * rows + row[None, :]
    inside = there & (row[None, :] < rows)
    tl.store(place, tl.load(place, mask=inside, other=0) + sums, mask=inside)


def _wider(packed: PackedRows, bits: int) -> Bytes:
    """Codes in fields of so many bits."""
    own = packed.places[: -(-packed.numel * packed.bits // 8)]
    if packed.bits == bits:
        return own
    each = 8 // packed.bits
    fields = (own[:, None] >> (np.arange(each, dtype=np.uint8) * packed.bits)) & ((1 << packed.bits) - 1)
    flat = fields.reshape(-1)[: packed.numel]
    padded = np.zeros(-(-len(flat) // (8 // bits)) * (8 // bits), np.uint8)
    padded[: len(flat)] = flat
    shifted = padded.reshape(-1, 8 // bits) << (np.arange(8 // bits, dtype=np.uint8) * bits)
    joined: Bytes = np.bitwise_or.reduce(shifted, axis=1)
    return joined
