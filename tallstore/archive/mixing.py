"""From what people ask of a merge to the recipe that an archive keeps: method, weights, and whose head.

What a method needs to know of whole task vectors (thresholds, an angle) is measured here, once, and becomes a number of
the recipe, so that a tensor of the merge decodes without a look at the others.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tallstore.archive.decode import Decoder
from tallstore.archive.merging.alignment import Lineup, line_up
from tallstore.archive.merging.tiles import TaskVectorReader, ahead
from tallstore.archive.reader import Place
from tallstore.errors import NoSuchTaskError, OptionError
from tallstore.format.dtypes import MASKABLE
from tallstore.format.manifest import Manifest, names_of
from tallstore.format.part import Entry
from tallstore.format.relatives import MergeRecipe, Relatives
from tallstore.merging.base import MergeStatistic, MergeTile
from tallstore.recipes.election import Majority
from tallstore.recipes.statistics import Trim

__all__ = ["MIXES", "Mixture", "mix"]

MIXES = ("linear", "arithmetic", "consensus", "ties", "slerp")
"""Methods by which tasks are mixed."""
_ALIASES = {"task_arithmetic": "arithmetic"}
_SUM_OF_ONE = 1e-9
"""How far from 1 the weights of a linear merge may sum to: what is left of decimal fractions."""
_SLACK = 1 - 2.0**-10
"""What a threshold is lowered by: a weight less the base's is a task vector's value but for rounding, and of a
quantized one many values are the threshold itself."""
_FAR = 2.0**100
"""Larger magnitudes are not merged: sums of them could overflow."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A merge as it is kept."""

    relatives: Relatives
    entries: Mapping[str, Entry]
    """What its own part says of single tensors."""
    of_head: Mapping[str, str]
    """Tensors that are not merged but the head's → why."""
    dropped: Mapping[str, str]
    """Tensors of other tasks that it does not have → whose."""

    def places(self, decoder: Decoder) -> Mapping[str, Place]:
        """Its tensors, as a reader finds them."""
        own = {name: Place("", entry, None) for name, entry in self.entries.items()}
        return decoder.places.headed(self.relatives, own, "")


def mix(
    decoder: Decoder,
    manifest: Manifest,
    weights: Mapping[str, float],
    *,
    method: str | None = None,
    head: str | None = None,
    topk: float = 20,
    average: bool = False,
    k: int = 2,
) -> Mixture:
    """The recipe of a merge.

    Args:
        decoder: of the archive.
        manifest: its own.
        weights: by task.
        method: one of `MIXES`; by default `linear` where the weights sum to 1, else `arithmetic`.
        head: a task among them: what cannot be merged is its own. Without it everything must be merged.
        topk: of ties: the percentage of each task vector that is kept.
        average: of ties: average what agrees, in place of summing it.
        k: of consensus: what fewer tasks changed stays the base's.

    Raises:
        NoSuchTaskError: for a task that is not there.
        OptionError: for what makes no sense, or tensors that do not fit each other; names task and tensor.
    """
    tasks = tuple(weights)
    _check(manifest, tasks, head)
    chosen = _ALIASES.get(method or "", method) or _by_sum(weights)
    if chosen not in MIXES:
        raise OptionError(f"method {method!r} is unknown; there are {', '.join(MIXES)}")
    lineups = line_up(decoder, manifest, tasks)
    for task in tasks:
        decoder.check(task)
    recipe = _recipe(decoder, lineups, weights, chosen, topk=topk, average=average, k=k)
    relatives = Relatives(tasks=tasks, merge=recipe, head=head or tasks[0])
    entries = _entries(decoder, lineups, relatives)
    places = decoder.places.headed(relatives, entries, "")
    of_head, dropped = _apart(decoder, places, relatives)
    if head is None and (of_head or dropped):
        name, why = next(iter({**of_head, **dropped}.items()))
        raise OptionError(f"tensor {name!r}: {why}: name the task whose head the merge has (head=…, --head)")
    return Mixture(
        relatives=relatives,
        entries={name: place.entry for name, place in entries.items()},
        of_head=of_head,
        dropped=dropped,
    )


def _check(manifest: Manifest, tasks: Sequence[str], head: str | None) -> None:
    if odd := next((task for task in tasks if task not in manifest.tasks), None):
        raise NoSuchTaskError(f"no task {odd!r} to merge; there are {names_of(list(manifest.tasks))}")
    if head is not None and head not in tasks:
        raise OptionError(f"the head's task {head!r} is not one that is merged: {names_of(tasks)}; give it a weight")
    for task in tasks:
        if manifest.tasks[task].adapter is not None:
            raise OptionError(f"task {task!r} is an adapter: models are merged, not adapters")


def _by_sum(weights: Mapping[str, float]) -> str:
    return "linear" if abs(math.fsum(weights.values()) - 1) <= _SUM_OF_ONE else "arithmetic"


def _recipe(
    decoder: Decoder,
    lineups: Mapping[str, Lineup],
    weights: Mapping[str, float],
    method: str,
    *,
    topk: float,
    average: bool,
    k: int,
) -> MergeRecipe:
    values = tuple(weights.values())
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise OptionError(f"k is a number of tasks, 0 or more, not {k!r}")
    if method == "linear" and not any(values):
        raise OptionError("every weight is 0: nothing is merged")
    if method == "consensus":
        return MergeRecipe(method=method, weights=values, k=k)
    if method == "slerp":
        return MergeRecipe(method="arithmetic", weights=_on_the_sphere(decoder, lineups, values))
    if method != "ties":
        return MergeRecipe(method=method, weights=values)
    trim = Trim(topk)
    majority = Majority(trim)
    if topk == 100:
        _gather(decoder, lineups, [majority])
        return MergeRecipe(
            method=method, weights=values, thresholds=(0.0,) * len(values), sign=majority.sign, average=average
        )
    _gather(decoder, lineups, [*trim.statistics(len(values)), majority])
    least = tuple(struct.unpack("<f", struct.pack("<f", each * _SLACK))[0] for each in trim.least(range(len(values))))
    return MergeRecipe(method=method, weights=values, thresholds=least, sign=majority.sign, average=average)


class Angle:
    """Lengths and inner product of two task vectors, for spherical interpolation."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, 2, dtype=torch.float64)

    def update(self, tile: MergeTile) -> None:
        """Take one tile into account."""
        rows = torch.zeros(2, tile.tau.shape[1], dtype=torch.float64)
        rows[list(tile.tasks)] = tile.tau.double()
        self._sums += rows @ rows.T

    def finish(self) -> None:
        """Nothing is left to do."""

    @property
    def radians(self) -> float:
        """Between them; 0 where one did not move. As many digits as do not depend on the order of sums."""
        (a, dot), (_, b) = self._sums.tolist()
        cosine = dot / math.sqrt(a * b) if a and b else 1.0
        return float(f"{math.acos(max(-1.0, min(1.0, cosine))):.9g}")


def _on_the_sphere(decoder: Decoder, lineups: Mapping[str, Lineup], weights: Sequence[float]) -> tuple[float, ...]:
    """Weights of two task vectors whose sum is their spherical interpolation (Shoemake, SIGGRAPH 1985)."""
    if len(weights) != 2 or abs(sum(weights) - 1) > _SUM_OF_ONE or min(weights) < 0:
        raise OptionError("slerp is of two tasks, whose weights are not negative and sum to 1: 0.3*trec + 0.7*mr")
    angle = Angle()
    _gather(decoder, lineups, [angle])
    sine = math.sin(angle.radians)
    if sine < 1e-6:
        return tuple(weights)
    return tuple(float(f"{math.sin(weight * angle.radians) / sine:.9g}") for weight in weights)


def _gather(decoder: Decoder, lineups: Mapping[str, Lineup], statistics: Sequence[MergeStatistic]) -> None:
    """One pass over the task vectors for each statistic."""
    vectors = TaskVectorReader(decoder, None)
    summed = [lineup for lineup in lineups.values() if lineup.facts.dtype in MASKABLE]

    def tiles(lineup: Lineup, start: int, stop: int) -> list[MergeTile]:
        return [tile for _, _, tile in vectors.tiles(lineup, start, stop)]

    for statistic in statistics:
        for run in ahead(decoder.threads, summed, tiles):
            for tile in run:
                statistic.update(tile)
        statistic.finish()


def _entries(decoder: Decoder, lineups: Mapping[str, Lineup], relatives: Relatives) -> dict[str, Place]:
    """What a reader would not find out by itself: the base's name of a tensor, and what must not be merged."""
    assert relatives.head is not None
    rows: dict[str, Place] = {}
    taken = decoder.places.headed(relatives, {}, "")
    alone = tuple(float(task == relatives.head) for task in relatives.tasks)
    bases = {m.name: base for base, each in lineups.items() for m in each.members if m.task == relatives.head}
    for name, place in taken.items():
        entry = place.entry
        if entry.kind == "tied":
            continue
        if entry.start == () and not _finite(decoder, relatives, name):
            rows[name] = Place("", _like(entry, entry.base, alone), None)
        elif entry.start and relatives.merge.needs_base and entry.base is None and name in bases:
            others = [decoder.places.own(task, name) for task in relatives.tasks]
            if all(each is not None and each.shape == entry.shape and each.dtype in MASKABLE for each in others):
                rows[name] = Place("", _like(entry, bases[name], ()), None)
    return rows


def _like(entry: Entry, base: str | None, start: tuple[float, ...]) -> Entry:
    return Entry(kind="base", dtype=entry.dtype, shape=entry.shape, base=base, start=start)


def _finite(decoder: Decoder, relatives: Relatives, name: str) -> bool:
    """Whether a tensor can be computed with in every task. One that comes from the base by a mask or a delta can."""
    for task in relatives.tasks:
        source = decoder.places.source(task, name)
        entry = decoder.task(task)[source].entry
        if entry.kind in {"binary", "signed", "delta"} and entry.start is None:
            continue
        values = decoder.tensors(task, [source])[source]
        if not bool((values.abs() < _FAR).all()):  # a NaN is not below anything
            return False
    return True


def _apart(
    decoder: Decoder, places: Mapping[str, Place], relatives: Relatives
) -> tuple[dict[str, str], dict[str, str]]:
    """Tensors that are the head's, and those of other tasks that are left out, and why."""
    head = str(relatives.head)
    of_head: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for name, place in places.items():
        entry = place.entry
        if entry.start and (why := _why(decoder, relatives, name, entry)):
            of_head[name] = why
    for task in relatives.tasks:
        for name in decoder.task(task):
            if name not in places:
                dropped.setdefault(name, f"{task} has it and {head} has not")
    return of_head, dropped


def _why(decoder: Decoder, relatives: Relatives, name: str, entry: Entry) -> str:
    """Why a tensor is not merged; nothing where all tasks have the same."""
    others = {task: decoder.places.own(task, name) for task in relatives.tasks}
    if lacking := next((task for task, each in others.items() if each is None), None):
        return f"{relatives.head} has it and {lacking} has not"
    shapes = {task: list(each.shape or ()) for task, each in others.items() if each is not None}
    if odd := next((task for task, shape in shapes.items() if shape != shapes[str(relatives.head)]), None):
        return f"it has shape {shapes[str(relatives.head)]} in {relatives.head} and {shapes[odd]} in {odd}"
    first, *rest = (decoder.tensors(task, [name])[name].reshape(-1).view(torch.uint8) for task in relatives.tasks)
    if all(torch.equal(first, each) for each in rest):
        return ""
    if entry.dtype not in MASKABLE or any(each is not None and each.dtype not in MASKABLE for each in others.values()):
        return f"numbers of type {entry.dtype} are not merged"
    if not _finite(decoder, relatives, name):
        return "it holds NaN, Inf or numbers too large to add"
    return "the base has nothing in its place"
