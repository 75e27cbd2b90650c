"""What a merged model must be, worked out from the archive's ingredients in numpy; and an archive of two groups."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from support import State, noise, raw, tiny_zoo, to_numpy

import tallstore
from tallstore import codecs
from tallstore.format.manifest import MANIFEST, Group, Manifest, PartRecord
from tallstore.format.part import PartHeader
from tallstore.zoo import Zoo

RECIPES = ("solo", "fit", "tall", "ties", "mean", "emr")
SUM_IN_VECTOR = {"tall": 1, "mean": 3}
"""Recipes whose v is the sum of three task vectors, divided by this."""


def zoo_with_heads(dtype: torch.dtype = torch.float32) -> tuple[State, dict[str, State]]:
    """Names with a prefix that the base lacks, a head each, and small tensors that are stored whole."""
    base, tasks = tiny_zoo(3, dtype)
    named = {t: {f"body.{name}": tensor for name, tensor in state.items()} for t, state in tasks.items()}
    for n, state in enumerate(named.values(), start=2):
        state["head.weight"] = noise(n, 16, seed=n, dtype=dtype)
    return base, named


def tau(zoo: Zoo, task: str, name: str, original: torch.Tensor) -> np.ndarray:
    """The decoded task vector of one tensor, flat; `original` is needed where it comes back bit for bit."""
    facts = zoo.tensors(task)[name]
    base_name = name.removeprefix("body.")
    base = zoo.base(base_name)
    wide = np.float64 if base.dtype == torch.float64 else np.float32
    if facts.kind == "sampled":
        original = zoo.state_dict(task, names=[name])[name]
    if facts.kind in {"private", "lossless", "sampled"}:
        return to_numpy(original).astype(wide) - to_numpy(base.to(original.dtype)).astype(wide)
    if facts.kind == "base":
        return np.zeros(base.numel(), wide)
    if facts.kind == "delta":
        return _delta(zoo, task, name).astype(wide)
    mask = raw(zoo.mask(task, name)).view(np.int8)
    scales = np.ones(len(mask), wide)
    if facts.scales is not None:
        scales = np.repeat(np.array(facts.scales, wide), facts.chunk)[: len(mask)]
    return mask.astype(wide) * (scales * to_numpy(zoo.vector(base_name)).astype(wide))


def _delta(zoo: Zoo, task: str, name: str) -> np.ndarray:
    place = zoo._decoder.task(task)[name]
    coded = place.entry.coded
    assert coded is not None
    sizes = [min(coded.chunk, place.entry.numel - i * coded.chunk) for i in range(len(coded.chunks))]
    codec = codecs.VECTOR[coded.codec]
    return np.concatenate([codec.decode(zoo._reader.chunk(place, i, name), n) for i, n in enumerate(sizes)])


def summed(zoo: Zoo, recipe: str, name: str, rows: list[np.ndarray]) -> np.ndarray:
    """Στ of one tensor: v where the recipe says so, else the decoded task vectors, one after the other."""
    kinds = {zoo.tensors(task)[name].kind for task in zoo.tasks}
    if recipe in SUM_IN_VECTOR and kinds <= {"binary", "signed", "base"}:
        return to_numpy(zoo.vector(name.removeprefix("body."))).astype(rows[0].dtype) * rows[0].dtype.type(
            SUM_IN_VECTOR[recipe]
        )
    total = np.zeros_like(rows[0])
    for row in rows:
        total = total + row
    return total


def moved(base: torch.Tensor, step: np.ndarray) -> torch.Tensor:
    """θ0 + α·δ, rounded to the base's type; θ0 itself where that is 0."""
    start = to_numpy(base)
    there = torch.from_numpy(start.astype(step.dtype) + step).to(base.dtype)
    return torch.where(torch.from_numpy(step == 0), base.reshape(-1), there).reshape(base.shape)


def two_groups(folder: Path) -> tuple[Path, State]:
    """An archive whose tasks a and b share one vector, and c and d another: made of two archives."""
    base, tasks = tiny_zoo(4)
    halves = [{t: tasks[t] for t in "ab"}, {t: tasks[t] for t in "cd"}]
    for n, half in enumerate(halves):
        tallstore.pack(base, half, folder / f"half-{n}", recipe="fit")
    with tallstore.open(folder / "half-0") as first, tallstore.open(folder / "half-1") as second:
        one, two = first.manifest, second.manifest
    both = folder / "both"
    shutil.copytree(folder / "half-0", both)
    parts = dict(one.parts)
    for task in "cd":
        shutil.copytree(folder / "half-1" / "tasks" / task, both / "tasks" / task)
        parts |= {path: record for path, record in two.parts.items() if path.startswith(f"tasks/{task}/")}
    data, record = _renamed((folder / "half-1/vector/0.safetensors").read_bytes(), two.parts["vector/0.safetensors"])
    (both / "vector/1.safetensors").write_bytes(data)
    parts["vector/1.safetensors"] = record
    moved_tasks = {t: replace(task, group="1") for t, task in two.tasks.items()}
    group = Group(id="1", tasks=("c", "d"), parts=("vector/1.safetensors",), recipe={"id": "fit", "kind": "binary"})
    manifest = Manifest(
        writer=one.writer, base=one.base, groups=(*one.groups, group), tasks={**one.tasks, **moved_tasks}, parts=parts
    )
    (both / MANIFEST).write_bytes(manifest.to_bytes())
    return both, base


def _renamed(part: bytes, record: PartRecord) -> tuple[bytes, PartRecord]:
    """A vector's part as that of group 1."""
    assert record.header_size is not None
    header = PartHeader.from_bytes(part[: record.header_size], len(part), "test")
    stored = sorted(header.offsets, key=lambda name: header.offsets[name])
    head = replace(header, owner="1").to_bytes(stored)
    data = head + part[record.header_size :]
    return data, PartRecord(
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        header_size=len(head),
        header_sha256=hashlib.sha256(head).hexdigest(),
    )
