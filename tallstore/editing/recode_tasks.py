"""Tasks coded anew from what they decode to, since they lose what they are made of or have a nearer parent.

Every bit of them stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from tallstore.archive.checkpoint import ArchiveTask
from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Reader
from tallstore.archive.splice import FileOfArchive, Spliced, weighed
from tallstore.checkpoints import Source
from tallstore.editing.adding import Packer
from tallstore.editing.base import base_of
from tallstore.editing.change import Change
from tallstore.editing.options import inherited
from tallstore.encoder import Progress
from tallstore.format.manifest import Manifest, PartRecord, Task
from tallstore.stores import Store

__all__ = ["recoded"]

_OF_PACKING = ("relative_error", "cosine", "density", "divergence", "bit_for_bit", "lambda")
"""What was measured of a task's codes: nothing of it is known of the new ones."""


def recoded(
    change: Change,
    stack: ExitStack,
    tasks: Sequence[str],
    given: Source | None,
    progress: Progress | None,
    parents: Mapping[str, str] | None = None,
) -> Spliced:
    """The archive with some of its tasks coded without loss against the base, or a parent, all others as they are."""
    manifest = change.manifest
    base = base_of(change.reader, given)
    stack.callback(base.close)
    known = base if manifest.base.storage != "embed" else None
    decoder = Decoder(change.reader, known, None)
    sources: dict[str, Source] = {
        task: ArchiveTask(decoder, task, f"{change.reader.store.url}: task {task!r}") for task in tasks
    }
    options, _ = inherited(manifest, {"recipe": "solo", "quality": "lossless", "exact": ()}, list(tasks))
    bare = _without(manifest, tasks)
    beside = replace(change, manifest=bare, reader=Reader(change.store, bare))
    packer = Packer(
        beside,
        stack,
        base,
        replace(options, max_error=None, evaluate=None, min_retention=None, relatives=False),
        progress,
    )
    spliced = packer.add(sources, parents)
    parts, files = dict(spliced.manifest.parts), dict(spliced.files)
    made = {
        task: _as_before(task, manifest.tasks[task], spliced.manifest.tasks[task], change.store, parts, files)
        for task in tasks
    }
    held = {name: made.get(name, spliced.manifest.tasks[name]) for name in manifest.tasks}
    return Spliced(replace(spliced.manifest, tasks=held, parts=parts), files)


def _without(manifest: Manifest, tasks: Sequence[str]) -> Manifest:
    """A manifest that has these tasks no more, and every file but their parts."""
    gone = {path for task in tasks for paths in manifest.tasks[task].parts.values() for path in paths}
    return replace(
        manifest,
        groups=tuple(replace(g, tasks=tuple(t for t in g.tasks if t not in tasks)) for g in manifest.groups),
        tasks={name: task for name, task in manifest.tasks.items() if name not in tasks},
        parts={path: record for path, record in manifest.parts.items() if path not in gone},
    )


def _as_before(
    name: str, old: Task, new: Task, store: Store, parts: dict[str, PartRecord], files: dict[str, FileOfArchive]
) -> Task:
    """A task that was coded anew, with all else that was known of it; files of others' folders in its own."""
    where: dict[str, str] = {}
    for file, path in old.files.items():
        where[file] = path
        if not path.startswith(("common/", f"tasks/{name}/")):
            where[file] = f"tasks/{name}/files/{file}"
            parts[where[file]], files[where[file]] = parts[path], FileOfArchive(store, path)
    measured = {key: value for key, value in new.measured.items() if key not in _OF_PACKING} | {
        key: value for key, value in old.measured.items() if key in _OF_PACKING or key not in new.measured
    }
    told = replace(old, group=new.group, parts=new.parts, files=where, measured=measured, relatives=new.relatives)
    return weighed(told, parts)
