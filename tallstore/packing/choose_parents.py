"""Which tasks are better coded against another one than against the base: a forest of short chains, chosen by cost.

Cheapest trees of bounded depth are hard to find (they hold Steiner trees as a special case), and near ones easy. Let
each task have a level, and the cheapest parent on a lower one: task by task takes the level that is best for all of
them, until none gains by another, from a few beginnings, of which the best end counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["CHAIN", "LINKS", "OCTAVES", "choose_parents", "cost_of", "step_cost", "within"]

CHAIN = 3
"""Longest chain that somebody may ask for."""
LINKS = 1
"""Longest chain that is chosen: each link is decoded for the last of it, in about 0.6 of what a task takes. With two, a
run's checkpoints take a tenth fewer bytes, and some of them more than twice as long as a task without a parent."""
_NEARER = 0.95
"""Share of what a task costs against the base that it must not exceed against a parent."""
_DEARER = 1.15
"""What a step takes, over its entropy: against the base, codes know directions, and tables are fewer."""
_ALIKE = 0.1
"""Share of the shorter one's square that the product of two task vectors is at least, if one is to help the other."""
_DRIFTS = (0.5, 1.5, 2.5, 3.5, 5.5, 8.5, 13.5)
"""Between which distances from the base, in units, elements of a parent are counted apart."""
_DIRECT = 16
"""Steps of fewer units are counted one by one."""
_NEAREST = 12
"""Parents that are looked at for each task: those that least is left against."""
_BEGINNINGS, _LOOK_UPS = 40, 1 << 20
"""Random beginnings, and tasks squared that they may come to in all: of a thousand tasks there are fewer."""
OCTAVES = 12
"""Of units, from the largest one down, that are told apart."""

_NOTHING = 1e-9

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def choose_parents(
    rows: Mapping[str, Floats], octaves: Integers, tasks: Sequence[str], depths: Mapping[str, int]
) -> dict[str, tuple[str, float]]:
    """The parent of each task that has one, and which share of its cost that saves.

    Args:
        rows: samples of task vectors, in units of the last place, of all that are named: shape (n,).
        octaves: of the unit of each element, from 0 on: shape (n,).
        tasks: that may become children.
        depths: of those that may become parents: how long the chain is that they are the end of, as they are now, tasks
            among them too. Those that get no parent here stay as they are.
    """
    own = {name: cost_of(rows[name], octaves) for name in tasks}
    costs: dict[str, dict[str, float]] = {name: {} for name in tasks}
    for name in tasks:
        for other in _nearest(rows, name, [other for other in depths if other != name]):
            if (cost := step_cost(rows[name], rows[other], octaves)) < _NEARER * own[name]:
                costs[name][other] = cost
    forest = _Forest(own, costs, {name: depth for name, depth in depths.items() if name not in own})
    chosen = within(forest.best(), depths)
    return {name: (other, 1 - costs[name][other] / own[name]) for name, other in chosen.items()}


def within(chosen: Mapping[str, str], depths: Mapping[str, int]) -> dict[str, str]:
    """Those chosen parents, by child, that make no chain longer than `LINKS`; other tasks stay at their `depths`."""
    kept = dict(chosen)

    def depth(name: str) -> int:
        return 1 + depth(kept[name]) if name in kept else depths.get(name, 0)

    while long := [name for name in kept if depth(name) > LINKS]:
        # The nearest to the root first: what stands on it may be short enough then.
        del kept[min(long, key=lambda name: (depth(name), name))]
    return kept


def _nearest(rows: Mapping[str, Floats], task: str, others: Sequence[str]) -> list[str]:
    """Those that least is left against, of those that have a direction in common with a task."""
    row, left = rows[task], {}
    size = row @ row
    for other in others:
        along, own = row @ rows[other], rows[other] @ rows[other]
        if along >= _ALIKE * min(size, own):
            left[other] = size + own - 2 * along
    return sorted(left, key=lambda other: (left[other], other))[:_NEAREST]


def step_cost(row: Floats, other: Floats, octaves: Integers) -> float:
    """About how many bits an element takes against another task's; see `cost_of`.

    Elements that the other moved far, and less far, are counted apart, as codec `drift` does: what is left of those
    that it never moved is little, and what is left of the others has a sign that is easily told.
    """
    steps = (row - other) * np.where(other < 0, -1.0, 1.0)
    return _DEARER * _bits(steps, octaves * (len(_DRIFTS) + 1) + np.digitize(np.abs(other), _DRIFTS))


def cost_of(row: Floats, octaves: Integers) -> float:
    """About how many bits an element takes: by how many units it moved, and which way."""
    return _bits(row, octaves)


def _bits(steps: Floats, contexts: Integers) -> float:
    """Entropy of steps in units, by context, large ones by octaves: bits an element."""
    sizes = np.rint(np.abs(steps))
    octave = np.floor(np.log2(np.maximum(sizes, _DIRECT)))
    open_bits = np.where(sizes < _DIRECT, 0.0, octave - 1)
    symbols = np.where(sizes < _DIRECT, sizes, _DIRECT + octave).astype(np.int64) * 2 + (steps < 0)
    pairs = _entropy(np.bincount(contexts * (symbols.max() + 1) + symbols)) - _entropy(np.bincount(contexts))
    return float(pairs + open_bits.mean())


def _entropy(counts: Integers) -> float:
    """Bits that one of so many takes."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


class _Forest:
    """Tasks on levels, each on its cheapest parent of a lower one, or on the base."""

    def __init__(
        self, own: Mapping[str, float], costs: Mapping[str, Mapping[str, float]], there: Mapping[str, int]
    ) -> None:
        """`there`: parents that are none of the tasks, and how long the chains are that they are the end of."""
        self._tasks, self._others = list(own), [*own, *there]
        self._own = np.array(list(own.values()))
        rows = [[costs[name].get(other, np.inf) for other in self._others] for name in self._tasks]
        self._costs = np.array(rows).reshape(len(self._tasks), len(self._others))
        self._there = np.array(list(there.values()), np.int64)

    def best(self) -> dict[str, str]:
        """The parents of those that have one, of the cheapest forest that is met."""
        n, draw = len(self._tasks), np.random.default_rng(0)
        if not n or not np.isfinite(self._costs).any():
            return {}
        more = min(_BEGINNINGS, _LOOK_UPS // n**2)
        beginnings = [np.zeros(n, np.int64), *draw.integers(0, LINKS + 1, (more, n))]
        ends = [self._looked_up(self._improved(levels)) for levels in beginnings]
        chosen = min(ends, key=lambda each: each.total)
        return {
            name: self._others[parent]
            for name, parent, saves in zip(self._tasks, chosen.parents, chosen.saves, strict=True)
            if saves
        }

    def _improved(self, levels: Integers) -> Integers:
        """Levels of which no single one can be changed for the better: task by task takes its best one."""
        chosen, changed = self._looked_up(levels), True
        while changed:
            changed = False
            for at in range(len(levels)):
                totals = [self._total(levels, chosen, at, level) for level in range(LINKS + 1)]
                level = int(np.argmin(totals))
                if totals[level] < totals[levels[at]] - _NOTHING:
                    levels, changed = levels.copy(), True
                    levels[at] = level
                    chosen = self._looked_up(levels)
        return levels

    def _total(self, levels: Integers, chosen: _Chosen, at: int, level: int) -> float:
        """What all tasks cost with another level for one of them."""
        without = np.where(chosen.parents == at, chosen.second, chosen.least)
        costs = np.where(levels > level, np.minimum(without, self._costs[:, at]), without)
        lower = np.concatenate([levels, self._there]) < level
        lower[at] = False
        costs[at] = self._costs[at, lower].min(initial=np.inf)
        return float(np.minimum(costs, self._own).sum())

    def _looked_up(self, levels: Integers) -> _Chosen:
        """The cheapest parents that levels allow."""
        lower = np.concatenate([levels, self._there])[None, :] < levels[:, None]
        costs = np.where(lower, self._costs, np.inf)
        each = np.arange(len(levels))
        parents = costs.argmin(1)
        least = costs[each, parents]
        costs[each, parents] = np.inf
        total = float(np.minimum(least, self._own).sum())
        return _Chosen(parents=parents, least=least, second=costs.min(1), saves=least < self._own, total=total)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """The cheapest parent of each task, and what that costs; what the next one would; whether the base costs more."""

    parents: Integers
    least: Floats
    second: Floats
    saves: npt.NDArray[np.bool_]
    total: float
    """Of all tasks, each on its parent or on the base."""
