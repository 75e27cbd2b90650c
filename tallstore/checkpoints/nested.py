"""Mappings inside mappings, as trainers save them: which are sets of weights, and which are parts of one.

    {"model": …, "ema": …, "optimizer": …}                     two sets, and a state of the training
    {"model": {"embedding": {"word": {"weight": …}}, "head": …}}  one set, of parts: embedding.word.weight, …

A key that trainers put a whole model under, or that says that it is a copy, holds a set; so do mappings whose tensors
have each other's names and shapes. Others that lie side by side belong together, and none of them is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from torch import Tensor

from tallstore.checkpoints.weight_sets import MAIN, is_copy, other_set
from tallstore.errors import CheckpointError

__all__ = ["NestedState", "left_out", "sets_of", "tree_of"]

_TRAINING = re.compile(r".*(optim|sched|scaler|rng|loops|callbacks|hyper_parameters).*", re.IGNORECASE)
"""Keys whose tensors are the training's and no model's."""
_ALIKE = 0.5
"""Share of the smaller one's tensors by which two mappings are one model twice."""
_DEPTH = 16
_NODES = 1 << 16


@dataclass
class NestedState:
    """A mapping: its values, and the mappings in it that hold tensors, however deep."""

    path: tuple[str, ...]
    values: dict[Any, Any] = field(default_factory=dict)
    """All else, mappings without tensors among it."""
    below: dict[str, NestedState] = field(default_factory=dict)
    training: dict[str, NestedState] = field(default_factory=dict)
    """Those of `below` that are no model's."""

    @property
    def own(self) -> dict[Any, Tensor]:
        """The tensors that it holds itself."""
        return {key: value for key, value in self.values.items() if isinstance(value, Tensor)}

    @property
    def name(self) -> str:
        """What a user calls it."""
        return ".".join(self.path)

    @property
    def holds(self) -> bool:
        """Whether it has tensors of a model."""
        return bool(self.own or self.below)

    def numel(self) -> int:
        """Elements of all its tensors."""
        return sum(t.numel() for t in self.own.values()) + sum(node.numel() for node in self.below.values())

    def walk(self) -> Iterator[NestedState]:
        """It, and all below."""
        yield self
        for node in self.below.values():
            yield from node.walk()

    def flat(self) -> dict[Any, Any]:
        """Its values by their names, those of mappings below joined by dots.

        Raises:
            CheckpointError: two values have one name.
        """
        out = dict(self.values)
        for key, node in self.below.items():
            for name, value in node.flat().items():
                joined = f"{key}.{name}"
                if joined in out:
                    raise CheckpointError(f"holds {joined!r} twice: as one key, and as keys below each other")
                out[joined] = value
        return out


def tree_of(content: Mapping[Any, Any]) -> NestedState:
    """What a mapping holds.

    Raises:
        CheckpointError: mappings lie deeper in each other than any trainer puts them, or there are too many.
    """
    return _Planting().node(content, ())


class _Planting:
    def __init__(self) -> None:
        self._left = _NODES

    def node(self, content: Mapping[Any, Any], path: tuple[str, ...]) -> NestedState:
        self._left -= 1
        if len(path) > _DEPTH or self._left < 0:
            raise CheckpointError(f"mappings in mappings, more than {_DEPTH} deep or {_NODES} in all: no checkpoint")
        out = NestedState(path)
        for key, value in content.items():
            inner = self.node(value, (*path, str(key))) if isinstance(value, Mapping) else None
            if inner is None or not inner.holds:
                out.values[key] = value
            elif _TRAINING.fullmatch(str(key)):
                out.training[str(key)] = inner
            else:
                out.below[str(key)] = inner
        return out


def sets_of(node: NestedState, asked: str | None = None) -> dict[str, dict[Any, Any]]:
    """Sets of weights, by the dotted path of the keys that lead to each.

    Args:
        node: the whole content.
        asked: the set that a user names. One that is only a part of a set is taken by itself.
    """
    whole = list(_whole(node))
    if asked is not None and not any(asked in {each.name, *each.path} for each in whole):
        parts = [each for each in node.walk() if each.path and asked in {each.name, each.path[-1]}]
        if len(parts) == 1:
            whole = parts
    apart = len(whole) > 1
    return {each.name: each.values if apart and not each.path else each.flat() for each in whole}


def _whole(node: NestedState) -> Iterator[NestedState]:
    if not node.below:
        if node.own:
            yield node
    elif _is_one(node):
        yield node
    else:
        if any(_alike(node.own, each.flat()) for each in node.below.values()):
            yield node  # with a copy of it beside its own tensors
        for each in node.below.values():
            yield from _whole(each)


def _is_one(node: NestedState) -> bool:
    """Whether the mappings in one, and the tensors beside them, are one set of weights."""
    own, below = node.own, node.below
    if sum(t.numel() for t in own.values()) > sum(each.numel() for each in below.values()):
        return True
    if any(key in MAIN or is_copy(key) for key in below):
        return False
    if len(below) == 1:
        return any(tensor.numel() > 1 for tensor in own.values())
    return not any(_alike(one.flat(), two.flat()) for one, two in combinations(below.values(), 2))


def _alike(one: Mapping[Any, Any], two: Mapping[Any, Any]) -> bool:
    first, second = ({n: tuple(t.shape) for n, t in each.items() if isinstance(t, Tensor)} for each in (one, two))
    common = sum(second.get(name) == shape for name, shape in first.items())
    return common > 0 and common >= _ALIKE * min(len(first), len(second))


def left_out(node: NestedState, sets: Sequence[str], chosen: str) -> dict[str, str]:
    """What of a content is not in the chosen set: path of keys → why. Values that are no tensors are not looked at."""
    if node.name == chosen:
        told = {each.name: "a state of the training" for each in node.training.values()}
        if len(sets) > 1:
            return told | {name: other_set(name) for name in sets if name != chosen}
        joined = ", ".join(node.below)
        return told | ({f"the keys {joined}": "what is below them comes back by names with dots"} if joined else {})
    if node.path and node.name in sets:
        return {node.name: other_set(node.name)}
    if not any(name.startswith(f"{node.name}." if node.path else "") for name in sets):
        return {node.name: f"other weights; weights={node.name!r} (--weights {node.name}) takes them"}
    told = {
        ".".join((*node.path, str(key))): "a tensor beside the weights" if isinstance(value, Tensor) else "no weights"
        for key, value in node.values.items()
    }
    told |= {each.name: "a state of the training" for each in node.training.values()}
    for each in node.below.values():
        told |= left_out(each, sets, chosen)
    return told
