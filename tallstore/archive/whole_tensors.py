"""What a task stores whole, and why: as its packer says, and where it says nothing, as the archive itself tells.

An archive without the packer's word, or with one that is not known, has the reason that follows from what the base
holds in the tensor's place. What is said is for people to read; nothing is decoded by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tallstore.archive.decode import Decoder
from tallstore.archive.merging.alignment import line_up
from tallstore.format.dtypes import MASKABLE
from tallstore.format.manifest import BaseTensor, Manifest
from tallstore.format.part import Entry

__all__ = ["WholeTensor", "list_wholes"]


@dataclass(frozen=True, kw_only=True)
class WholeTensor:
    """A tensor, or its rows beyond the base's, that a task stores whole and exact."""

    dtype: str
    shape: tuple[int, ...]
    """Of what is stored."""
    bytes: int
    """Coded bytes."""
    why: str
    """By the packer's word where the archive has it, else by what the base has in its place."""


def list_wholes(decoder: Decoder, manifest: Manifest, task: str) -> dict[str, WholeTensor]:
    """By the task's name of the tensor, in the checkpoint's order. Reads headers alone."""
    masks, private = decoder.task(task), decoder.task(task, "private")
    adapter = manifest.tasks[task].adapter is not None
    matched = _matched(decoder, manifest, task)
    wholes = {}
    for name, place in masks.items():
        if name in private:
            stored = private[name].entry
            wholes[name] = WholeTensor(
                dtype=str(stored.dtype),
                shape=stored.shape or (),
                bytes=stored.coded.size if stored.coded else 0,
                why="adapter, kept as it is"
                if adapter
                else _why(name, place.entry, manifest.base.tensors, matched=name in matched),
            )
    return wholes


def _matched(decoder: Decoder, manifest: Manifest, task: str) -> frozenset[str]:
    """Tensors stored whole that have a place in the base, and moved; only as many headers are read as are needed."""
    if all(place.entry.why or place.entry.kind != "private" for place in decoder.task(task).values()):
        return frozenset()
    return frozenset(m.name for lineup in line_up(decoder, manifest, [task]).values() for m in lineup.members)


def _why(name: str, entry: Entry, base: Mapping[str, BaseTensor], *, matched: bool) -> str:
    if entry.kind != "private":
        return "rows beyond the base's"
    there = base.get(name)
    return _TOLD[entry.why or _inferred(entry, there, matched=matched)](entry, there)


def _inferred(entry: Entry, there: BaseTensor | None, *, matched: bool) -> str:
    if matched:
        return "moved"
    return "unmatched" if there is None or there.shape != entry.shape else "type"


def _unmatched(entry: Entry, there: BaseTensor | None) -> str:
    if there is None:
        return "the base has no such tensor"
    if there.shape != entry.shape:
        return f"the base's has another shape: {list(there.shape)}"
    return "the base's of this name is another tensor's"


def _typed(entry: Entry, there: BaseTensor | None) -> str:
    if entry.dtype not in MASKABLE:
        return f"of type {entry.dtype}, which no mask fits"
    return f"the base's is of {f'type {there.dtype}' if there else 'a type'} that no mask fits"


_TOLD: Mapping[str, Callable[[Entry, BaseTensor | None], str]] = {
    "moved": lambda *_: "moved, and no mask is worth it",
    "small": lambda *_: "small: a mask would save nothing",
    "numbers": lambda *_: "it or the base's holds NaN, Inf or numbers too large to add",
    "budget": lambda *_: "the error budget asks for it",
    "unmatched": _unmatched,
    "type": _typed,
}
"""What is said for each word of `WHY`, and for `moved`, which is never written, only inferred."""
