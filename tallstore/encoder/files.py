"""The small files of each model: those that all tasks have alike are stored once, under `common/`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from tallstore.checkpoints import Checkpoint
from tallstore.errors import CheckpointError
from tallstore.format.manifest import PartRecord
from tallstore.stores import Sink


def write_files(sink: Sink, tasks: Mapping[str, Checkpoint]) -> tuple[dict[str, dict[str, str]], dict[str, PartRecord]]:
    """Store every task's files.

    Returns:
        Per task, name in the model's folder → path in the archive; and the record of each path.
    """
    contents = {task: {name: _read(path) for name, path in ckpt.files.items()} for task, ckpt in tasks.items()}
    first = next(iter(contents.values()))
    shared = {
        name
        for name, data in first.items()
        if len(contents) > 1 and all(other.get(name) == data for other in contents.values())
    }
    where: dict[str, dict[str, str]] = {}
    records: dict[str, PartRecord] = {}
    for task, files in contents.items():
        where[task] = {}
        for name, data in files.items():
            path = f"common/{name}" if name in shared else f"tasks/{task}/files/{name}"
            where[task][name] = path
            if path not in records:
                records[path] = put_file(sink, path, data)
    return where, records


def put_file(sink: Sink, path: str, data: bytes) -> PartRecord:
    """Store one small file."""
    sink.put(path, [data], len(data))
    return PartRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
