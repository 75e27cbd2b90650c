"""A smaller archive with some of an archive's tasks: their parts as they are, under a manifest that lists no others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tallstore.archive.needs import parts_of
from tallstore.archive.reader import Reader
from tallstore.errors import DamagedError, FormatError
from tallstore.format import strict_json
from tallstore.format.manifest import MANIFEST, Manifest, PartRecord
from tallstore.stores import open_sink

Progress = Callable[[str, int, int], None]

_CONFIG = "config.json"
_PIECE = 1 << 22


def paths_of(manifest: Manifest, tasks: Sequence[str]) -> list[str]:
    """Every file that an archive of these tasks holds, beside its manifest and its `config.json`."""
    found = dict.fromkeys(manifest.base.parts)
    for task in tasks:
        exact = "exact" in manifest.tasks[task].parts
        found |= dict.fromkeys([*parts_of(manifest, task, exact=exact), *manifest.tasks[task].files.values()])
    return list(found)


def write_subset(
    reader: Reader,
    tasks: Sequence[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path | str:
    """Write an archive of some tasks, each file checked against its hash; whole or not at all.

    With all tasks it is the same archive, byte for byte.
    """
    manifest = reader.manifest
    tasks = [task for task in manifest.tasks if task in tasks]
    config = _config(reader, tasks)
    paths = paths_of(manifest, tasks)
    smaller = manifest if tuple(tasks) == tuple(manifest.tasks) else _smaller(manifest, tasks, paths, config)
    total, done = sum(smaller.parts[path].size for path in paths), 0
    with open_sink(out, overwrite=overwrite) as sink:
        for path in smaller.parts:
            size = smaller.parts[path].size
            sink.put(path, [config] if path == _CONFIG else _checked(reader, path), size)
            done += size
            if progress is not None:
                progress(path, done, total)
        data = smaller.to_bytes()
        sink.put(MANIFEST, [data], len(data))
        sink.commit()
        return sink.target


def _config(reader: Reader, tasks: Sequence[str]) -> bytes:
    """`config.json` for these tasks. It is the Hub's, and nothing needs it: what is no object in it stays as it is."""
    if _CONFIG not in reader.manifest.parts:
        return b""
    data = reader.file(_CONFIG)
    try:
        facts: Any = strict_json.loads(data, reader.where(_CONFIG))
    except FormatError:
        return data
    if not isinstance(facts, dict) or tuple(tasks) == tuple(reader.manifest.tasks):
        return data
    return strict_json.dumps({**facts, "tasks": list(tasks)}, indent=1) + b"\n"


def _smaller(manifest: Manifest, tasks: Sequence[str], paths: Sequence[str], config: bytes) -> Manifest:
    records = {path: manifest.parts[path] for path in paths}
    if config:
        records[_CONFIG] = PartRecord(size=len(config), sha256=hashlib.sha256(config).hexdigest())
    groups = [replace(group, tasks=tuple(t for t in group.tasks if t in tasks)) for group in manifest.groups]
    return replace(
        manifest,
        tasks={task: manifest.tasks[task] for task in tasks},
        groups=tuple(group for group in groups if group.tasks),
        parts=records,
    )


def _checked(reader: Reader, path: str) -> Iterator[memoryview]:
    record = reader.manifest.parts[path]
    digest = hashlib.sha256()
    for start in range(0, record.size, _PIECE):
        piece = reader.store.read(path, start, min(_PIECE, record.size - start))
        digest.update(piece)
        yield piece
    if digest.hexdigest() != record.sha256:
        raise DamagedError(f"{reader.where(path)}: damaged (sha256 differs); fetch or pack it again")
