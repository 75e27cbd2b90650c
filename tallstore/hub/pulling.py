"""Tasks of a far-away archive to this machine: exactly what they need, held to its hashes, whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tallstore.archive import Archive
from tallstore.archive.export import check_folder
from tallstore.archive.prefetch import parts_of
from tallstore.archive.subset import paths_of
from tallstore.checkpoints import ReferencedBase, Source
from tallstore.errors import OptionError
from tallstore.format.manifest import MANIFEST
from tallstore.hub.resolve import chosen_tasks, open_named
from tallstore.stores import Access, check_target
from tallstore.stores.hub import HubFileStore, HubStore

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class PullReport:
    """What was pulled."""

    url: str
    """Where from; on the Hub with the commit."""
    tasks: tuple[str, ...]
    files: int
    """Files that the tasks need."""
    bytes: int
    """Bytes of these files."""
    fetched: Mapping[str, int]
    """Those that were not in the local cache, with their bytes."""
    paths: Mapping[str, str]
    """Task → its model's folder; empty where none was asked for."""
    archive: str | None = None
    """The archive that was written, if one was asked for."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def pull(
    name: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    tasks: str | Sequence[str] | None = None,
    archive: bool = False,
    base: Source | None = None,
    exact: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PullReport:
    """Fetch tasks from the Hub and write their models, ready for stock loaders; or only fetch them.

    The manifest is read first, and then exactly the files that the tasks need, at one commit, through the Hub's own
    cache. Every byte of them, those that were cached before too, is held to the manifest's sha256.

    Args:
        name: `user/zoo`, `user/zoo@revision` or `hf://…`; or another address, or a path.
        out: the folder of the model; with several tasks, of one folder for each. None only fills the cache.
        tasks: a task's name, or several; all of them by default.
        archive: write an archive with these tasks in place of models. So does an `out` that ends in `.tall`.
        base: the base, where the archive only references it; by default its own repository's at its own commit.
        exact: bit for bit the originals, for tasks that were packed so.
        revision: a branch, tag or commit of the repository.
        token: to be let in with; by default the one that the Hub's tools keep.
        endpoint: another Hub's address.
        cache_dir: where downloads are kept; by default where the Hub's tools keep theirs.
        local_files_only: take what is there, and ask no one.
        force_download: fetch again what is there.
        overwrite: replace a model or an archive that is there.
        progress: called with a text, bytes done, bytes in all.

    Raises:
        NoSuchTaskError: lists the tasks.
        RemoteError: the Hub cannot be reached or refuses; its subclasses say why.
        ArchiveError: it is no archive, or a file of it is damaged on the Hub itself; names the file.
        OutputError: the output cannot be written, or is there already. No half of it is left behind.
    """
    access = Access(
        token=token, endpoint=endpoint, cache_dir=cache_dir, local_files_only=local_files_only,
        force_download=force_download,
    )  # fmt: skip
    archive = archive or (out is not None and Path(out).suffix == ".tall")
    if archive and out is None:
        raise OptionError("where to? An archive needs an output")
    if archive:
        check_target(Path(str(out)), overwrite=overwrite)
    with open_named(name, access, revision=revision, base=base) as zoo:
        wanted = chosen_tasks(zoo, tasks)
        paths = _paths(zoo, wanted, exact=exact, archive=archive)
        one = isinstance(tasks, str) or (tasks is not None and len(wanted) == 1)
        folders = {} if out is None or archive else {t: Path(out) if one else Path(out) / t for t in wanted}
        for task, folder in folders.items():
            check_folder(folder, overwrite=overwrite, layout=zoo.manifest.tasks[task].weights)
        _fetch(zoo, paths, progress, base=not archive)
        if archive:
            zoo.write_subset(wanted, Path(str(out)), overwrite=overwrite, progress=progress)
        for task, folder in folders.items():
            zoo.export(task, folder, exact=exact, overwrite=overwrite, progress=progress)
        sizes = {path: zoo.store.size(path) for path in [MANIFEST, *paths]}
        fresh = zoo.store.fetched if isinstance(zoo.store, HubStore | HubFileStore) else frozenset(sizes)
        return PullReport(
            url=zoo.url,
            tasks=wanted,
            files=len(sizes),
            bytes=sum(sizes.values()),
            fetched={path: size for path, size in sizes.items() if path in fresh},
            paths={task: str(folder) for task, folder in folders.items()},
            archive=str(out) if archive else None,
        )


def _paths(zoo: Archive, tasks: Sequence[str], *, exact: bool, archive: bool) -> list[str]:
    """Files of the archive that are needed, its manifest aside."""
    if archive:
        own = ["config.json"] if "config.json" in zoo.manifest.parts else []
        return [*own, *paths_of(zoo.manifest, tasks)]
    paths: dict[str, None] = {}
    for task in tasks:
        facts = zoo.manifest.tasks[task]
        parts = parts_of(zoo.manifest, task, exact=exact and "exact" in facts.parts, base=zoo.base_checkpoint is None)
        paths |= dict.fromkeys([*parts, *facts.files.values()])
    return list(paths)


def _fetch(zoo: Archive, paths: Sequence[str], progress: Progress | None, *, base: bool) -> None:
    if isinstance(zoo.store, HubStore):
        zoo.store.fetch(paths, progress)
    if isinstance(zoo.store, HubStore | HubFileStore):
        zoo.store.check(paths)
    if base and isinstance(zoo.base_checkpoint, ReferencedBase):
        zoo.base_checkpoint.open()
