"""One archive from the parts of several that have one base: their files as they are, under one manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tallstore._version import WRITER
from tallstore.archive.subset import CONFIG, with_config
from tallstore.errors import DamagedError
from tallstore.format import strict_json
from tallstore.format.manifest import MANIFEST, Group, Manifest, PartRecord, Task
from tallstore.format.version import VERSION, newest
from tallstore.stores import Sink, Store

Progress = Callable[[str, int, int], None]


class FileOfArchive(NamedTuple):
    """A file of an archive."""

    store: Store
    path: str


class SplicedArchive(NamedTuple):
    """An archive whose parts are taken."""

    store: Store
    manifest: Manifest


class JoinedStore(Store):
    """Files of several archives as those of one, before it is written. They stay open when it is closed."""

    def __init__(self, url: str, files: Mapping[str, FileOfArchive]) -> None:
        self.url, self._files = url, files

    def paths(self) -> list[str]:
        return list(self._files)

    def size(self, path: str) -> int:
        store, own = self._of(path)
        return store.size(own)

    def read(self, path: str, start: int, length: int) -> memoryview:
        store, own = self._of(path)
        return store.read(own, start, length)

    def read_into(self, path: str, start: int, out: memoryview) -> None:
        store, own = self._of(path)
        store.read_into(own, start, out)

    def handle(self, path: str, start: int, length: int) -> tuple[int, int] | None:
        store, own = self._of(path)
        return store.handle(own, start, length)

    def local(self, path: str) -> Path | None:
        store, own = self._of(path)
        return store.local(own)

    def state(self, path: str) -> Hashable:
        store, own = self._of(path)
        return store.state(own)

    def _of(self, path: str) -> FileOfArchive:
        if path not in self._files:
            raise DamagedError(f"{self.url}: {path} is not there")
        return self._files[path]


@dataclass(frozen=True)
class Spliced:
    """The archive to be: its manifest, and where its files lie now, but for those that its sink has already."""

    manifest: Manifest
    files: Mapping[str, FileOfArchive]

    def close(self) -> None:
        """Close every store that files were taken from: who holds a folder keeps it from being removed."""
        for store in {id(source.store): source.store for source in self.files.values()}.values():
            store.close()

    def write(self, sink: Sink, config: bytes, progress: Progress | None = None) -> Manifest:
        """Put every file into a sink, the manifest last. What is written is read once more before it counts."""
        manifest = replace(self.manifest, parts=with_config(self.manifest.parts, config))
        data = manifest.to_bytes()
        Manifest.from_bytes(data, f"{sink.target}: {MANIFEST}")
        total, done = sum(record.size for record in manifest.parts.values()), 0
        for path, record in manifest.parts.items():
            if path == CONFIG:
                sink.put(path, [config], len(config))
            elif path in self.files:
                sink.adopt(path, *self.files[path])
            done += record.size
            if progress is not None:
                progress(path, done, total)
        sink.put(MANIFEST, [data], len(data))
        return manifest


def new_config(tasks: Iterable[str]) -> bytes:
    """`config.json`: small, for the Hub."""
    return strict_json.dumps({"format": "tallstore", "version": VERSION, "tasks": list(tasks)}, indent=1) + b"\n"


def splice(kept: SplicedArchive, added: Sequence[SplicedArchive], order: Sequence[str] | None = None) -> Spliced:
    """Join archives.

    Args:
        kept: its base, groups, tasks and files stay as they are.
        added: archives of other tasks, whose groups join the groups of the same id, if there are any. Their small
            files go under `common/` where that has the same ones, or several of the new tasks do.
        order: of the tasks; by default those that were there first.
    """
    parts = {path: record for path, record in kept.manifest.parts.items() if path != CONFIG}
    files = {path: FileOfArchive(kept.store, path) for path in parts}
    groups = {group.id: group for group in kept.manifest.groups}
    tasks = dict(kept.manifest.tasks)
    for archive in added:
        for group in archive.manifest.groups:
            groups[group.id] = _joined(groups.get(group.id), group)
            _take(group.parts, archive, parts, files)
        for name, task in archive.manifest.tasks.items():
            tasks[name] = task
            for paths in task.parts.values():
                _take(paths, archive, parts, files)
    tasks |= _place_files(added, parts, files)
    manifest = replace(
        kept.manifest,
        groups=tuple(groups.values()),
        tasks={name: tasks[name] for name in order or tasks},
        parts=parts,
        writer=WRITER,
        version=newest((kept.manifest.version, *(archive.manifest.version for archive in added))),
    )
    return Spliced(manifest, files)


def joined_archive(kept: SplicedArchive, added: Sequence[SplicedArchive]) -> SplicedArchive:
    """The same, to read from before it is written."""
    joined = splice(kept, added)
    return SplicedArchive(JoinedStore(kept.store.url, joined.files), joined.manifest)


def _joined(there: Group | None, new: Group) -> Group:
    if there is None:
        return new
    return replace(there, tasks=(*there.tasks, *new.tasks), parts=(*there.parts, *new.parts))


def _take(
    paths: Iterable[str], archive: SplicedArchive, parts: dict[str, PartRecord], files: dict[str, FileOfArchive]
) -> None:
    for path in paths:
        assert path not in parts, path
        parts[path] = archive.manifest.parts[path]
        files[path] = FileOfArchive(archive.store, path)


def _place_files(
    added: Sequence[SplicedArchive], parts: dict[str, PartRecord], files: dict[str, FileOfArchive]
) -> dict[str, Task]:
    """The new tasks, with their small files in place."""
    counts = Counter(
        (name, archive.manifest.parts[path].sha256)
        for archive in added
        for task in archive.manifest.tasks.values()
        for name, path in task.files.items()
    )
    placed = {}
    for archive in added:
        for task, facts in archive.manifest.tasks.items():
            where = {}
            for name, path in facts.files.items():
                record = archive.manifest.parts[path]
                common = f"common/{name}"
                shared = parts.get(common) == record or (counts[name, record.sha256] > 1 and is_free(common, parts))
                where[name] = common if shared else f"tasks/{task}/files/{name}"
                if where[name] not in parts:
                    parts[where[name]] = record
                    files[where[name]] = FileOfArchive(archive.store, path)
            placed[task] = weighed(replace(facts, files=where), parts)
    return placed


def weighed(task: Task, parts: Mapping[str, PartRecord]) -> Task:
    """A task with its own bytes measured anew: parts, but for what makes it exact, and files that are its alone."""
    paths = [path for kind, paths in task.parts.items() if kind != "exact" for path in paths]
    folder = paths[0][: paths[0].index("/", len("tasks/")) + 1] if paths else "tasks/"
    paths += [path for path in dict.fromkeys(task.files.values()) if path.startswith(folder)]
    return replace(task, measured={**task.measured, "bytes": sum(parts[path].size for path in paths)})


def is_free(path: str, parts: Iterable[str]) -> bool:
    """Whether a path is neither a file nor a folder of what is there, nor below one of its files, whatever the case."""
    lower = path.lower()
    return not any(
        lower == other or other.startswith(f"{lower}/") or lower.startswith(f"{other}/")
        for other in map(str.lower, parts)
    )
