"""Archives that every reader must refuse. Each spoils one thing in a sound archive; all else, hashes too, is right.

Where a reader gets as far as a task or a tensor before it can tell, one archive holds several spoiled ones, each to be
refused when it is asked for, beside a sound one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .build import Archive, Item, Part, ZipEntry, mask, noted, tall, vector, whole
from .numbers import Tensor, floats

MASK, PRIVATE = "tasks/a/mask.safetensors", "tasks/a/private.safetensors"
VECTOR, BASE = "vector/0.safetensors", "base/base.safetensors"
Files = Mapping[str, bytes]


@dataclass
class Case:
    """One invalid vector: what is raised, by which step, and a piece of the message."""

    about: str
    error: str
    at: str
    mentions: str = ""
    files: Files | None = None
    """As a folder."""
    file: bytes | None = None
    """As a `.tall` file."""
    given: Mapping[str, Tensor] = field(default_factory=dict)
    """The base that the reader's user gives."""
    tasks: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Spoiled tasks: about, error, mentions. Task `a` is sound."""
    tensors: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Spoiled tensors of task `a`: about, error, mentions."""


CASES: dict[str, Case] = {}


def zipped(files: Files) -> bytes:
    """As a `.tall` file."""
    return tall([ZipEntry(path, data) for path, data in files.items()])


def add(name: str, about: str, error: str, at: str, mentions: str, files: Files, **more: Any) -> None:
    """A vector: as a `.tall` file, or as a folder if there is a manifest alone."""
    if set(files) <= {"tall.json"}:
        CASES[name] = Case(about, error, at, mentions, files=files, **more)
    else:
        CASES[name] = Case(about, error, at, mentions, file=zipped(files), **more)


def bare() -> Archive:
    """A task without tensors: enough for all that is refused before a part is read."""
    return Archive(groups=[("0", ["a"], {})], tasks={"a": {"mask": {MASK: Part("mask", "a", {})}}})


def small() -> Archive:
    """One tensor `w` of eight U8, stored whole; no base."""
    archive = bare()
    tensor = Tensor("U8", (8,), bytes(range(8)))
    archive.tasks["a"]["mask"][MASK].items["w"] = noted(tensor)
    archive.tasks["a"]["private"] = {PRIVATE: Part("private", "a", {"w": whole(tensor)})}
    return archive


def sound() -> Archive:
    """One tensor `w` of eight BF16, masked; codecs raw, f32, bits."""
    base = floats("BF16", np.arange(8) / 4 - 1)
    values, marks = np.full(8, 0.5, np.float32), np.array([1, 0, 0, 1, 1, 0, 1, 0], np.uint8)
    return Archive(
        base={"w": base},
        base_parts={BASE: Part("base", "", {"w": whole(base)})},
        groups=[("0", ["a"], {VECTOR: Part("vector", "0", {"w": vector(values, (8,))})})],
        tasks={"a": {"mask": {MASK: Part("mask", "a", {"w": mask(marks, "binary", "BF16", (8,), "w")})}}},
    )


def tied(to: str) -> Item:
    """An entry of kind `tied`."""
    return {"kind": "tied", "to": to}, None
