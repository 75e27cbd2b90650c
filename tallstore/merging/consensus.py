"""Consensus merging: keep what at least k tasks use, drop the rest (`construct_consensus_mask` in the reference).

k = 0 keeps all and leaves the plain method, k = 1 drops the catastrophic weights, k = 2 the selfish ones too, k > T
drops everything and leaves the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.merging.arithmetic import Arithmetic
from tallstore.merging.base import MergeStatistic, MergeTile, Method, SumOf
from tallstore.merging.counting import BLOCK, Bytes, add_rows, as_words, at_least
from tallstore.merging.ties import TiesMerge

__all__ = ["Consensus", "Merged", "consensus_bits", "consensus_mask"]

Merged = Literal["vector", "tasks", "ties"]
"""What the mask is laid on: the stored v, the sum of the decoded task vectors, or their TIES merge."""


def consensus_mask(masks: Tensor, k: int) -> Tensor:
    """Where at least k of the tasks are on: (T, N) masks of either kind to bool (N,)."""
    users = torch.zeros(masks.shape[1], dtype=torch.int16, device=masks.device)
    for mask in masks:
        users += mask != 0
    return users >= _checked_k(k)


def consensus_bits(rows: Sequence[Bytes], n: int, k: int) -> Bytes:
    """The same on packed masks of one bit a parameter: ceil(n / 8) bytes, little-endian, zeros behind the last."""
    if _checked_k(k) == 0:
        return np.packbits(np.ones(n, np.uint8), bitorder="little")
    bits = np.zeros(-(-n // 8), np.uint8)
    for start in range(0, len(bits) if rows else 0, BLOCK):
        part = bits[start : start + BLOCK]
        words = as_words([row[start : start + BLOCK] for row in rows], len(part))
        part[:] = at_least(add_rows(words), k).view(np.uint8)[: len(part)]
    return bits


class Consensus(Method):
    """A plain merge times the consensus mask."""

    id = "consensus"

    def __init__(self, k: int = 2, alpha: float = 1.0, source: Merged = "vector") -> None:
        if source not in get_args(Merged):
            raise OptionError(f"the source of the consensus is {', '.join(get_args(Merged))}, not {source!r}")
        self._k = _checked_k(k)
        self._plain: Method = TiesMerge(alpha) if source == "ties" else Arithmetic(alpha, source)
        self.approximate = self._plain.approximate

    def statistics(self, n_tasks: int) -> Sequence[MergeStatistic]:
        """Those of the plain merge."""
        return self._plain.statistics(n_tasks)

    def of_sums(self) -> SumOf | None:
        """The plain merge's, where that is a sum."""
        plain = self._plain.of_sums()
        return None if plain is None else plain._replace(k=self._k)

    def delta(self, tile: MergeTile) -> Tensor:
        """The plain merge where the tasks agree, 0 elsewhere."""
        return self._plain.delta(tile) * consensus_mask(tile.masks, self._k)


def _checked_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise OptionError(f"k is a number of tasks, 0 or more, not {k!r}")
    return k
