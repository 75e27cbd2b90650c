"""Sorting networks: the same compare-exchanges for every input, so whole rows of a tensor are sorted at once.

Batcher's odd-even merge sort (1968), built for any width and not for powers of two alone: 19 exchanges for 8 rows, 103
for 20. A general sort along a short axis costs ten times as much, for it moves indices and sorts one column at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["exchanges", "sort_rows"]


def _merge_exchanges(width: int) -> Iterator[tuple[int, int]]:
    run = 1
    while run < width:
        step = run
        while step >= 1:
            for start in range(step % run, width - step, 2 * step):
                for low in range(start, start + min(step, width - start - step)):
                    # Both ends must lie in the same pair of runs, else the pair belongs to another merge.
                    if low // (2 * run) == (low + step) // (2 * run):
                        yield low, low + step
            step //= 2
        run *= 2


@lru_cache
def exchanges(width: int) -> tuple[tuple[int, int], ...]:
    """The compare-exchanges (low, high), in order, that sort `width` values in ascending order."""
    return tuple(_merge_exchanges(width))


def sort_rows(rows: list[Tensor], spare: Tensor) -> Tensor:
    """Sort `rows` (each of shape (N,)) element by element, ascending, and return the row that is free afterwards.

    The list and the memory of its rows are overwritten. `spare` is one more row of the same shape. The rows must hold
    no NaN and no −0.0: which zero `torch.minimum` returns for a pair of them is up to the device.
    """
    for low, high in exchanges(len(rows)):
        torch.minimum(rows[low], rows[high], out=spare)
        torch.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return spare
