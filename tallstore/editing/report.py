"""What adding, removing and compacting tell their caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tallstore.encoder import TaskReport
from tallstore.encoder.report import notes_on
from tallstore.format.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class GrowReport:
    """What became of an archive."""

    path: Path
    tasks: tuple[str, ...]
    """All that it holds now."""
    added: Mapping[str, TaskReport] = field(default_factory=dict)
    """What was packed: of each task, what it costs and kept."""
    removed: tuple[str, ...] = ()
    recoded: tuple[str, ...] = ()
    """Tasks that were made of removed ones, and are coded against the base now; every bit of them stays."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Tasks by group."""
    bytes_new: int
    """Of files that are new or changed, the manifest among them: what a push of the archive would send."""
    bytes_gone: int
    """Of files that are no longer there."""
    bytes: Mapping[str, int]
    """On disk, by kind: base, vector, masks, private, files, manifest, total."""
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is good to know of the tasks that were added: nothing to act on."""
        return notes_on(self.added)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"path": str(self.path), "notes": list(self.notes)}


@dataclass(frozen=True, kw_only=True)
class CompactReport(GrowReport):
    """What became of an archive that was compacted."""

    merged: tuple[str, ...] = ()
    """Groups that became part of another one."""
    pruned: tuple[str, ...] = ()
    """Groups whose vector lost what no task uses any more."""
    resolved: tuple[str, ...] = ()
    """Groups whose vector went: its tasks hold what they used of it."""
    shared: tuple[str, ...] = ()
    """Small files that several tasks had, and share now."""
    reparented: Mapping[str, str] = field(default_factory=dict)
    """Tasks that are coded against another one now than before → which."""

    @property
    def changed(self) -> bool:
        """Whether anything paid."""
        return bool(self.merged or self.pruned or self.resolved or self.shared or self.reparented)


def facts_of(path: Path, old: Manifest, new: Manifest, seconds: float) -> dict[str, Any]:
    """What every report says."""
    size, before = len(new.to_bytes()), len(old.to_bytes())
    return {
        "path": path,
        "tasks": tuple(new.tasks),
        "groups": {group.id: group.tasks for group in new.groups},
        "bytes_new": sum(r.size for p, r in new.parts.items() if old.parts.get(p) != r) + size,
        "bytes_gone": sum(r.size for p, r in old.parts.items() if new.parts.get(p) != r) + before,
        "bytes": new.bytes_by_kind(size),
        "seconds": seconds,
    }
