"""The exact optimum of Σt‖τt − mt·v‖² over v and the masks, for every parameter by itself.

For one parameter with task values τ_1 … τ_T and k tasks switched on, the best k are the k largest values or the k
smallest, the best v is their mean S/k, and the error it saves is S²/k. So the optimum is one of 2T candidates. They are
ranked here by |S|/√k, which orders them as S²/k does and neither underflows nor overflows where the square would.

Rules where candidates save the same error, to the last bit: more tasks win; at the same k the largest values win over
the smallest. A result of 0, of zeros or by underflow, is +0.0. Sums run from the outermost value inwards, one rounding
each.

`reference` says it with a general sort. `best_vector` returns the same bits, ten times as fast: a sorting network,
then one pass over k made of additions, minima and maxima alone, because comparisons into a bool tensor and
`torch.where` cost five times as much as those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tallstore.recipes.sorting_network import sort_rows

__all__ = ["best_magnitude", "best_vector", "reference", "reference_magnitude"]

CPU_BLOCK = 1 << 15
"""Columns worked on at a time on a CPU: rows stay in the cache, and torch runs an operation on so few elements in the
calling thread, as it should where each thread has a tile of its own. Elsewhere a tile is one block."""

_SCRATCH = 7
"""Rows that the pass over k needs beside the sorted ones."""


def reference(tau: Tensor) -> Tensor:
    """The best v by a general sort. Takes (T, N), returns (N,)."""
    ordered = torch.sort(tau + 0.0, dim=0).values
    top, bottom, best, vector = tau.new_zeros(4, tau.shape[1]).unbind(0)
    for k in range(1, len(tau) + 1):
        top, bottom = top + ordered[-k], bottom - ordered[k - 1]
        total = torch.where(top >= bottom, top, -bottom)
        score = total.abs() * (1 / math.sqrt(k))
        vector = torch.where(score >= best, total / k, vector)
        best = torch.maximum(best, score)
    return vector + 0.0


def reference_magnitude(magnitude: Tensor) -> Tensor:
    """The best shared magnitude for values that are all ≥ 0: one side alone. Takes (T, N), returns (N,)."""
    ordered = torch.sort(magnitude + 0.0, dim=0).values
    total, best, vector = magnitude.new_zeros(3, magnitude.shape[1]).unbind(0)
    for k in range(1, len(magnitude) + 1):
        total = total + ordered[-k]
        score = total * (1 / math.sqrt(k))
        vector = torch.where(score >= best, total / k, vector)
        best = torch.maximum(best, score)
    return vector + 0.0


def best_vector(tau: Tensor) -> Tensor:
    """The best v for task values of either sign. Takes (T, N), returns (N,): the bits of `reference`."""
    out = tau.new_empty(tau.shape[1])
    for block, rows, scratch in _blocks(tau, out):
        spare = sort_rows(rows, scratch[0])
        _scan_both_sides(rows, block, [spare, *scratch[1:]])
    return out


def best_magnitude(magnitude: Tensor) -> Tensor:
    """The best shared magnitude for values ≥ 0. Takes (T, N), returns (N,): the bits of `reference_magnitude`."""
    out = magnitude.new_empty(magnitude.shape[1])
    for block, rows, scratch in _blocks(magnitude, out):
        spare = sort_rows(rows, scratch[0])
        _scan_one_side(rows, block, [spare, *scratch[1:]])
    return out


def _blocks(tau: Tensor, out: Tensor) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
    """For each run of columns: its part of `out`, a copy of its T rows, and scratch rows. The memory is reused."""
    n_tasks, n = tau.shape
    width = min(n, CPU_BLOCK) if tau.device.type == "cpu" else n
    memory = tau.new_empty((n_tasks + _SCRATCH, width))
    for start in range(0, n, max(width, 1)):
        block = out[start : start + width]
        rows = list(memory[:, : len(block)].unbind(0))
        for row, source in zip(rows, tau[:, start : start + width], strict=False):
            # Adding +0.0 turns −0.0 into +0.0 and changes nothing else.
            torch.add(source, 0.0, out=row)
        yield block, rows[:n_tasks], rows[n_tasks:]


def _decisive(dtype: torch.dtype) -> float:
    """A power of two by which the least possible gap between two scores outgrows every candidate v.

    Scores that differ, differ by at least ε/2 of the larger; candidates are at most as large as the best score.
    """
    return 8.0 / torch.finfo(dtype).eps


def _scan_both_sides(rows: list[Tensor], vector: Tensor, scratch: list[Tensor]) -> None:
    """Write the best v into `vector`, given rows in ascending order.

    `vector` takes the value of the k-th candidate where its score is the best so far: there the gap to the best is 0,
    so that the clamp to [candidate − gap·C, candidate + gap·C] leaves the candidate alone; elsewhere the gap times C
    is so large that the clamp changes nothing.
    """
    top, bottom, best, candidate, score, low, high = scratch
    top.zero_()
    bottom.zero_()
    best.zero_()
    vector.zero_()
    decisive = _decisive(vector.dtype)
    for k in range(1, len(rows) + 1):
        top.add_(rows[-k])
        bottom.sub_(rows[k - 1])
        torch.maximum(top, bottom, out=candidate)
        torch.mul(candidate, 1 / math.sqrt(k), out=score)
        torch.maximum(best, score, out=best)
        gap = torch.sub(best, score, out=score)
        side = torch.sub(top, bottom, out=low)
        torch.copysign(candidate, side, out=candidate)
        candidate.div_(k)
        torch.sub(candidate, gap, alpha=decisive, out=low)
        torch.add(candidate, gap, alpha=decisive, out=high)
        torch.clamp(vector, low, high, out=vector)
    # −0.0 becomes +0.0: which zero a clamp between zeros gives is up to the device.
    vector.add_(0.0)


def _scan_one_side(rows: list[Tensor], vector: Tensor, scratch: list[Tensor]) -> None:
    """The same for values that are all ≥ 0, where only the largest can be the best."""
    total, best, candidate, score, low, high, _ = scratch
    total.zero_()
    best.zero_()
    vector.zero_()
    decisive = _decisive(vector.dtype)
    for k in range(1, len(rows) + 1):
        total.add_(rows[-k])
        torch.mul(total, 1 / math.sqrt(k), out=score)
        torch.maximum(best, score, out=best)
        gap = torch.sub(best, score, out=score)
        torch.div(total, k, out=candidate)
        torch.sub(candidate, gap, alpha=decisive, out=low)
        torch.add(candidate, gap, alpha=decisive, out=high)
        torch.clamp(vector, low, high, out=vector)
    # −0.0 becomes +0.0: which zero a clamp between zeros gives is up to the device.
    vector.add_(0.0)
