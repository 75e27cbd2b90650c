"""Which tasks are better coded against another one than against the base: a forest of short chains, chosen by cost.

Cheapest trees of bounded depth are hard to find (they hold Steiner trees as a special case), and near ones easy: from
all tasks on the base, the change of one parent that saves most is made until none saves anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["CHAIN", "choose_parents", "cost_of"]

CHAIN = 3
"""Longest chain that is made: each link is decoded for the last of it."""
_NEARER = 0.9
"""Share of what a task costs against the base that it must not exceed against a parent."""
_ALIKE = 0.1
"""Share of the shorter one's square that the product of two task vectors is at least, if one is to help the other."""

Floats = npt.NDArray[np.float64]


def choose_parents(
    rows: Mapping[str, Floats], tasks: Sequence[str], depths: Mapping[str, int]
) -> dict[str, tuple[str, float]]:
    """The parent of each task that has one, and which share of its cost that saves.

    Args:
        rows: samples of task vectors, in units of the last place, of all that are named.
        tasks: that may become children.
        depths: of those that may become parents: how long the chain is that they are the end of, as they are now. Tasks
            among them are at the end of none.
    """
    own = {name: cost_of(rows[name]) for name in tasks}
    costs: dict[str, dict[str, float]] = {name: {} for name in tasks}
    apart: dict[tuple[str, str], float] = {}
    for name in tasks:
        for other in depths:
            if other == name:
                continue
            pair = min(name, other), max(name, other)
            if pair not in apart:
                apart[pair] = _apart(rows[name], rows[other])
            if apart[pair] < _NEARER * own[name]:
                costs[name][other] = apart[pair]
    forest = _Forest(own, costs, depths)
    while forest.improve():
        pass
    return {name: (other, 1 - costs[name][other] / own[name]) for name, other in forest.parents.items()}


def _apart(row: Floats, other: Floats) -> float:
    """What one costs against the other; of those that have no direction in common it is not worked out."""
    if row @ other < _ALIKE * min(row @ row, other @ other):
        return np.inf
    return cost_of(row - other)


def cost_of(row: Floats) -> float:
    """About how many bits an element takes: which elements moved, and by how many units."""
    moved = np.count_nonzero(row) / max(1, len(row))
    which = -sum(share * np.log2(share) for share in (moved, 1 - moved) if share > 0)
    return float(which + np.log2(1 + np.abs(row)).mean())


class _Forest:
    """Tasks on their parents, those that are named nowhere on the base."""

    def __init__(
        self, own: Mapping[str, float], costs: Mapping[str, Mapping[str, float]], depths: Mapping[str, int]
    ) -> None:
        self.parents: dict[str, str] = {}
        self._own, self._costs, self._depths = own, costs, depths

    def improve(self) -> bool:
        """Make the change that saves most; whether there was one. The first in the order of names, of equal ones."""
        best: tuple[float, str, str] | None = None
        for name, others in self._costs.items():
            now = others[self.parents[name]] if name in self.parents else self._own[name]
            height = self._height(name)
            for other, cost in others.items():
                if best is not None and now - cost <= best[0]:
                    continue
                if now - cost > 0 and self._depth(other, name) + 1 + height <= CHAIN:
                    best = now - cost, name, other
        if best is None:
            return False
        self.parents[best[1]] = best[2]
        return True

    def _depth(self, task: str, but: str) -> int:
        """How long the chain is that a task is the end of; too long where it is made of `but`."""
        depth = 0
        while task in self.parents:
            if task == but:
                return CHAIN
            task, depth = self.parents[task], depth + 1
        return CHAIN if task == but else depth + self._depths.get(task, 0)

    def _height(self, task: str) -> int:
        """How long the longest chain is that begins with a task."""
        below = [name for name, other in self.parents.items() if other == task]
        return max((1 + self._height(name) for name in below), default=0)
