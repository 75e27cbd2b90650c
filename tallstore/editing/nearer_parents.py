"""Tasks that another task of the archive explains better than what they are coded against now, coded against that.

Of archives without loss alone: there a task decodes to its original's bits, whatever it is coded against. A task with
some loss would be coded from what its codes left of it, and lose once more, so it stays as it is. So does every task
that others are made of. What takes fewer bytes is measured, not foretold: what does not stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace

from tallstore.archive.checkpoint import ArchiveTask
from tallstore.archive.decode import Decoder
from tallstore.archive.splice import FileOfArchive, Spliced
from tallstore.checkpoints import Source
from tallstore.editing.base import base_of
from tallstore.editing.change import Change
from tallstore.editing.recode_tasks import recoded
from tallstore.encoder import Progress
from tallstore.encoder.options import LOSSLESS
from tallstore.format.manifest import Manifest, depth_of
from tallstore.packing.choose_parents import within
from tallstore.packing.find_combinations import find_parents

__all__ = ["reparented"]

_MOST = 64
"""Tasks that are looked at: each is compared with each."""
_PAYS = 0.95
"""What is left of a task's bytes must be below this share: a parent makes decoding dearer."""


def reparented(
    change: Change, stack: ExitStack, given: Source | None, progress: Progress | None
) -> tuple[Spliced, dict[str, str]] | None:
    """The archive with tasks coded against nearer parents, and the parent of each; None where none gains."""
    manifest = change.manifest
    if manifest.options.get("quality") != LOSSLESS or (manifest.base.storage == "reference" and given is None):
        return None
    needed = {other for task in manifest.tasks.values() if task.relatives for other in task.relatives.tasks}
    plain = [n for n, task in manifest.tasks.items() if task.adapter is None and "exact" not in task.parts][-_MOST:]
    children = [name for name in plain if name not in needed and _is_plain(manifest, name)]
    if len(plain) < 2 or not children:
        return None
    with closing(base_of(change.reader, given)) as base:
        decoder = Decoder(change.reader, base if manifest.base.storage != "embed" else None, 1)
        opened = {name: ArchiveTask(decoder, name, name) for name in plain}
        depths = {name: depth_of(manifest, name) for name in plain}
        nearest = find_parents(base, opened, depths, children)
    new = {name: other for name, other in nearest.items() if _parent(manifest, name) != other}
    if not new:
        return None
    spliced = recoded(change, stack, list(new), given, progress, new)
    return _without_losers(change, spliced, new, depths)


def _is_plain(manifest: Manifest, task: str) -> bool:
    """Whether a task is coded against the base or one parent."""
    return manifest.tasks[task].relatives is None or _parent(manifest, task) is not None


def _parent(manifest: Manifest, task: str) -> str | None:
    relatives = manifest.tasks[task].relatives
    return None if relatives is None else relatives.parent


def _without_losers(
    change: Change, spliced: Spliced, new: Mapping[str, str], depths: Mapping[str, int]
) -> tuple[Spliced, dict[str, str]] | None:
    """Those tasks as they were that gained nothing, or whose chain that would make too long.

    What others are coded against is the same bits either way.
    """
    old, tasks = change.manifest, dict(spliced.manifest.tasks)
    parts, files = dict(spliced.manifest.parts), dict(spliced.files)

    def gains(name: str) -> bool:
        before, after = old.tasks[name].number("bytes"), tasks[name].number("bytes")
        if tasks[name].relatives is None or before is None or after is None:
            return False
        return after < _PAYS * before

    kept = within({name: other for name, other in new.items() if gains(name)}, depths)
    for name in new.keys() - kept.keys():
        for paths in tasks[name].parts.values():
            for path in paths:
                parts.pop(path), files.pop(path, None)
        for path in (path for paths in old.tasks[name].parts.values() for path in paths):
            parts[path], files[path] = old.parts[path], FileOfArchive(change.store, path)
        tasks[name] = replace(old.tasks[name], group=tasks[name].group, files=tasks[name].files)
    if not kept:
        return None
    return Spliced(replace(spliced.manifest, tasks=tasks, parts=parts), files), kept
