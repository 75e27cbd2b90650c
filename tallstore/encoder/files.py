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
    # Hashes first: what all tasks have may be large, and is in memory once at a time.
    digests = {task: {name: _digest(path) for name, path in ckpt.files.items()} for task, ckpt in tasks.items()}
    first = next(iter(digests.values()))
    shared = {
        name
        for name, digest in first.items()
        if len(digests) > 1 and all(other.get(name) == digest for other in digests.values())
    }
    where: dict[str, dict[str, str]] = {}
    records: dict[str, PartRecord] = {}
    for task, checkpoint in tasks.items():
        where[task] = {}
        for name, source in checkpoint.files.items():
            path = f"common/{name}" if name in shared else f"tasks/{task}/files/{name}"
            where[task][name] = path
            if path not in records:
                records[path] = put_file(sink, path, _read(source))
    return where, records


def put_file(sink: Sink, path: str, data: bytes) -> PartRecord:
    """Store one small file."""
    sink.put(path, [data], len(data))
    return PartRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _digest(path: Path) -> bytes:
    return hashlib.sha256(_read(path)).digest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
