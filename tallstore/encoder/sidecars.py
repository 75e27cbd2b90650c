"""The small files of each model: those that all tasks have alike are stored once, under `common/`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from tallstore.checkpoints import Checkpoint
from tallstore.errors import CheckpointError, FormatError
from tallstore.format import limits
from tallstore.format.manifest import PartRecord
from tallstore.format.names import check_path
from tallstore.stores import Sink

BASE_FILES = "base_model/"
"""What is put before the names of the base's files among an adapter's."""


def write_files(
    sink: Sink, tasks: Mapping[str, Checkpoint], base: Checkpoint
) -> tuple[dict[str, dict[str, str]], dict[str, PartRecord]]:
    """Store every task's files; of an adapter those of its base too, which the merged model needs.

    Returns:
        Per task, name in the model's folder → path in the archive; and the record of each path.
    """
    all_files = {task: _files(checkpoint, base) for task, checkpoint in tasks.items()}
    # Hashes first: what all tasks have may be large, and is in memory once at a time.
    digests = {task: {name: _digest(path) for name, path in files.items()} for task, files in all_files.items()}
    first = next(iter(digests.values()))
    shared = {
        name
        for name, digest in first.items()
        if len(digests) > 1 and all(other.get(name) == digest for other in digests.values())
    }
    if sum(ckpt.adapter is not None for ckpt in tasks.values()) > 1:
        shared |= {name for files in all_files.values() for name in files if name.startswith(BASE_FILES)}
    where: dict[str, dict[str, str]] = {}
    records: dict[str, PartRecord] = {}
    for task, files in all_files.items():
        where[task] = {}
        for name, source in files.items():
            path = f"common/{name}" if name in shared else f"tasks/{task}/files/{name}"
            where[task][name] = path
            if path not in records:
                records[path] = put_file(sink, path, _read(source))
    return where, records


def base_files_of(checkpoint: Checkpoint, files: Mapping[str, str]) -> str:
    """What the names of the base's files begin with among an adapter's; nothing where there are none."""
    ours = any(name.startswith(BASE_FILES) and name not in checkpoint.files for name in files)
    return BASE_FILES if ours else ""


def _files(checkpoint: Checkpoint, base: Checkpoint) -> dict[str, Path]:
    files = dict(checkpoint.files)
    if checkpoint.adapter is None or any(name.startswith(BASE_FILES) for name in files):
        return files
    beside = {f"{BASE_FILES}{name}": path for name, path in base.files.items()}
    return files | {name: path for name, path in beside.items() if _fits(name)}


def _fits(name: str) -> bool:
    """Whether a file's path in the archive is none too long, whatever its task is called."""
    try:
        check_path(f"tasks/{'x' * limits.TASK_NAME_LENGTH}/files/{name}")
    except FormatError:
        return False
    return True


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
