"""What the archive kept of each task, measured while the masks are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tallstore.kernels.native import encode
from tallstore.kernels.registry import kernel

_DIGITS = 6
"""Significant digits that are recorded: sums of floats may differ in the last ones between machines."""


_NEARLY = 1 / 256
"""A scale that is off by no more is right: of what one chunk keeps, chance moves more."""
_FAR = 1e6
"""A scale that is off by more is not looked for."""
TURNS = 4
"""Scales that are tried."""


def settled(
    measure: Callable[[float], tuple[float, ...]],
    wanted: Callable[[tuple[float, ...]], float],
    scale: float = 1.0,
    turns: int = TURNS,
) -> tuple[float, tuple[float, ...]]:
    """A scale that is right of what a decoder rounds, and what is kept at it.

    A type of few bits rounds a step of less than half a unit to nothing, and one of a little more to a whole one. These
    mostly are the fine-tune's own units, so that what is rounded leans towards it, and a scale that is right of numbers
    that nobody rounds is too large.

    Args:
        measure: a scale, a float32, to what is kept at it: see `sums`.
        wanted: that to the factor by which its scale is off, 1 where it is right.
        scale: to begin with.
        turns: how many others may be tried.
    """
    measured = measure(scale)
    factor, power = wanted(measured), 1
    for _ in range(turns):
        other = float(np.float32(scale * factor**power)) if 0 < factor < _FAR else 0.0
        if abs(factor - 1) <= _NEARLY or not 0 < other < math.inf:
            break
        again = measure(other)
        then = wanted(again)
        if abs(then - 1) < abs(factor - 1):
            scale, measured, factor, power = other, again, then, 1
        else:  # what is kept is no smooth function of the scale
            power *= 2
    return scale, measured


@dataclass
class Quality:
    """Running sums over one task's parameters that have a base."""

    error: float = 0.0
    norm: float = 0.0
    kept: float = 0.0
    dot: float = 0.0
    on: int = 0
    parameters: int = 0

    def add(self, sums_of_row: Sequence[float], n: int) -> None:
        """Add what `sums` measured on n parameters."""
        error, norm, kept, dot, on = sums_of_row
        self.error += error
        self.norm += norm
        self.kept += kept
        self.dot += dot
        self.on += int(on)
        self.parameters += n

    def merge(self, other: Quality) -> None:
        """Add another's sums."""
        self.add((other.error, other.norm, other.kept, other.dot, other.on), other.parameters)

    def add_unmoved(self, n: int, gap: float = 0.0) -> None:
        """Count parameters that are the base's, and by what squared error the base that is stored misses them."""
        self.parameters += n
        self.error += gap
        self.norm += gap

    def measured(self) -> dict[str, Any]:
        """For the manifest. Ratios are None where the task did not move or nothing was kept."""
        return {
            "relative_error": significant(math.sqrt(self.error / self.norm)) if self.norm else None,
            "cosine": significant(self.dot / math.sqrt(self.norm * self.kept)) if self.norm and self.kept else None,
            "density": significant(self.on / self.parameters) if self.parameters else 0.0,
            "masked_parameters": self.parameters,
        }


@dataclass
class Cheaper:
    """How many of one task's tensors are coded without loss, since no loss would make them smaller."""

    tensors: int = 0
    of: int = 0
    """All that moved, except those that are stored whole."""

    def count(self, *, lossless: bool) -> None:
        """Count one that moved."""
        self.tensors += lossless
        self.of += 1

    @property
    def all(self) -> bool:
        """Whether no tensor lost anything for that reason."""
        return 0 < self.tensors == self.of


N_SUMS = 5
"""What `sums` measures: squared error, squared norm of τ, squared norm of what is kept, their product, count of on."""
BLOCK = 1024
"""Products that are added up first, by themselves."""


def sums(tau: Tensor, vector: Tensor, symbols: Tensor, kind: str) -> Tensor:
    """What masks keep of τ at scale 1. Takes (T', N), (N,), (T', N); returns (T', N_SUMS), float64.

    Scales come of these, so they have one order of additions on every machine: products are rounded to the type of τ
    and added up in blocks of 1024, whose sums `add_blocks` adds up.
    """
    n = len(vector)
    # Zeros fill the last block up. Rows are worked on one by one in scratch that stays in the cache.
    products = tau.new_zeros(N_SUMS - 1, -(-n // BLOCK) * BLOCK)
    error, norm, energy, dot = products[:, :n].unbind(0)
    kept = torch.empty_like(vector)
    signed = kind == "signed"
    out = []
    for row, marks in zip(tau, symbols, strict=True):
        sign = ((marks & 1).view(torch.int8) - (marks >> 1).view(torch.int8)) if signed else marks
        torch.mul(vector, sign, out=kept)
        torch.sub(row, kept, out=error).square_()
        torch.mul(row, row, out=norm)
        torch.mul(kept, kept, out=energy)
        torch.mul(row, kept, out=dot)
        blocks = add_blocks(_halve(products.view(N_SUMS - 1, -1, BLOCK)).double())
        out.append(torch.cat([blocks, marks.count_nonzero().double().reshape(1)]))
    return torch.stack(out)


@kernel
def agreement(tau: Tensor, kept: Tensor) -> tuple[float, ...]:
    """The same of one τ and what is kept of it, both float32 or both float64, shape (N,), whatever is behind that."""
    on = (kept != 0).to(torch.uint8)
    return tuple(sums(tau[None], kept, on[None], "binary")[0].tolist())


@agreement.native
def _(tau: Tensor, kept: Tensor) -> tuple[float, ...]:
    # Of numbers it takes several times as long as of what says of each whether it is 0.
    return *encode.agree(tau.numpy(), kept.numpy()), float(np.count_nonzero(kept.numpy() != 0))


def add_blocks(sums_by_block: Tensor) -> Tensor:
    """Add up the sums of a tile's blocks, float64, shape (…, B) to (…): halves upon halves, zeros filling them up."""
    count = sums_by_block.shape[-1]
    filled = sums_by_block.new_zeros(*sums_by_block.shape[:-1], 1 << max(count - 1, 0).bit_length())
    filled[..., :count] = sums_by_block
    return _halve(filled)


def _halve(values: Tensor) -> Tensor:
    """Add the second half to the first until one is left; the length is a power of two. `values` is overwritten."""
    while (half := values.shape[-1] // 2) > 0:
        values = values[..., :half].add_(values[..., half:])
    return values[..., 0]


def scaled(sums_of_row: Sequence[float], scale: float) -> tuple[float, ...]:
    """The same sums at scale s: ‖τ − s·w‖² = ‖τ‖² − 2s·⟨τ,w⟩ + s²·‖w‖²."""
    if scale == 1.0:
        return tuple(sums_of_row)
    _, norm, kept, dot, on = sums_of_row
    error = norm - 2 * scale * dot + scale * scale * kept
    return max(error, 0.0), norm, scale * scale * kept, scale * dot, on


def significant(value: float) -> float | None:
    """A value as it is recorded; None where it is not finite."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
