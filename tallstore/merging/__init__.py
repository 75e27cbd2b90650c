"""Merged models and mask statistics: pure functions of v and the masks.

A closed table from id to class, as for recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tallstore.merging.agreement import Agreement, count_agreement
from tallstore.merging.arithmetic import Arithmetic, sum_source
from tallstore.merging.base import ALPHAS, MergeStatistic, MergeTile, Method
from tallstore.merging.consensus import Consensus, consensus_bits, consensus_mask
from tallstore.merging.symbols import used_bits
from tallstore.merging.ties import TiesMerge
from tallstore.recipes.table import make

__all__ = [
    "ALPHAS",
    "METHODS",
    "Agreement",
    "MergeStatistic",
    "MergeTile",
    "Method",
    "consensus_bits",
    "consensus_mask",
    "count_agreement",
    "make_method",
    "sum_source",
    "used_bits",
]

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {method.id: method for method in (Arithmetic, Consensus, TiesMerge)}
)
"""Every merging method there is."""


def make_method(method_id: str, /, **options: object) -> Method:
    """A merging method by its id, with its options by name."""
    return make("merging method", METHODS, method_id, options)
