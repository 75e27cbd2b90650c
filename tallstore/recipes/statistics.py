"""The exact k-th smallest magnitude of every task vector, from tiles, in bounded memory.

Float32 magnitudes are ordered as their bit patterns are. A first pass counts the upper 16 bits of each, which tells
the bucket that holds the k-th; a second pass counts the lower 16 bits within that bucket. Memory: 2^15 + 2^16 counters
a task. Float64 task vectors are ranked after rounding to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.recipes.base import Statistic

__all__ = ["BitHistogram", "HasTaskVectors", "Trim"]

_HIGH = 1 << 15
_LOW = 1 << 16


class HasTaskVectors(Protocol):
    """What the statistics here need of a tile, so that decoded task vectors can be trimmed like true ones."""

    @property
    def tasks(self) -> tuple[int, ...]:
        """Which tasks the rows stand for."""

    @property
    def tau(self) -> Tensor:
        """τ, shape (T', N)."""


def magnitude_bits(tau: Tensor) -> Tensor:
    """|τ| as int32 bit patterns, which are ordered as the magnitudes are."""
    return tau.float().view(torch.int32) & 0x7FFFFFFF


class BitHistogram(Statistic):
    """One pass of the radix selection: counts of 15 upper or 16 lower bits, per task.

    `above` is None in the first pass, and the finished first pass in the second.
    """

    def __init__(self, n_tasks: int, kept_share: float, above: BitHistogram | None = None) -> None:
        self._kept_share = kept_share
        self._above = above
        self._counts = torch.zeros(n_tasks, _HIGH if above is None else _LOW, dtype=torch.int64)
        self.bucket = torch.zeros(n_tasks, dtype=torch.int64)
        """Per task: the bits of the k-th smallest magnitude that this pass is about."""
        self.rank = torch.zeros(n_tasks, dtype=torch.int64)
        """Per task: the rank within the bucket, from 1; 0 for a task without parameters."""

    def update(self, tile: HasTaskVectors, /) -> None:
        """Count a tile."""
        if self._counts.device != tile.tau.device:
            self._counts = self._counts.to(tile.tau.device)
        for task, bits in zip(tile.tasks, magnitude_bits(tile.tau), strict=True):
            self._counts[task] += torch.bincount(self._digits(task, bits), minlength=self._counts.shape[1])

    def _digits(self, task: int, bits: Tensor) -> Tensor:
        if self._above is None:
            return bits >> 16
        inside = (bits >> 16) == self._above.bucket[task].to(bits.device)
        return bits[inside] & 0xFFFF

    def finish(self) -> None:
        """Find the bucket of each task's k-th smallest value."""
        upto = self._counts.cpu().cumsum(1)
        rank = self._first_rank(upto[:, -1]) if self._above is None else self._above.rank
        self.bucket = torch.searchsorted(upto, rank.unsqueeze(1)).squeeze(1).clamp_(max=upto.shape[1] - 1)
        before = upto.gather(1, self.bucket.unsqueeze(1)).squeeze(1)
        self.rank = rank - before + self._counts.cpu().gather(1, self.bucket.unsqueeze(1)).squeeze(1)
        self._counts = self._counts[:, :0]

    def _first_rank(self, sizes: Tensor) -> Tensor:
        # int(d * K) as the reference has it: in float64, rounded towards zero.
        return torch.tensor([d - int(d * self._kept_share) for d in sizes.tolist()], dtype=torch.int64)


class Trim:
    """Keeps the largest `percent` % of every task vector's magnitudes and makes the rest 0: `topk_values_mask`.

    As there, the threshold is the (d − int(d·percent/100))-th smallest magnitude of the whole task vector, and values
    equal to it are kept. At 100 nothing is read and nothing is trimmed.
    """

    def __init__(self, percent: float) -> None:
        if not (isinstance(percent, int | float) and 0 < percent <= 100):
            raise OptionError(f"topk is a percentage: more than 0 and at most 100, not {percent!r}")
        self.percent = percent
        self._passes: list[BitHistogram] = []

    def statistics(self, n_tasks: int) -> Sequence[BitHistogram]:
        """The two passes that find the thresholds; none at 100 %."""
        if self.percent == 100:
            return ()
        high = BitHistogram(n_tasks, self.percent / 100)
        self._passes = [high, BitHistogram(n_tasks, self.percent / 100, high)]
        return tuple(self._passes)

    def thresholds(self) -> Tensor:
        """Per task of the zoo the least magnitude that is kept, float32 (T,), once the passes are finished."""
        high, low = (p.bucket for p in self._passes)
        return (high << 16 | low).to(torch.int32).view(torch.float32)

    def least(self, tasks: Sequence[int]) -> tuple[float, ...]:
        """The thresholds of some tasks; none where nothing is trimmed."""
        return () if self.percent == 100 else tuple(self.thresholds()[list(tasks)].tolist())

    def __call__(self, tile: HasTaskVectors) -> Tensor:
        """τ with everything under the threshold 0: shape (T', N)."""
        if self.percent == 100:
            return tile.tau
        least = self.thresholds()[list(tile.tasks)].to(tile.tau.device)
        return tile.tau * (tile.tau.abs().float() >= least.unsqueeze(1))
