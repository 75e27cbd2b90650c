"""In which context each level and class of a sampled chunk is coded: as few bits as counting tells.

Where changes are about as large as the step, what an element's multiple is depends on its class; where next to nothing
moved, it hardly does, and contexts are better spent elsewhere. Levels in which about as much moved share contexts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tallstore.kernels.lattice import LEVELS, Bytes
from tallstore.kernels.logarithm import log2
from tallstore.kernels.native import sampled as native
from tallstore.kernels.registry import kernel

__all__ = ["CONTEXTS", "choose_contexts", "costs_of_groups"]

Integers = npt.NDArray[np.int64]

CONTEXTS = 16
"""That there are for all levels together; and classes of what is drawn."""
_SYMBOLS = 8
"""Magnitudes that are told apart: the last one stands for all that are larger."""
_LOOKED_AT = 1 << 16
"""About as many elements are counted."""
_TABLE_BITS = 48.0
"""What a context more costs, about."""
_DOWN = range(5)
"""By how much classes may be shifted."""
_BEFORE = np.arange(CONTEXTS, 2 * CONTEXTS + 1) - (CONTEXTS >> np.arange(len(_DOWN)))[:, None]
"""Contexts that are left for levels before a group, by its shift and how many there are: from `CONTEXTS` on."""


def choose_contexts(tags: Bytes, multiples: npt.NDArray[np.int16]) -> Bytes:
    """Of each level the context of class 0, plus 16 times how far classes are shifted down: shape (LEVELS,).

    Args:
        tags: of each element that is kept, its level, plus 16 times its class: shape (K,).
        multiples: what they are coded as: shape (K,).
    """
    every = max(1, len(tags) // _LOOKED_AT)
    at = tags[::every].astype(np.int16) * np.int16(_SYMBOLS)
    at += np.minimum(np.abs(multiples[::every]), np.int16(_SYMBOLS - 1))
    counts = np.bincount(at, minlength=256 * _SYMBOLS).reshape(CONTEXTS, LEVELS, _SYMBOLS).swapaxes(0, 1)
    total = counts.sum((1, 2))
    (used,) = np.nonzero(total)
    if not len(used):
        return np.full(LEVELS, _DOWN[-1] << 4, np.uint8)
    moved = (total - counts[..., 0].sum(1)) * (1 << 20) // np.maximum(total, 1)
    used = used[np.argsort(moved[used], kind="stable")]
    found = np.full(LEVELS, _DOWN[-1] << 4, np.uint8)  # all classes of what does not occur: in context 0
    begin = 0
    for start, stop, down in _groups(counts[used] * every):
        found[used[start:stop]] = begin | down << 4
        begin += CONTEXTS >> down
    return found


def _groups(counts: Integers) -> list[tuple[int, int, int]]:
    """Levels one beside the other that share contexts, and how far their classes are shifted down.

    counts: by level, class and magnitude.
    """
    n = len(counts)
    costs = costs_of_groups(counts)
    # Bits of the first so many levels in at most so many contexts, infinite for fewer than none, which lie before; and
    # the last group's beginning and shift.
    least, last = np.full((n + 1, 2 * CONTEXTS + 1), np.inf), np.zeros((n + 1, CONTEXTS + 1, 2), np.intp)
    least[0, CONTEXTS:] = 0
    for j in range(1, n + 1):
        reached = least[:j, _BEFORE].swapaxes(0, 1) + costs[:, :j, j, None]
        reached = reached.reshape(-1, CONTEXTS + 1)
        at = reached.argmin(0)
        least[j, CONTEXTS:] = reached.min(0)
        last[j, :, 1], last[j, :, 0] = np.divmod(at, j)
    groups: list[tuple[int, int, int]] = []
    j, left = n, CONTEXTS
    while j:
        i, down = (int(each) for each in last[j, left])
        groups.append((i, j, down))
        j, left = i, left - (CONTEXTS >> down)
    return groups[::-1]


@kernel
def costs_of_groups(counts: Integers) -> npt.NDArray[np.float64]:
    """Bits of levels from one up to before another that share contexts, infinite where there are none.

    Args:
        counts: of elements, by level, class and magnitude: shape (n, CONTEXTS, _SYMBOLS).

    Returns:
        shape (shifts of classes, n + 1, n + 1).
    """
    n = len(counts)
    start, stop = np.triu_indices(n + 1, 1)
    upto = _upto(counts)
    costs = np.full((len(_DOWN), n + 1, n + 1), np.inf)
    for down in _DOWN:
        pooled = upto.reshape(n + 1, CONTEXTS >> down, 1 << down, _SYMBOLS).sum(2)
        costs[down, start, stop] = _bits(pooled[stop] - pooled[start]) + _TABLE_BITS * (CONTEXTS >> down)
    return costs


@costs_of_groups.native
def _(counts: Integers) -> npt.NDArray[np.float64]:
    return native.context_costs(np.ascontiguousarray(_upto(counts)), len(_DOWN), _TABLE_BITS)


def _upto(counts: Integers) -> Integers:
    """Of the first 0, 1 … levels."""
    return np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])


def _bits(counts: Integers) -> npt.NDArray[np.float64]:
    """That elements take, by what contexts tell of them; counts: by group, context and magnitude."""
    each = _entropy(counts.sum(2)) - np.cumsum(_entropy(counts), axis=2)[..., -1]
    bits: npt.NDArray[np.float64] = np.cumsum(each, axis=1)[..., -1]
    return bits


def _entropy(counts: Integers) -> npt.NDArray[np.float64]:
    return counts * log2(np.maximum(counts, 1).astype(np.float64))
