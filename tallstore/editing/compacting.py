"""`tallstore.compact`: an archive that grew and shrank, rewritten where that pays. Every decoded bit stays."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from tallstore.archive.decode import Decoder
from tallstore.archive.shared_tensors import SharedTensors
from tallstore.archive.sharing import chunks_of, free_path, ones_of, ones_part
from tallstore.archive.splice import FileOfArchive as Place
from tallstore.archive.splice import Spliced, is_free, weighed
from tallstore.archive.subset import config_of
from tallstore.checkpoints import Source
from tallstore.editing.base import base_of
from tallstore.editing.change import Change, changing
from tallstore.editing.nearer_parents import reparented
from tallstore.editing.report import CompactReport, facts_of
from tallstore.editing.vector_pruning import CannotError, prune, resolve
from tallstore.encoder import Progress
from tallstore.encoder.options import LOSSLESS
from tallstore.encoder.part_writer import PartWriter
from tallstore.format.manifest import Group, Manifest, PartRecord, Task
from tallstore.format.part import Entry

_OF_ONE = frozenset({"solo", "lossless"})
"""Recipes that share no vector."""
_FEW = 3
"""Tasks of a group up to which it is tried whether they do without the vector."""
_PAYS = 0.99
"""What is left of a group's bytes must be below this share."""
_IDLE = 0.01
"""Share of a vector's values that no task uses, from which on they go even if that saves little."""


def compact(
    path: str | os.PathLike[str],
    *,
    base: Source | None = None,
    parents: bool = True,
    progress: Progress | None = None,
) -> CompactReport:
    """Rewrite what no longer pays in an archive that tasks were added to and removed from. Every decoded bit stays.

    - Groups that share nothing (recipe `solo`) become one.
    - A vector loses the values that no task uses any more; where few tasks are left, each takes along what it uses
      of it, if that is less, and the vector goes.
    - Small files that several tasks have alike are stored once; so are tensors, where groups share nothing.
    - In an archive without loss, a task that another one explains better than what it is coded against now is coded
      against that one, where that takes fewer bytes. Tasks with some loss, and those that others are made of, stay.

    Groups with vectors are never merged: a vector for the tasks of both can only be chosen from their originals
    (`add` with `refit`).

    Args:
        path: the archive, a folder or a `.tall` file. It is replaced in one step, or stays as it was.
        base: where the archive only references it: needed to do without a vector, and to find parents.
        parents: whether to look for better parents: what is coded anew takes as long as packing it.
        progress: called now and then with a text, how much is done, and of how much.

    Returns:
        What was done. Where nothing pays, nothing is written.

    Raises:
        WrongBaseError: the given base is another one.
        ArchiveError, OutputError: the archive is damaged, or cannot be written.
    """
    began = time.perf_counter()
    with changing(path) as change:
        work = _Work.of(change)
        done: dict[str, list[str]] = {"pruned": [], "resolved": []}
        warnings: list[str] = []
        with ExitStack() as stack:
            given = base if change.manifest.base.storage == "reference" else None
            opened = base_of(change.reader, given) if given is not None else None
            if opened is not None:
                stack.callback(opened.close)
            decoder = Decoder(change.reader, opened, None)
            known = opened is not None or change.manifest.base.storage == "embed"
            for number, group in enumerate(change.manifest.groups):
                if ones_of(change.reader, group) is None:
                    _recode(change, decoder, group, work, done, warnings, known=known)
                if progress is not None:
                    progress(f"group {group.id}", number + 1, len(change.manifest.groups))
            merged = _merge(change, work)
            shared = _share_files(work)
            once = () if merged or any(done.values()) else _share_tensors(change, work)
            manifest = change.manifest
            if merged or shared or once or any(done.values()):
                spliced = Spliced(work.manifest(manifest), work.files)
                manifest = change.commit(spliced, config_of(change.reader, list(manifest.tasks)), progress)
    moved: dict[str, str] = {}
    if parents:
        manifest, moved = _with_parents(path, manifest, base, progress)
    return CompactReport(
        **_facts(change, manifest, time.perf_counter() - began),
        reparented=moved,
        merged=tuple(merged),
        pruned=tuple(done["pruned"]),
        resolved=tuple(done["resolved"]),
        shared=tuple(shared),
        warnings=tuple(warnings),
    )


def _with_parents(
    path: str | os.PathLike[str], manifest: Manifest, base: Source | None, progress: Progress | None
) -> tuple[Manifest, dict[str, str]]:
    """A change of its own, of what is there by now: the archive's manifest after it, and the new parents."""
    if manifest.options.get("quality") != LOSSLESS:
        return manifest, {}
    with changing(path) as change, ExitStack() as stack:
        made = reparented(change, stack, base, progress)
        if made is None:
            return manifest, {}
        spliced, moved = made
        return change.commit(spliced, config_of(change.reader, list(manifest.tasks)), progress), moved


def _facts(change: Change, manifest: Manifest, seconds: float) -> dict[str, Any]:
    facts = facts_of(change.path, change.manifest, manifest, seconds)
    return {**facts, "bytes_new": 0, "bytes_gone": 0} if manifest is change.manifest else facts


@dataclass
class _Work:
    """The archive that is to be, while it is decided on."""

    groups: dict[str, Group]
    tasks: dict[str, Task]
    parts: dict[str, PartRecord]
    files: dict[str, Place] = field(default_factory=dict)
    empty: dict[str, Mapping[str, Entry]] = field(default_factory=dict)
    """Of groups that share nothing: the entries of their vectors."""

    @classmethod
    def of(cls, change: Change) -> _Work:
        manifest = change.manifest
        return cls(
            {group.id: group for group in manifest.groups},
            dict(manifest.tasks),
            dict(manifest.parts),
            {path: Place(change.store, path) for path in manifest.parts},
        )

    def put(self, writer: PartWriter, order: list[str] | None = None) -> tuple[str, ...]:
        """Parts that were written anew, into the sink; their paths."""
        records = writer.finish(order)
        for path, record in records.items():
            self.parts[path] = record
            self.files.pop(path, None)
        return tuple(records)

    def drop(self, *paths: str) -> None:
        """Files that are there no more."""
        for path in paths:
            self.parts.pop(path, None)
            self.files.pop(path, None)

    def manifest(self, old: Manifest) -> Manifest:
        """With everything measured anew."""
        tasks = {name: weighed(task, self.parts) for name, task in self.tasks.items()}
        return replace(old, groups=tuple(self.groups.values()), tasks=tasks, parts=self.parts)


def _recode(
    change: Change,
    decoder: Decoder,
    group: Group,
    work: _Work,
    done: dict[str, list[str]],
    warnings: list[str],
    *,
    known: bool,
) -> None:
    """Code a group's vector and masks anew where that saves enough."""
    parts = change.manifest.parts
    own = {task: change.manifest.tasks[task].parts["mask"] for task in group.tasks}
    masks = _coded_bytes(parts, [path for paths in own.values() for path in paths])
    vector = _coded_bytes(parts, group.parts)
    pruned, idle = prune(decoder, change.reader, group, change.sink)
    resolved: list[PartWriter] = []
    plain = [task for task in group.tasks if change.manifest.tasks[task].relatives is None]
    if len(plain) < len(group.tasks):
        resolved = []  # what is made of others has parts of another kind
    elif len(group.tasks) <= _FEW and known:
        try:
            resolved = [resolve(decoder, change.reader, group, task, change.sink) for task in group.tasks]
        except CannotError:
            resolved = []
    elif len(group.tasks) <= _FEW:
        warnings.append(
            f"group {group.id}: whether its tasks need its vector was not tried: that needs base=… (--base)"
        )
    without = sum(writer.coded_bytes for writer in resolved)
    with_less = pruned.coded_bytes + masks
    if resolved and without < min(with_less, _PAYS * (vector + masks)):
        done["resolved"].append(group.id)
        for task, writer in zip(group.tasks, resolved, strict=True):
            work.drop(*own[task])
            masked = work.put(writer, list(decoder.task(task)))
            work.tasks[task] = replace(work.tasks[task], parts={**work.tasks[task].parts, "mask": masked})
        work.drop(*group.parts)
        work.groups[group.id] = replace(group, parts=())
    elif with_less < _PAYS * (vector + masks) or idle > _IDLE:
        done["pruned"].append(group.id)
        work.drop(*group.parts)
        work.groups[group.id] = replace(group, parts=work.put(pruned) if pruned else ())


def _coded_bytes(parts: Mapping[str, PartRecord], paths: Iterable[str]) -> int:
    """Of parts without their headers, which stay about as they are."""
    return sum(parts[path].size - (parts[path].header_size or 0) for path in paths)


def _merge(change: Change, work: _Work) -> list[str]:
    """Groups that share nothing into the first of them; those whose chunks differ stay. The ids that went."""
    alike: dict[str, dict[str, Entry]] = {}
    for group in change.manifest.groups:
        entries = {} if not work.groups[group.id].parts else ones_of(change.reader, group)
        if entries is not None:
            alike[group.id] = dict(entries)
    gone: list[str] = []
    for home, held in alike.items():
        if home in gone:
            continue
        brought: dict[str, Entry] = {}
        for other, entries in alike.items():
            if other == home or other in gone or len(chunks_of({**held, **brought}) | chunks_of(entries)) > 1:
                continue
            brought |= {name: entry for name, entry in entries.items() if name not in held}
            gone.append(other)
            left, stays = work.groups.pop(other), work.groups[home]
            work.drop(*left.parts)
            recipe = {key: value for key, value in stays.recipe.items() if left.recipe.get(key) == value}
            work.groups[home] = replace(stays, tasks=(*stays.tasks, *left.tasks), recipe=recipe)
            for task in left.tasks:
                work.tasks[task] = replace(work.tasks[task], group=home)
        if brought:
            data, record = ones_part(home, {**held, **brought})
            path = free_path(home, work.parts)
            work.drop(*work.groups[home].parts)
            change.sink.put(path, [data], len(data))
            work.parts[path] = record
            work.groups[home] = replace(work.groups[home], parts=(path,))
    return gone


def _share_tensors(change: Change, work: _Work) -> tuple[str, ...]:
    """Tensors that several tasks have alike once; the tasks that refer to others now.

    Of parts as they were: not in one go with groups that become others.
    """
    if any(group.recipe.get("id") not in _OF_ONE for group in change.manifest.groups):
        return ()
    referring = SharedTensors().shared(change.archive)
    for name, task in referring.tasks.items():
        work.tasks[name] = replace(task, files=work.tasks[name].files)
    work.drop(*referring.gone, *referring.parts)
    for path, (data, record) in referring.parts.items():
        change.sink.put(path, [data], len(data))
        work.parts[path] = record
    return tuple(referring.tasks)


def _share_files(work: _Work) -> list[str]:
    """Small files that tasks have alike under `common/`; the names of those that moved."""
    counts = Counter((name, work.parts[path]) for task in work.tasks.values() for name, path in task.files.items())
    moved: list[str] = []
    records = dict(work.parts)
    for task, facts in list(work.tasks.items()):
        where = dict(facts.files)
        for name, path in facts.files.items():
            record, common = records.get(path), f"common/{name}"
            if record is None or path.startswith("common/"):
                continue
            alike = counts[name, record] > 1 and path in work.files
            if common not in work.parts and alike and is_free(common, work.parts):
                work.parts[common], work.files[common] = record, work.files[path]
            if work.parts.get(common) == record:
                where[name] = common
                work.drop(path)
                moved.append(name)
        work.tasks[task] = replace(facts, files=where)
    return list(dict.fromkeys(moved))
