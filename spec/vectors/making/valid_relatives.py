"""Valid vectors of version 1.2: tasks made of other tasks, with what they decode to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .build import CHUNK, Archive, Facts, Item, Part, kept, lossless, mask, vector, whole
from .numbers import Array, Tensor, converted, floats, masked, narrow, noise, symbols, wide
from .valid import MASKABLE, Case, case

N = 2500
SHAPE = (N // 10, 10)


class Family:
    """One base, one group, and tasks by name."""

    def __init__(self) -> None:
        self.base: dict[str, Tensor] = {}
        self.vectors: dict[str, Item] = {}
        self.items: dict[str, dict[str, Item]] = {}
        self.privates: dict[str, dict[str, Item]] = {}
        self.facts: dict[str, Facts] = {}
        self.decoded: dict[str, dict[str, Tensor]] = {}

    def put(self, task: str, name: str, item: Item | None, tensor: Tensor) -> None:
        """A task's tensor: its entry, none where that follows from its relatives, and what it decodes to."""
        self.items.setdefault(task, {})
        if item is not None:
            self.items[task][name] = item
        self.decoded.setdefault(task, {})[name] = tensor

    def private(self, task: str, name: str, tensor: Tensor) -> None:
        """A tensor stored whole."""
        self.privates.setdefault(task, {})[name] = whole(tensor)
        self.put(task, name, ({"kind": "private", "dtype": tensor.dtype, "shape": list(tensor.shape)}, None), tensor)

    def made_of(self, task: str, tasks: Sequence[str], merge: Facts, head: str | None = None) -> None:
        """What a task is made of."""
        own = {} if head is None else {"head": head}
        self.facts[task] = {"relatives": {"tasks": list(tasks), "merge": merge, **own}}
        self.items.setdefault(task, {})

    def archive(self) -> Archive:
        """The archive."""
        tasks: dict[str, dict[str, dict[str, Part]]] = {}
        for task, items in self.items.items():
            kind = "relative" if task in self.facts else "mask"
            part = Part(kind, task, items, version="1.2" if kind == "relative" else "1.1")
            tasks[task] = {"mask": {f"tasks/{task}/mask.safetensors": part}}
            if task in self.privates:
                own = Part("private", task, self.privates[task])
                tasks[task]["private"] = {f"tasks/{task}/private.safetensors": own}
        vectors = {"vector/0.safetensors": Part("vector", "0", self.vectors)}
        return Archive(
            base=self.base,
            base_parts={"base/base.safetensors": Part("base", "", {n: whole(t) for n, t in self.base.items()})},
            groups=[("0", list(tasks), vectors)],
            tasks=tasks,
            task_facts=self.facts,
            version="1.2",
        )

    def case(self, about: str) -> Case:
        """The vector."""
        return Case(about, self.archive(), self.decoded, file=True)


def plain(*, types: Sequence[str] = MASKABLE) -> Family:
    """Tasks a, b and c, each with a masked tensor of every type, one that is the base's, and a head of its own shape."""
    family = Family()
    for dtype in types:
        base = floats(dtype, noise(f"relatives {dtype}", N, 118, 126), SHAPE)
        values = noise(f"relatives vector {dtype}", N, 110, 118)
        family.base[dtype], family.vectors[dtype] = base, vector(values, SHAPE)
        for task in "abc":
            marks = symbols(f"relatives {task} {dtype}", N, "signed", 0.7)
            item = mask(marks, "signed", dtype, SHAPE, dtype, scales=[1.0] * -(-N // CHUNK))
            family.put(task, dtype, item, Tensor(dtype, SHAPE, masked(base, dtype, values, marks)))
    family.base["same"] = floats("F32", noise("relatives same", 6), (6,))
    family.base["count"] = Tensor("I64", (2,), bytes(range(16)))
    for rows, task in enumerate("abc", 2):
        family.put(task, "same", kept("F32", (6,), "same"), family.base["same"])
        family.put(task, "count", kept("I64", (2,), "count"), family.base["count"])
        family.private(task, "head", floats("F32", noise(f"relatives head {task}", rows * 3), (rows, 3)))
        family.private(task, "bias", floats("BF16", noise(f"relatives bias {task}", 5), (5,)))
    return family


def merged(family: Family, name: str, dtype: str, tasks: Sequence[str], merge: Facts) -> bytes:
    """What relatives.md says, in numpy."""
    x = [wide(family.decoded[t][name].dtype, family.decoded[t][name].data, dtype) for t in tasks]
    kind = x[0].dtype.type
    c = [kind(weight) for weight in merge["weights"]]
    if merge["method"] == "linear":
        return narrow(dtype, _sum([a * b for a, b in zip(c, x, strict=True)]))
    base = family.base[name]
    zero = wide(base.dtype, base.data, dtype)
    moved = [each - zero for each in x]
    if merge["method"] == "ties":
        moved = [np.where(abs(d) >= kind(t), d, kind(0)) for d, t in zip(moved, merge["thresholds"], strict=True)]
        total = _sum(moved)
        plus = total > 0 if merge["sign"] < 1 else total >= 0
        agree = [np.where(plus, d > 0, d < 0) for d in moved]
        step = _sum([np.where(on, d * w, kind(0)) for on, d, w in zip(agree, moved, c, strict=True)])
        if merge["average"]:
            step = step / np.maximum(np.sum(agree, axis=0), 1).astype(kind)
        return narrow(dtype, zero + step)
    step = _sum([d * w for d, w in zip(moved, c, strict=True)])
    if merge["method"] == "consensus":
        on = np.sum([d != 0 for d in moved], axis=0) >= merge["k"]
        return narrow(dtype, np.where(on, zero + step, zero))
    return narrow(dtype, zero + step)


def _sum(rows: Sequence[Array]) -> Any:
    total: Any = rows[0].copy()
    for row in rows[1:]:
        total = total + row
    return total


def recipe(family: Family, task: str, tasks: Sequence[str], merge: Facts, head: str) -> None:
    """A task that is a merge, and nothing of its own."""
    family.made_of(task, tasks, merge, head)
    for name, tensor in family.decoded[head].items():
        fits = merge["method"] == "linear" or name in family.base
        if name in {"count", "head"} or not fits:
            family.put(task, name, None, tensor)
        else:
            data = merged(family, name, tensor.dtype, tasks, merge)
            family.put(task, name, None, Tensor(tensor.dtype, tensor.shape, data))


@case
def merges() -> Case:
    """Every method, in every type, and a merge of a merge."""
    family = plain()
    recipe(family, "linear", "ab", {"method": "linear", "weights": [0.6, 0.4]}, "a")
    recipe(family, "arithmetic", "abc", {"method": "arithmetic", "weights": [0.5, -0.25, 1]}, "c")
    recipe(family, "consensus", "cab", {"method": "consensus", "weights": [0.3, 0.3, 0.7], "k": 2}, "b")
    limits = [float(np.float32(x)) for x in (2e-3, 1e-3, 4e-3)]
    ties: Facts = {"method": "ties", "weights": [1, 0.5, 2], "thresholds": limits, "sign": 1, "average": False}
    recipe(family, "ties", "abc", ties, "a")
    recipe(family, "average", "abc", ties | {"sign": -1, "average": True, "thresholds": [0, 0, 0]}, "b")
    recipe(family, "again", ["linear", "ties"], {"method": "linear", "weights": [0.125, 0.875]}, "ties")
    return family.case("merges by linear, arithmetic, consensus, ties (summed, averaged), and a merge of merges")


@case
def parents() -> Case:
    """Tasks coded against another, and each kind of entry on a start."""
    family = plain(types=("F32", "BF16"))
    parent: Facts = {"method": "linear", "weights": [1]}
    before, task = family.decoded["a"], "child"
    family.made_of(task, ["a"], parent)
    moved = floats("F32", wide("F32", before["F32"].data, "F32") + np.float32(2**-12) * (np.arange(N) % 3 == 0), SHAPE)
    family.put(task, "F32", lossless(moved, before["F32"], "F32", start=[]), moved)
    shift = noise("relatives shift", N, 108, 112)
    facts, coded = vector(shift, SHAPE)
    item = facts | {"kind": "delta", "dtype": "BF16", "base": "BF16", "start": [], "shape": list(SHAPE)}, coded
    work = wide("BF16", before["BF16"].data, "BF16") + shift
    family.put(task, "BF16", item, Tensor("BF16", SHAPE, narrow("BF16", work)))
    family.put(task, "same", kept("F32", (6,), "same"), family.base["same"])
    family.put(task, "count", kept("I64", (2,), "count", start=[1]), before["count"])
    own = floats("F32", noise("relatives more rows", 3), (1, 3))
    longer: Item = ({"kind": "base", "dtype": "F32", "shape": [3, 3], "rows": 2, "start": []}, None)
    family.privates[task] = {"head": whole(own)}
    family.put(task, "head", longer, Tensor("F32", (3, 3), before["head"].data + own.data))
    family.put(task, "tie", ({"kind": "tied", "to": "F32"}, None), moved)
    narrowed: Item = ({"kind": "base", "dtype": "F16", "shape": [5], "start": [1.0]}, None)
    family.put(task, "bias", narrowed, Tensor("F16", (5,), converted(before["bias"], "F16")))
    family.made_of("grandchild", ["child", "b"], {"method": "linear", "weights": [0.75, 0.25]})
    pair = merged(family, "F32", "F32", ["child", "b"], {"method": "linear", "weights": [0.75, 0.25]})
    values, marks = noise("relatives vector F32", N, 110, 118), symbols("relatives grandchild", N, "binary", 0.3)
    start = Tensor("F32", SHAPE, pair)
    item = mask(marks, "binary", "F32", SHAPE, "F32", start=[], scales=[0.5] * -(-N // CHUNK))
    family.put("grandchild", "F32", item, Tensor("F32", SHAPE, masked(start, "F32", values, marks, 0.5)))
    alone: Item = ({"kind": "base", "dtype": "BF16", "shape": list(SHAPE), "start": [0.0, 1.0]}, None)
    family.put("grandchild", "BF16", alone, family.decoded["b"]["BF16"])
    return family.case("a child by every kind of entry, rows of a parent's, and a grandchild of two tasks")


@case
def merge_with_exceptions() -> Case:
    """A merge that says of some tensors what they are, and has one beside."""
    family = plain(types=("F32",))
    merge: Facts = {"method": "linear", "weights": [0.5, 0.5]}
    recipe(family, "mix", "ab", merge, "b")
    other: Item = ({"kind": "base", "dtype": "F32", "shape": list(SHAPE), "base": "F32", "start": [2, -1]}, None)
    data = merged(family, "F32", "F32", "ab", {"method": "linear", "weights": [2, -1]})
    family.put("mix", "F32", other, Tensor("F32", SHAPE, data))
    family.private("mix", "head", floats("F32", noise("relatives own head", 4), (4, 1)))
    family.private("mix", "beside", floats("F64", noise("relatives beside", 2), (2,)))
    return family.case("a merge whose own part has other weights for one tensor, another head, and one more tensor")
