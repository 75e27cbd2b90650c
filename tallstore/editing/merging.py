"""`tallstore.add_merge`: a task that is a merge of others, kept as the recipe that it is."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from tallstore._version import WRITER
from tallstore.archive.decode import Decoder
from tallstore.archive.mixing import Mixture, mix
from tallstore.archive.splice import FileOfArchive, Spliced, is_free, new_config, weighed
from tallstore.archive.subset import config_of
from tallstore.checkpoints import Source
from tallstore.editing.base import base_of
from tallstore.editing.change import changing
from tallstore.editing.expression import parse_merge
from tallstore.editing.report import GrowReport, facts_of
from tallstore.encoder import Progress, TaskReport
from tallstore.errors import InputError, TaskNameError
from tallstore.format.dtypes import size_of
from tallstore.format.manifest import Manifest, PartRecord, Task, names_of
from tallstore.format.names import check_task_names
from tallstore.format.part import PartHeader

__all__ = ["add_merge"]


def add_merge(
    path: str | os.PathLike[str],
    name: str,
    merge: str | Mapping[str, float],
    *,
    method: str | None = None,
    head: str | None = None,
    topk: float = 20,
    average: bool = False,
    k: int = 2,
    base: Source | None = None,
    progress: Progress | None = None,
) -> GrowReport:
    """Add a merge of tasks to an archive on this machine, as a recipe of a few hundred bytes.

    It decodes as any other task does, from the tasks that it is made of as the archive gives them back; what it is made
    of cannot be removed without it, or without coding it anew (`remove`).

    Args:
        path: the archive, a folder or a `.tall` file. It is replaced in one step, or stays as it was.
        name: of the new task.
        merge: `0.6*trec + 0.4*mr`, or a weight for each task.
        method: `linear`: the weighted sum of the models. `arithmetic`: the base and the weighted sum of the task
            vectors. `consensus`: that, where at least k tasks moved. `ties`: task vectors trimmed, elected by sign, and
            summed with their weights. `slerp`: spherical interpolation of two task vectors, by the weight of the
            second. By default `linear` where the weights sum to 1, else `arithmetic`.
        head: one of the tasks: what cannot be merged, such as heads of different shapes, and the files beside the
            weights are its own. Files are otherwise those of the first task.
        topk: of ties: the percentage of each task vector that is kept.
        average: of ties: average what agrees in place of summing it.
        k: of consensus.
        base: where the archive only references it.
        progress: called now and then with a text, how much is done, and of how much.

    Raises:
        NoSuchTaskError: it names a task that is not there.
        OptionError: weights that are no finite numbers, tensors that do not fit each other and no head, an option that
            makes no sense.
        TaskNameError: the name is taken, or is none.
        ArchiveError, OutputError: the archive is damaged, or cannot be written.
    """
    began = time.perf_counter()
    weights = parse_merge(merge)
    with changing(path) as change, ExitStack() as stack:
        manifest = change.manifest
        if name in manifest.tasks:
            raise TaskNameError(f"task {name!r} is in the archive already; choose another name, or remove it first")
        check_task_names([*manifest.tasks, name])
        given = base_of(change.reader, base) if base is not None or manifest.base.storage != "embed" else None
        if given is not None:
            stack.callback(given.close)
        decoder = Decoder(change.reader, given if manifest.base.storage != "embed" else None, None)
        mixed = mix(decoder, manifest, weights, method=method, head=head, topk=topk, average=average, k=k)
        part = PartHeader(part="relative", owner=name, entries=mixed.entries)
        data = part.to_bytes([])
        where = f"tasks/{name}/mask.safetensors"
        if not is_free(where, manifest.parts):
            raise InputError(f"{change.path}: {where} lies in the archive, and is no task's: choose another name")
        change.sink.put(where, [data], len(data))
        digest = hashlib.sha256(data).hexdigest()
        record = PartRecord(
            size=len(data), sha256=digest, header_size=len(data), header_sha256=digest, version=part.version
        )
        task = _task(decoder, manifest, mixed, len(data), where)
        held = {kept: kept for kept in manifest.parts} | _apart_files(name, task)
        task = replace(task, files={file: _place(name, task, file, path) for file, path in task.files.items()})
        parts = {now: manifest.parts[before] for now, before in held.items()} | {where: record}
        warnings = _warnings(mixed)
        new = _with_task(manifest, name, weighed(task, parts), parts).warned({name: warnings})
        spliced = Spliced(new, {now: FileOfArchive(change.store, before) for now, before in held.items()})
        written = change.commit(spliced, config_of(change.reader, list(new.tasks)) or new_config(new.tasks), progress)
    return GrowReport(
        **facts_of(change.path, manifest, written, time.perf_counter() - began),
        added={name: _report(written.tasks[name])},
        warnings=tuple(f"{name}: {warning}" for warning in warnings),
    )


def _place(name: str, task: Task, file: str, path: str) -> str:
    """Where a file of the head's is for the merge: where it is, but for files of tasks that the head was made of."""
    assert task.relatives is not None
    folders = ("common/", *(f"tasks/{each}/files/" for each in task.relatives.tasks))
    return path if path.startswith(folders) else f"tasks/{name}/files/{file}"


def _apart_files(name: str, task: Task) -> dict[str, str]:
    """Files that are stored once more: where → where they are."""
    places = {_place(name, task, file, path): path for file, path in task.files.items()}
    return {new: old for new, old in places.items() if new != old}


def _with_task(manifest: Manifest, name: str, task: Task, parts: Mapping[str, PartRecord]) -> Manifest:
    groups = tuple(
        replace(group, tasks=(*group.tasks, name)) if group.id == task.group else group for group in manifest.groups
    )
    return replace(
        manifest,
        groups=groups,
        tasks={**manifest.tasks, name: task},
        parts=parts,
        writer=WRITER,
    )


def _task(decoder: Decoder, manifest: Manifest, mixed: Mixture, size: int, path: str) -> Task:
    """Its record: files and layout are the head's, whose group it is listed in."""
    head = manifest.tasks[str(mixed.relatives.head)]
    own = {name: place.entry for name, place in mixed.places(decoder).items() if place.entry.kind != "tied"}
    measured: dict[str, Any] = {
        "parameters": sum(entry.numel for entry in own.values()),
        "checkpoint_bytes": sum(size_of(str(entry.dtype), entry.shape or ()) for entry in own.values()),
        "bytes": size,
    }
    return Task(
        group=head.group,
        parts={"mask": (path,)},
        files=head.files,
        weights=head.weights,
        relatives=mixed.relatives,
        measured=measured,
    )


def _report(task: Task) -> TaskReport:
    return TaskReport(
        bytes=int(task.measured["bytes"]),
        relative_error=None,
        cosine=None,
        divergence=None,
        density=0.0,
        parameters=int(task.measured["parameters"]),
        private={},
        missing=(),
    )


def _warnings(mixed: Mixture) -> tuple[str, ...]:
    """What is the head's, and what is left out."""
    lines = []
    if mixed.of_head:
        first, why = next(iter(mixed.of_head.items()))
        lines.append(f"not merged, but {mixed.relatives.head}'s: {names_of(list(mixed.of_head))} ({first}: {why})")
    if mixed.dropped:
        first, why = next(iter(mixed.dropped.items()))
        lines.append(f"left out: {names_of(list(mixed.dropped))} ({first}: {why})")
    return tuple(lines)
