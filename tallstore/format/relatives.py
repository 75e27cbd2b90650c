"""What a task is made of other than the base: tasks of the same archive, and how they are merged.

A merge of tasks is a recipe of a few numbers; a task that was tuned from another one, or is a later version of it, is
coded against that: the merge of one task, with weight 1. What is said here is checked when the manifest is read: every
name is there, nothing refers to itself, and no task costs more than `limits.CHAIN` and `limits.CHAIN_WORK` allow.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tallstore.errors import CodecError, FormatError
from tallstore.format import limits
from tallstore.format.safetensors import is_count

__all__ = ["METHODS", "MergeRecipe", "Relatives", "check_relatives", "check_weights", "with_relatives"]

METHODS = ("linear", "arithmetic", "consensus", "ties")
"""How weights are merged: see `spec/arithmetic.md`. All but the first are about differences from the base."""


@dataclass(frozen=True, kw_only=True)
class MergeRecipe:
    """How the weights of several tasks become one."""

    method: str
    weights: tuple[float, ...]
    """A factor for each task."""
    k: int = 0
    """Of consensus: what fewer tasks changed is the base's."""
    thresholds: tuple[float, ...] = ()
    """Of ties: for each task the least magnitude of a difference that counts, a float32."""
    sign: int = 0
    """Of ties: what is elected where differences sum to 0: 1, or −1 for anything else."""
    average: bool = False
    """Of ties: whether differences of the elected sign are averaged, not summed."""

    @property
    def needs_base(self) -> bool:
        """Whether it is about differences from the base."""
        return self.method != "linear"

    def to_json(self) -> dict[str, Any]:
        """As JSON: the members of its method alone."""
        out: dict[str, Any] = {"method": self.method, "weights": list(self.weights)}
        if self.method == "consensus":
            out["k"] = self.k
        if self.method == "ties":
            out |= {"thresholds": list(self.thresholds), "sign": self.sign, "average": self.average}
        return out

    @classmethod
    def from_json(cls, value: Any, count: int, where: str) -> MergeRecipe:
        """Parse and validate; of `count` tasks."""
        if not isinstance(value, dict) or not isinstance(value.get("method"), str):
            raise FormatError(f"{where}: not a merge")
        method = value["method"]
        if method not in METHODS:
            raise CodecError(f"{where}: merging method {method!r} is unknown; a newer tallstore may read it")
        weights = check_weights(value.get("weights"), count, where)
        if method == "consensus":
            if not is_count(value.get("k")):
                raise FormatError(f"{where}: k {value.get('k')!r} is not a whole number ≥ 0")
            return cls(method=method, weights=weights, k=value["k"])
        if method != "ties":
            return cls(method=method, weights=weights)
        thresholds = check_weights(value.get("thresholds"), count, where, "thresholds")
        if any(each < 0 or _single(each) != each for each in thresholds):
            raise FormatError(f"{where}: thresholds are magnitudes that a float32 holds")
        if value.get("sign") not in {-1, 0, 1} or type(value["sign"]) is not int:
            raise FormatError(f"{where}: sign {value.get('sign')!r} is none of -1, 0, 1")
        if not isinstance(value.get("average"), bool):
            raise FormatError(f"{where}: average is neither true nor false")
        return cls(method=method, weights=weights, thresholds=thresholds, sign=value["sign"], average=value["average"])


@dataclass(frozen=True, kw_only=True)
class Relatives:
    """The tasks that a task is made of."""

    tasks: tuple[str, ...]
    merge: MergeRecipe
    head: str | None = None
    """One of `tasks`, whose names, shapes and types the task has but for those that its own parts list, and whose
    tensors, where they cannot be merged. None: the task has the tensors that its parts list."""

    @property
    def parent(self) -> str | None:
        """The task that it is coded against, where that is one alone; None for a merge."""
        alone = len(self.tasks) == 1 and self.merge.method == "linear" and self.merge.weights == (1.0,)
        return self.tasks[0] if alone else None

    @property
    def shares(self) -> bool:
        """Whether the task is coded as any other, and only has tensors that others have too: every weight is 0."""
        return self.merge.method == "linear" and not any(self.merge.weights)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        head = {} if self.head is None else {"head": self.head}
        return {"tasks": list(self.tasks), "merge": self.merge.to_json(), **head}

    @classmethod
    def from_json(cls, value: Any, where: str) -> Relatives:
        """Parse and validate what can be told without the other tasks."""
        tasks = value.get("tasks") if isinstance(value, dict) else None
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise FormatError(f"{where}: no list of tasks")
        if not 1 <= len(tasks) <= limits.RELATIVES or len(set(tasks)) != len(tasks):
            raise FormatError(f"{where}: {len(tasks)} tasks, where 1 to {limits.RELATIVES} different ones are allowed")
        head = value.get("head")
        if "head" in value and head not in tasks:
            raise FormatError(f"{where}: head {head!r} is none of its tasks")
        return cls(tasks=tuple(tasks), merge=MergeRecipe.from_json(value.get("merge"), len(tasks), where), head=head)


def check_weights(value: Any, count: int, where: str, what: str = "weights") -> tuple[float, ...]:
    """As many numbers as there are tasks, each within a float32's range."""
    if not isinstance(value, list) or len(value) != count or not all(type(each) in {int, float} for each in value):
        raise FormatError(f"{where}: {what} are not {count} number{'' if count == 1 else 's'}")
    if any(not math.isfinite(_single(each)) for each in value):
        raise FormatError(f"{where}: {what} that no float32 can hold")
    return tuple(float(each) for each in value)


def _single(value: float) -> float:
    """Rounded to float32; infinite where that is too small for it."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


def check_relatives(relatives: Mapping[str, Relatives], names: Iterable[str], where: str) -> None:
    """Raise FormatError for a task whose relatives are not there, lead back to it, or are too many to decode.

    Args:
        relatives: by task, of those that have any.
        names: all tasks.
        where: for messages.
    """
    known = set(names)
    for task, related in relatives.items():
        if missing := next((name for name in related.tasks if name not in known), None):
            raise FormatError(f"{where}: task {task!r} is made of {missing!r}, which is not there")
    depth, work = dict.fromkeys(known, 0), dict.fromkeys(known, 1)
    waiting = {task: len(related.tasks) for task, related in relatives.items()}
    needed_by: dict[str, list[str]] = {}
    for task, related in relatives.items():
        for name in related.tasks:
            needed_by.setdefault(name, []).append(task)
    ready = deque(name for name in known if name not in waiting)
    while ready:
        name = ready.popleft()
        for task in needed_by.get(name, ()):
            depth[task], work[task] = max(depth[task], depth[name] + 1), work[task] + work[name]
            if depth[task] > limits.CHAIN:
                raise FormatError(f"{where}: task {task!r} is at the end of a chain of more than {limits.CHAIN}")
            if work[task] > limits.CHAIN_WORK:
                raise FormatError(f"{where}: task {task!r} is made of more than {limits.CHAIN_WORK} tasks in all")
            waiting[task] -= 1
            if not waiting[task]:
                del waiting[task]
                ready.append(task)
    if waiting:
        raise FormatError(f"{where}: task {next(iter(waiting))!r} is made of tasks that are made of it")


def with_relatives(relatives: Callable[[str], Relatives | None], tasks: Iterable[str]) -> list[str]:
    """Tasks and all that they are made of, each once."""
    needed: dict[str, None] = {}
    waiting = deque(tasks)
    while waiting:
        task = waiting.popleft()
        if task not in needed:
            needed[task] = None
            related = relatives(task)
            waiting += related.tasks if related is not None else ()
    return list(needed)
