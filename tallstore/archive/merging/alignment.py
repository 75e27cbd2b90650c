"""Tasks side by side: for each base tensor, the tensors of several tasks that come from it.

What merging and mask statistics walk along. A tensor that is stored whole keeps no word of where it comes from: it is
the base's if that has one of its type and shape, under its name or with the prefix changed as in the task's others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Place
from tallstore.format.dtypes import MASKABLE
from tallstore.format.manifest import BaseTensor, Manifest
from tallstore.format.part import CONDITIONAL_KINDS, Entry
from tallstore.kernels.reference import SYMBOL_BITS

__all__ = ["DECODED", "Lineup", "Member", "line_up"]

DECODED = frozenset({"private", "tied", "relative"}) | CONDITIONAL_KINDS
"""Kinds of which no task vector is stored: it is the decoded tensor, less the base's."""

_WINDOW = 1 << 20


@dataclass(frozen=True)
class Member:
    """A task's tensor that comes from a base tensor."""

    index: int
    """Of the task, among those that were asked for."""
    task: str
    group: str
    name: str
    entry: Entry

    @property
    def kind(self) -> str:
        """base, binary, signed, delta, lossless, sampled, private (stored whole), relative or tied.

        Tied: see `untied_in_some`.

        Relative is what builds on other tasks' weights, whatever its entry's own kind.
        """
        return self.entry.kind if self.entry.start is None else "relative"

    @property
    def source(self) -> str:
        """The task's tensor that has its bytes: itself, unless it is tied."""
        return self.name if self.entry.to is None else self.entry.to

    @property
    def masked(self) -> bool:
        """Whether it is a mask over its group's vector."""
        return self.kind in SYMBOL_BITS

    def scale(self, start: int) -> float:
        """s at one element."""
        if self.entry.scales is None or self.entry.coded is None:
            return 1.0
        return self.entry.scales[start // self.entry.coded.chunk]


@dataclass(frozen=True)
class Lineup:
    """A base tensor and the tensors that come from it, at most one a task, in the tasks' order."""

    base: str
    facts: BaseTensor
    numel: int
    members: tuple[Member, ...]

    @property
    def chunks(self) -> list[int]:
        """The sizes of chunks that occur: powers of two."""
        return [m.entry.coded.chunk for m in self.members if m.entry.coded is not None]

    def windows(self) -> Iterator[tuple[int, int]]:
        """Runs of elements that begin and end where chunks do, whoever's."""
        size = max(self.chunks, default=_WINDOW)
        for start in range(0, self.numel, size):
            yield start, min(start + size, self.numel)

    def spans(self, start: int, stop: int, longest: int) -> Iterator[tuple[int, int, tuple[Member, ...]]]:
        """Cut a window into runs within one chunk, at most so long, that the same members have throughout."""
        size = min([longest, *self.chunks])
        ends = {m.entry.covered for m in self.members if start < m.entry.covered < stop}
        cuts = sorted({*range(start, stop, size), *ends, stop})
        for a, b in pairwise(cuts):
            yield a, b, tuple(m for m in self.members if m.entry.covered >= b)


def line_up(decoder: Decoder, manifest: Manifest, tasks: Sequence[str]) -> dict[str, Lineup]:
    """By base tensor, in the base's order; those that no task has are left out."""
    members: dict[str, list[Member]] = {name: [] for name in manifest.base.tensors}
    known = {n: p.entry.base for t in tasks for n, p in decoder.task(t).items() if p.entry.base is not None}
    for index, task in enumerate(tasks):
        group = manifest.tasks[task].group
        for name, base, entry in _sources(decoder.task(task), known, manifest.base.tensors):
            members[base].append(Member(index, task, group, name, entry))
    return {
        name: Lineup(name, facts, facts.numel, tuple(members[name]))
        for name, facts in manifest.base.tensors.items()
        if members[name]
    }


def _sources(
    places: Mapping[str, Place], known: Mapping[str, str], base: Mapping[str, BaseTensor]
) -> Iterator[tuple[str, str, Entry]]:
    """A task's tensors that come from the base, with the base's names of them. Each base tensor serves once."""
    by_base: dict[str, str] = {}
    for name, place in places.items():
        if place.entry.base is not None:
            by_base.setdefault(place.entry.base, name)
    said = {name: base for base, name in by_base.items()}
    taken = set(by_base)
    ours, theirs = _prefixes(said)
    for name, place in places.items():
        if name in said:
            if place.entry.kind != "lossless" or {place.entry.dtype, base[said[name]].dtype} <= set(MASKABLE):
                yield name, said[name], place.entry
            continue
        own = place.entry.kind == "private" or (place.entry.start is not None and place.entry.rows is None)
        if not own or place.entry.dtype not in MASKABLE:
            continue
        renamed = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        for candidate in (known.get(name, name), renamed):
            facts = base.get(candidate)
            fits = facts is not None and facts.shape == place.entry.shape and facts.dtype in MASKABLE
            if fits and candidate not in taken:
                taken.add(candidate)
                yield name, candidate, place.entry
                break


def _prefixes(said: Mapping[str, str]) -> tuple[str, str]:
    """What most of a task's names begin with, and what the base's begin with in its place."""
    votes = Counter(_apart(name, base) for name, base in said.items())
    return votes.most_common(1)[0][0] if votes else ("", "")


def _apart(left: str, right: str) -> tuple[str, str]:
    a, b = left.split("."), right.split(".")
    same = 0
    while same < min(len(a), len(b)) and a[-1 - same] == b[-1 - same]:
        same += 1
    suffix = ".".join(a[len(a) - same :])
    return left.removesuffix(suffix), right.removesuffix(suffix)
