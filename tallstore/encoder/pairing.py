"""What is left of two checkpoints' names when equal names and the commonest prefix are paired: found by their values.

Towers get a prefix each, modules are renamed, parameters are. Shapes and the ends of names say which tensors may belong
together; that they do is told by their values: a fine-tuned tensor lies close to the one it comes from, and another one
is as far away as any. What is not plain is left unpaired.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from tallstore.checkpoints import Checkpoint, TensorInfo

__all__ = ["CLOSE", "Rest", "common_rows", "distance", "is_float", "prefixes", "suffixes"]

CLOSE = 0.5
"""‖τ‖/‖θ0‖ up to which two tensors are believed to be of one origin; unrelated ones of one scale give 1.4."""
_CLEARLY = 2.0
"""How many times further away the next best one must be."""
_SAMPLE = 1 << 12
"""Elements that are compared of a tensor, from its middle."""
_MEMBERS = 3
"""Tensors that are compared of several that go together."""
_LEAST = 64
"""Elements of a tensor whose values say anything."""
_CANDIDATES = 64
_ROUNDS = 64
_RESIZED_WITHIN = 0.5
"""Rows of a resized tensor (an embedding with added tokens) are shared if the smaller has this share of the larger."""
_NUMBER = re.compile(r"\d+")
_END = re.compile(r"[./]")


def is_float(info: TensorInfo) -> bool:
    """Whether a tensor's values are numbers that training moves."""
    return info.dtype in {"F64", "F32", "F16", "BF16"}


def common_rows(base: TensorInfo, task: TensorInfo) -> int | None:
    """Leading rows that both have, or None if the shapes do not belong together."""
    if base.shape == task.shape:
        return base.shape[0] if base.shape else 1
    if not base.shape or not task.shape or base.shape[1:] != task.shape[1:]:
        return None
    few, many = sorted((base.shape[0], task.shape[0]))
    return few if few >= _RESIZED_WITHIN * many else None


def suffixes(name: str) -> Iterator[str]:
    """The name, and what is left of it after each of its dots, and after each folder, longest first."""
    yield name
    for end in _END.finditer(name):
        yield name[end.end() :]


def prefixes(base: Mapping[str, TensorInfo], task: Mapping[str, TensorInfo]) -> Counter[tuple[str, str]]:
    """Pairs of prefixes, the task's and the base's, with how many names of equal shapes differ by them."""
    by_suffix = _by_suffix(tuple(base))
    votes: Counter[tuple[str, str]] = Counter()
    for name, info in task.items():
        for suffix in suffixes(name):
            fits = [b for b in by_suffix.get(suffix, ()) if base[b].shape == info.shape]
            if len(fits) == 1:
                votes[name.removesuffix(suffix), fits[0].removesuffix(suffix)] += 1
            if suffix in by_suffix:
                break
    return votes


@lru_cache(maxsize=4)  # every task of a zoo is held against the same base, several times
def _by_suffix(names: tuple[str, ...]) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        for suffix in suffixes(name):
            found[suffix].append(name)
    return dict(found)


def distance(base: Checkpoint, task: Checkpoint, pairs: Sequence[tuple[str, str]]) -> float:
    """‖τ‖/‖θ0‖ of the largest of some pairs of the task's and the base's tensors, sampled.

    Infinite where values say nothing.
    """
    known = [(a, b) for a, b in pairs if is_float(task.tensors[a]) and is_float(base.tensors[b])]
    known.sort(key=lambda pair: -task.tensors[pair[0]].numel)
    gap = size = 0.0
    for ours, theirs in known[:_MEMBERS]:
        n = min(task.tensors[ours].numel, base.tensors[theirs].numel)
        if n < _LEAST:
            continue
        start = max(0, n // 2 - _SAMPLE // 2)
        origin = base.read(theirs, start, min(n, start + _SAMPLE)).double()
        tau = task.read(ours, start, min(n, start + _SAMPLE)).double() - origin
        finite = tau.isfinite()
        gap += _squared(tau[finite])
        size += _squared(origin[finite])
    return float((gap / size) ** 0.5) if size else float("inf")


@dataclass
class Rest:
    """The tensors of two checkpoints that have no counterpart yet, by the names they are compared by."""

    base: Checkpoint
    task: Checkpoint
    base_names: dict[str, str]
    """Name to compare by → the base's own."""
    task_names: dict[str, str]
    pairs: dict[str, str] = field(default_factory=dict)
    """The task's own name → the base's own."""

    def pair(self) -> dict[str, str]:
        """Pair what can be paired; by the names of the checkpoints themselves."""
        for _ in range(_ROUNDS):
            if not self._by_prefix():
                break
        self._by_structure()
        return self.pairs

    def _by_prefix(self) -> bool:
        """Take the pair of prefixes that the most names differ by, if values bear it out."""
        ours = {name: self.task.tensors[own] for name, own in self.task_names.items()}
        theirs = {name: self.base.tensors[own] for name, own in self.base_names.items()}
        votes = prefixes(theirs, ours)
        for (task_prefix, base_prefix), _ in sorted(votes.items(), key=lambda item: (-item[1], item[0])):
            pairs = [
                (name, base_prefix + name.removeprefix(task_prefix))
                for name in self.task_names
                if name.startswith(task_prefix) and base_prefix + name.removeprefix(task_prefix) in self.base_names
            ]
            pairs = [(name, other) for name, other in pairs if common_rows(theirs[other], ours[name]) is not None]
            if self._distance(pairs) <= CLOSE:
                self._take(pairs)
                return True
        return False

    def _by_structure(self) -> None:
        """Pair tensors whose names differ in nothing but words: as many, of the same shapes, numbered alike."""
        ours, theirs = _families(self.task, self.task_names), _families(self.base, self.base_names)
        alike: dict[tuple[tuple[int, ...], ...], list[_Family]] = defaultdict(list)
        for family in theirs:
            alike[family.shapes].append(family)
        offers = []
        for family in ours:
            rated = sorted(
                (
                    (self._distance(family.pairs(other)), number)
                    for number, other in enumerate(alike[family.shapes][:_CANDIDATES])
                ),
            )
            if rated and rated[0][0] <= CLOSE and (len(rated) == 1 or rated[1][0] > _CLEARLY * rated[0][0]):
                offers.append((rated[0][0], family, alike[family.shapes][rated[0][1]]))
        chosen = Counter(id(other) for _, _, other in offers)
        for _, family, other in offers:
            if chosen[id(other)] == 1:
                self._take(family.pairs(other))

    def _take(self, pairs: Sequence[tuple[str, str]]) -> None:
        for name, other in pairs:
            if name in self.task_names and other in self.base_names:
                self.pairs[self.task_names.pop(name)] = self.base_names.pop(other)

    def _distance(self, pairs: Sequence[tuple[str, str]]) -> float:
        return distance(self.base, self.task, [(self.task_names[a], self.base_names[b]) for a, b in pairs])


@dataclass(frozen=True)
class _Family:
    """Tensors whose names differ in numbers alone, in the order of those."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def pairs(self, other: _Family) -> list[tuple[str, str]]:
        return list(zip(self.names, other.names, strict=True))


def _families(checkpoint: Checkpoint, names: Mapping[str, str]) -> list[_Family]:
    grouped: dict[str, list[tuple[tuple[int, ...], str]]] = defaultdict(list)
    for name in names:
        numbers = tuple(int(each) for each in _NUMBER.findall(name))
        grouped[_NUMBER.sub("#", name)].append((numbers, name))
    families = []
    for members in grouped.values():
        ordered = tuple(name for _, name in sorted(members))
        families.append(_Family(ordered, tuple(checkpoint.tensors[names[name]].shape for name in ordered)))
    return families


def _squared(values: Tensor) -> float:
    return float(torch.dot(values, values))
