"""What a task stores whole, and why, as far as the archive itself tells.

Nobody's word is taken for it: the reason follows from what the base has in the tensor's place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tallstore.archive.decode import Decoder
from tallstore.archive.lineup import line_up
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


def list_wholes(decoder: Decoder, manifest: Manifest, task: str) -> dict[str, WholeTensor]:
    """By the task's name of the tensor, in the checkpoint's order. Reads headers alone."""
    masks, private = decoder.task(task), decoder.task(task, "private")
    lineups = line_up(decoder, manifest, [task])
    matched = {member.name for lineup in lineups.values() for member in lineup.members}
    found = {}
    for name, place in masks.items():
        if name in private:
            stored = private[name].entry
            found[name] = WholeTensor(
                dtype=str(stored.dtype),
                shape=stored.shape or (),
                bytes=stored.coded.size if stored.coded else 0,
                why=_why(name, place.entry, manifest.base.tensors, matched=name in matched),
            )
    return found


def _why(name: str, entry: Entry, base: Mapping[str, BaseTensor], *, matched: bool) -> str:
    if entry.kind != "private":
        return "rows beyond the base's"
    if matched:
        return "moved, and no mask is worth it"
    there = base.get(name)
    if there is None:
        return "the base has no such tensor"
    if there.shape != entry.shape:
        return f"the base's has another shape: {list(there.shape)}"
    typed = entry.dtype if entry.dtype not in MASKABLE else there.dtype
    return f"of type {typed}, which no mask fits"
