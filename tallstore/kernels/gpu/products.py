"""Layers of a mixed batch on a GPU: packed differences times activations, tokens grouped by task.

A program computes a tile of tokens, all of one task, times a tile of outputs: codes are looked up as they are needed,
and what they stand for never leaves the registers. Tasks' codes lie wherever they lie: programs are given a table of
addresses. As S-LoRA (arXiv 2311.03285) and BitDelta (arXiv 2402.10193) compute theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tallstore.kernels.device_rows import DeviceProducts, DeviceRows, DeviceShare
from tallstore.kernels.gpu.elements import WIDE, as_elements, narrow, on_device, widen

__all__ = ["TritonProducts", "add_products"]

_TOKENS, _ROWS, _WIDTH = 16, 64, 64


class TritonProducts(DeviceProducts):
    """By kernels where they can. See `kernels.products.Products`."""

    name = "triton"

    def takes(self, packed: DeviceRows, base: Tensor) -> bool:
        """Whether codes stand for what is added, and are rounded to the type that they are added in."""
        known = packed.dtype in {torch.float32, base.dtype}
        return known and packed.vector is None and base.is_contiguous()

    def add(self, y: Tensor, x: Tensor, base: Tensor, bias: Tensor | None, runs: Sequence[DeviceShare]) -> None:
        """`add_products` for each kind of codes; biases and what no kernel takes by torch."""
        kinds: dict[tuple[int, torch.dtype], list[tuple[DeviceRows, int, int]]] = {}
        others: list[DeviceShare] = []
        for packed, own, a, b in runs:
            by_kernel = packed is not None and self.takes(packed, base)
            if packed is not None and by_kernel:
                kinds.setdefault((packed.bits, packed.dtype), []).append((packed, a, b))
            others.append((None if by_kernel else packed, own, a, b))
        for alike in kinds.values():
            add_products(y, x, base, alike)
        super().add(y, x, base, bias, others)


def add_products(y: Tensor, x: Tensor, base: Tensor, runs: Sequence[tuple[DeviceRows, int, int]]) -> None:
    """Add x · (θ̂ − θ0)ᵀ to a layer's outputs, as `kernels.packed_rows.product` has it.

    Args:
        y: shape (tokens, rows), float32, contiguous.
        x: shape (tokens, width), float32, contiguous.
        base: θ0, shape (rows, width), contiguous; of the tasks' type, if that is narrower than float32.
        runs: what a task adds, alike in bits and type, the first token, the one behind the last.
    """
    tiles = [
        (packed.codes.data_ptr(), packed.tables.data_ptr(), packed.chunk.bit_length() - 1, a, min(a + _TOKENS, last))
        for packed, first, last in runs
        for a in range(first, last, _TOKENS)
    ]
    if not tiles:
        return
    rows = runs[0][0]
    assert all((each.bits, each.dtype) == (rows.bits, rows.dtype) for each, _, _ in runs)
    assert all((each.rows, each.width) == tuple(base.shape) for each, _, _ in runs)
    where = torch.tensor(tiles, dtype=torch.int64).to(y.device, non_blocking=True)
    with on_device(y):
        _product_kernel[(len(tiles), triton.cdiv(rows.rows, _ROWS))](
            y,
            x,
            as_elements(base),
            where,
            rows.rows,
            rows.width,
            BITS=rows.bits,
            ROUNDS=rows.dtype != torch.float32,
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
    tiles,
    rows,
    width,
    BITS: tl.constexpr,
    ROUNDS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    W: tl.constexpr,
):
    tile = tiles + tl.program_id(0) * 5
    codes = tl.load(tile).to(tl.pointer_type(tl.uint8))
    tables = tl.load(tile + 1).to(tl.pointer_type(tl.float32))
    shift = tl.load(tile + 2)
    token = tl.load(tile + 3) + tl.arange(0, TOKENS)[:, None]
    there = token < tl.load(tile + 4)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros((TOKENS, ROWS), W)
    for start in range(0, width, WIDTH):
        column = start + tl.arange(0, WIDTH)
        own = tl.load(x + token * width + column[None, :], mask=there & (column[None, :] < width), other=0)
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
    place = y + token * rows + row[None, :]
    inside = there & (row[None, :] < rows)
    tl.store(place, tl.load(place, mask=inside, other=0) + sums, mask=inside)
