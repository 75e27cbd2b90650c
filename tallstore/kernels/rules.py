"""A recipe in the words of a kernel: names of what v is and of when a mask is on, and the numbers these take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MOST_TASKS", "MaskRule", "Rule", "VectorRule"]

MOST_TASKS = 32
"""Rows that a GPU's kernel takes at once: that for 32 takes half a minute to compile, and for more it grows fast."""

VectorRule = Literal["sum", "mean", "elect", "best", "best magnitude", "disjoint sum", "disjoint mean", "ones"]
"""How v comes of the task vectors: recipes `tall`, `mean`, `emr`, `fit` (two kinds), `ties` (two merges), `solo`."""
MaskRule = Literal["tall", "nearer", "agrees", "above"]
"""When a mask is on: |τ| > λ·|v − τ| in weight space, |τ| > |v − τ|, sign(τ) = sign(v) ≠ 0, |τ| ≥ limit."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What becomes of one tile, whose rows are T' tasks."""

    vector: VectorRule
    mask: MaskRule
    signed: bool = False
    """Whether masks are signed: 2 where τ < 0. With `nearer`, v is then compared with |τ|."""
    limits: tuple[float, ...] = ()
    """Of each row: λ of `tall`, or the least magnitude of `above`."""
    widths: tuple[float, ...] = ()
    """Of each row of `above`: its limit is raised by this times a number in [0, 1), a hash of the parameter's place."""
    seeds: tuple[int, ...] = ()
    """Of each row: the hash's seed."""
    trims: tuple[float, ...] = ()
    """Of each row: the least magnitude that v is made of. None: all are."""
    majority: int = 0
    """Of the disjoint merges: above 0 where values that sum to 0 count as positive."""
    exchanges: tuple[tuple[int, int], ...] = ()
    """Of the best v: the compare-exchanges that sort T' values."""
