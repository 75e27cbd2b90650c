"""What is chosen of a chunk by drift before it is coded, in whole numbers: which tables are joined.

The native kernel (`native/src/drift_encode.c`) chooses the same.
"""

from __future__ import annotations

import numpy as np

from tallstore.kernels.lattice import Bytes, Integers
from tallstore.kernels.lattice_choices import POINT, logs

__all__ = ["join"]

_KIND_BITS = 10
"""What a symbol's frequency takes, about, of those that occur."""


def join(counts: Integers) -> tuple[Bytes, int]:
    """Join tables two by two while that saves: those that are alike in contexts that are no neighbours.

    Args:
        counts: elements by table and symbol: shape (tables, kinds).

    Returns:
        of each table the first of those that it is joined with; and what all of it takes, in parts of a bit.
    """
    rows, joined, n = counts.copy(), np.arange(len(counts), dtype=np.uint8), len(counts)
    own, there = _costs(rows), np.ones(n, bool)
    both = _costs(rows[:, None] + rows)
    above = np.triu(np.ones((n, n), bool), 1)
    while n:
        gains = np.where(above & there & there[:, None], both - own - own[:, None], 0)
        left, right = np.unravel_index(gains.argmin(), gains.shape)
        if not gains[left, right]:
            break
        rows[left] += rows[right]
        own[left], there[right] = both[left, right], False
        joined[joined == right] = left
        both[left] = both[:, left] = _costs(rows + rows[left])
    return joined, int(own[there].sum())


def _costs(counts: Integers) -> Integers:
    """What so many symbols take with a table of their own, in parts of a bit: shape (…, kinds)."""
    total = counts.sum(-1)
    costs: Integers = total * logs(total) - (counts * logs(counts)).sum(-1) + POINT * _KIND_BITS * (counts > 0).sum(-1)
    return costs
