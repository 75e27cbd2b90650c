"""Sums over tasks in one order of additions, whatever the tile and the device.

`torch.sum(dim=0)` rounds differently with the width of the tensor (the last `width % 32` columns go another way) and
with the device. So rows are added here one by one, in the order that torch's CPU kernel uses for all the other
columns, hence in the reference code's: up to 16 rows in sequence, and each full run of 16 into the next level, which
works the same way. A recipe then gives the same bits for every tile size.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sum_rows"]

RUN = 16
"""Rows that are added before the next level takes them."""


def sum_rows(rows: Tensor) -> Tensor:
    """The sum over the first axis, (T, N) to (N,): the bits of `rows.sum(0)` on a CPU where N is a multiple of 32."""
    levels = [rows.new_zeros(rows.shape[1])]
    for i, row in enumerate(rows, start=1):
        levels[0] += row
        _carry(levels, i)
    for level in levels[1:]:
        levels[0] += level
    return levels[0]


def _carry(levels: list[Tensor], count: int) -> None:
    """Move each level that has taken a full run of 16 into the next one."""
    level = 0
    while count % RUN == 0 and level < 3:
        if level + 1 == len(levels):
            levels.append(torch.zeros_like(levels[0]))
        levels[level + 1] += levels[level]
        levels[level].zero_()
        count //= RUN
        level += 1
