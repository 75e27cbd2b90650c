"""Which checkpoints are linear combinations of others, found on samples.

A merge that a tool rounded lies within half a unit of the last place of the sum: what is left of it by least squares
is about a twelfth of a unit's square an element, and no other checkpoint comes near that. Of tasks that explain each
other, those that the others leave most of are the sources. Weights are as short as they may be: people write 0.6, and
not 0.599987. A few thousand elements of a few tensors decide: what is no combination costs no more than reading them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.checkpoints import Checkpoint
from tallstore.encoder.components import matched
from tallstore.encoder.tied_weights import tied_names
from tallstore.errors import TallstoreError
from tallstore.format.dtypes import MASKABLE
from tallstore.packing.choose_parents import OCTAVES, choose_parents

__all__ = ["SMALLEST", "LinearFit", "find_combinations", "find_parents"]

SMALLEST = 1 << 18
"""Parameters from which on it is looked for: of fewer there is nothing to save."""
_TENSORS, _RUN = 12, 1 << 12
"""Tensors that are sampled, and elements of each."""
_EXPLAINED = 0.5
"""Share of a task vector's square that others explain at least: of less, a merge is no news."""
_NOISE = 3.0
"""How many times what rounding leaves may be left of a combination: its terms may be rounded themselves."""
_FLOOR = 1e-5
"""Share of a task vector's square that may be left beside, for sums that were rounded on the way."""
_LEAST = 1e-3
"""Weights that contribute less than this share of a task vector's length are none."""
_DIGITS = range(1, 6)
"""Decimal places that weights are tried with."""
_WORSE = 1.02
"""By how much shorter weights may raise what is left."""
_FEWER = 1 / 3
"""Share of the elements in which a task of a short type differs from the nearest of those that it would be merged of,
in which it may differ from what they are merged to: of steps less than a unit long, rounding hides all else. Of merges
that are rounded once it is a few hundredths, of others up to 0.4; of a run's checkpoints, which others nearly are
combinations of, 0.4 and more."""
_FEW = 4
"""Tasks from which on fewer elements may differ, the more there are: each is one more to decode."""
_SHORT = 2
"""Bytes of an element of a type whose roundings are compared."""
_NEARLY = 0.1
"""How far from 1 weights may sum to that are meant to sum to 1."""
_MOST = 16
"""Tasks that one is a combination of, at most: merges of more are rare, and dear to decode."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """A task as a combination of others."""

    weights: Mapping[str, float]
    explained: float
    """Share of the sampled task vector's square."""


def find_combinations(
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    known: Mapping[str, Checkpoint],
    *,
    parents: Mapping[str, int] | None = None,
) -> dict[str, LinearFit]:
    """Tasks that are combinations of known ones, or of others among them that are none.

    Args:
        base: what all are fine-tunes of.
        tasks: to be looked at.
        known: that are there already, and stay what they are.
        parents: look too for tasks that are nearer to one of these than to the base: one weight of 1. Of each, how
            long the chain is already that it is the end of.
    """
    sample = _sampled(base, {**known, **tasks})
    if sample is None:
        return {}
    rows, noise = sample.rows, sample.noise
    names = list(rows)
    stacked = np.stack(list(rows.values()))
    gram = stacked @ stacked.T
    basis = [names.index(name) for name in known if name in rows]
    left = [at for at, name in enumerate(names) if name in tasks and gram[at, at] > 0]
    related: dict[str, LinearFit] = {}
    while left:
        rest = {at: _rest(gram, at, basis) for at in left}
        free = [at for at in left if not _is_left(rest[at], gram[at, at], noise[names[at]])]
        if not free:
            fits = {at: _fitted(sample, gram, at, basis) for at in left}
            related = {names[at]: fit for at, fit in fits.items() if fit is not None}
            free = [at for at, fit in fits.items() if fit is None]
        if not free:
            break
        # What the others leave most of is a source; a merge is shorter than what it is made of, or explained by it.
        chosen = max(free, key=lambda at: rest[at])
        basis.append(chosen)
        left.remove(chosen)
    if parents:
        sources = {name for combination in related.values() for name in combination.weights}
        others = [name for name in tasks if name in rows and name not in related and name not in sources]
        depths = {name: depth for name, depth in parents.items() if name in rows and name not in related}
        related |= {
            name: LinearFit(weights={other: 1.0}, explained=explained)
            for name, (other, explained) in choose_parents(rows, sample.octaves, others, depths).items()
        }
    return related


def find_parents(
    base: Checkpoint, tasks: Mapping[str, Checkpoint], depths: Mapping[str, int], children: Sequence[str]
) -> dict[str, str]:
    """For tasks that are nearer to another one than to the base, the nearest, by a sample; see `choose_parents`.

    Args:
        base: what all are fine-tunes of.
        tasks: all of them.
        depths: of those that may become parents, how long the chain is that they are the end of.
        children: that may get a parent, or another one.
    """
    sample = _sampled(base, tasks)
    if sample is None:
        return {}
    known = {name: depth for name, depth in depths.items() if name in sample.rows}
    chosen = choose_parents(sample.rows, sample.octaves, [name for name in children if name in sample.rows], known)
    return {name: other for name, (other, _) in chosen.items()}


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A sample of task vectors, in units of what rounding leaves: small elements are known better, and weigh more."""

    rows: Mapping[str, Floats]
    noise: Mapping[str, float]
    """What rounding leaves of the square of each."""
    runs: Sequence[_SampledRun]

    @property
    def octaves(self) -> npt.NDArray[np.int64]:
        """Of the unit of each element, from that of the smallest on, those that are alike."""
        octaves = np.rint(np.log2(np.concatenate([run.scale for run in self.runs]))).astype(np.int64)
        from_least: npt.NDArray[np.int64] = np.maximum(octaves - octaves.max() + OCTAVES - 1, 0)
        return from_least

    def differ(self, task: str, row: Floats) -> int | None:
        """In how many elements a task differs from a row, once that is rounded to its type; None where it is long."""
        total = at = 0
        for run in self.runs:
            after, stop = run.after[task], at + len(run.before)
            if after.element_size() > _SHORT:
                return None
            there = torch.from_numpy(run.before + row[at:stop] * run.scale).to(after.dtype)
            total, at = total + int((there != after).sum()), stop
        return total


@dataclass(frozen=True, kw_only=True)
class _SampledRun:
    """Elements of one tensor: of the base, the unit of each, and the tasks' own."""

    before: Floats
    scale: Floats
    after: Mapping[str, Tensor]


def _sampled(base: Checkpoint, tasks: Mapping[str, Checkpoint]) -> _Sample | None:
    """A sample of each task that can be compared; None where there is nothing to compare."""
    bound = {name: names for name, task in tasks.items() if (names := _counterparts(base, task))}
    if len(bound) < 2:
        return None
    shared = set.intersection(*(set(each) for each in bound.values()))
    if sum(base.tensors[name].numel for name in shared) < SMALLEST:
        return None
    rows: dict[str, list[Floats]] = {name: [] for name in bound}
    noise = dict.fromkeys(bound, 0.0)
    runs: list[_SampledRun] = []
    for tensor in _spread(base, [name for name in base.tensors if name in shared]):
        start = (base.tensors[tensor].numel - _RUN) // 2 if base.tensors[tensor].numel > _RUN else 0
        stop = min(start + _RUN, base.tensors[tensor].numel)
        before = base.read(tensor, start, stop)
        after = {name: tasks[name].read(names[tensor], start, stop) for name, names in bound.items()}
        moved = {n: (each.double() - before.to(each.dtype).double()).numpy() for n, each in after.items()}
        moved = {name: np.where(np.isfinite(row), row, 0.0) for name, row in moved.items()}
        units = {name: _last_place(each) for name, each in after.items()}
        scale = np.max(np.stack(list(units.values())), axis=0)
        touched = np.any(np.stack(list(moved.values())) != 0, axis=0)
        for name, row in moved.items():
            rows[name].append(row / scale)
            noise[name] += float(np.square(units[name] / scale)[touched].sum()) / 12
        runs.append(_SampledRun(before=before.double().numpy(), scale=scale, after=after))
    return _Sample(rows={name: np.concatenate(row) for name, row in rows.items()}, noise=noise, runs=runs)


def _last_place(values: Tensor) -> Floats:
    """The unit of the last place of each element; that of the type's least normal number below it."""
    facts = torch.finfo(values.dtype)
    size = np.nan_to_num(np.abs(values.double().numpy()), nan=0.0, posinf=0.0)
    # Not torch's logarithm: for so few numbers its other threads wait for work longer than there is any.
    _, exponent = np.frexp(np.maximum(size, facts.tiny))
    units: Floats = np.ldexp(facts.eps, exponent - 1)
    return units


def _counterparts(base: Checkpoint, task: Checkpoint) -> dict[str, str]:
    """By the base's tensors, a task's of the same shape that come from them; none where it is none of a plain kind."""
    if task.adapter is not None:
        return {}
    try:
        matches = matched(base, task, tied_names(task, base), allow_distant=True)
    except TallstoreError:  # said where it is packed
        return {}
    return {
        match.base: name
        for name, match in matches.items()
        if match.rows is None and {task.tensors[name].dtype, base.tensors[match.base].dtype} <= set(MASKABLE)
    }


def _spread(base: Checkpoint, names: Sequence[str]) -> list[str]:
    """A few of the larger tensors, from all over the model."""
    large = [name for name in names if base.tensors[name].numel >= _RUN] or list(names)
    step = max(1, len(large) // _TENSORS)
    return large[step // 2 :: step][:_TENSORS]


def _summing_to_one(
    weights: Floats, shares: Floats, left: Callable[[Floats], float], best: float, allowed: float
) -> tuple[Floats, float]:
    """Weights of which the one that is known least is what the others leave of 1, if they nearly sum to that."""
    rest = 1 - float(weights.sum())
    if 0 < abs(rest) < _NEARLY:
        moved = weights.copy()
        least = int(np.argmin(shares))
        moved[least] = round(moved[least] + rest, 12)
        if left(moved) <= allowed:
            return moved, left(moved)
    return weights, best


def _is_left(rest: float, square: float, noise: float) -> bool:
    """Whether that little of a task vector's square is what rounding leaves of a combination."""
    return rest <= _FLOOR * square + _NOISE * noise and rest <= (1 - _EXPLAINED) * square


def _rest(gram: Floats, at: int, basis: Sequence[int]) -> float:
    """What is left of a task vector's square by its projection on others."""
    if not basis:
        return float(gram[at, at])
    weights = _solved(gram, at, basis)
    return float(max(0.0, gram[at, at] - weights @ gram[basis, at]))


def _solved(gram: Floats, at: int, basis: Sequence[int]) -> Floats:
    inner = gram[np.ix_(basis, basis)]
    return np.asarray(np.linalg.lstsq(inner, gram[basis, at], rcond=1e-10)[0])


def _fitted(sample: _Sample, gram: Floats, at: int, basis: Sequence[int]) -> LinearFit | None:
    """Weights of those that count, as short as they may be; None where they explain too little."""
    there, rows, names = list(basis), sample.rows, list(sample.rows)
    while True:
        weights = _solved(gram, at, there)
        shares = np.abs(weights) * np.sqrt(gram[there, there] / gram[at, at])
        kept = [j for j, share in zip(there, shares, strict=True) if share >= _LEAST]
        if len(kept) == len(there):
            break
        there = kept
        if not there:
            return None
    if len(there) > _MOST:
        return None
    matrix, own = np.stack([rows[names[j]] for j in there]), rows[names[at]]

    def left(weights: Floats) -> float:
        return float(np.square(own - weights @ matrix).sum())

    best = left(weights)
    allowed = _WORSE * best + _FLOOR * 1e-3 * float(gram[at, at])
    for digits in _DIGITS:
        short = np.round(weights, digits)
        if short.any() and left(short) <= allowed:
            weights, best = short, left(short)
            break
    weights, best = _summing_to_one(weights, shares, left, best, allowed)
    if not _is_left(best, gram[at, at], sample.noise[names[at]]):
        return None
    differ = sample.differ(names[at], weights @ matrix)
    nearest = [sample.differ(names[at], row) or 0 for row in (np.zeros_like(own), *matrix)]
    if differ is not None and differ > _FEWER * min(1.0, _FEW / len(there)) * min(nearest):
        return None
    explained = 1 - best / float(gram[at, at])
    return LinearFit(
        weights={names[j]: float(w) for j, w in zip(there, weights, strict=True) if w}, explained=explained
    )
