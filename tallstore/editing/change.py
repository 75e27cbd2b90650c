"""The one way in which an archive is changed: a new one grows beside it, of the old one's files and new ones, and takes
its place in one step.

In a folder the old files are linked, not copied, so that only what is new is written; a `.tall` file is copied. (To
append to it would save that, and a reader, or a run that is cut off, would find a file that is no zip.) Readers that
have the old archive open keep it; who opens the path finds the old one or the new one, and nothing between.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tallstore.archive.manifests import read_manifest
from tallstore.archive.reader import Reader
from tallstore.archive.splice import Spliced, SplicedArchive
from tallstore.errors import InputError, OutputError, VersionError
from tallstore.format.manifest import MANIFEST, Manifest
from tallstore.format.version import NEWEST, minor
from tallstore.hub.card import README, is_ours
from tallstore.stores import Sink, Store, is_address, open_sink, open_store

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Change:
    """An archive that is being changed: nobody else can change it meanwhile."""

    path: Path
    store: Store
    manifest: Manifest
    reader: Reader
    sink: Sink

    @property
    def archive(self) -> SplicedArchive:
        """As it is."""
        return SplicedArchive(self.store, self.manifest)

    def commit(self, spliced: Spliced, config: bytes, progress: Progress | None = None) -> Manifest:
        """Write the new archive and put it in the old one's place."""
        manifest = spliced.write(self.sink, config, progress)
        for path in self._beside(manifest):
            self.sink.adopt(path, self.store, path)
        self.store.close()
        spliced.close()
        self.sink.commit()
        return manifest

    def _beside(self, new: Manifest) -> Iterator[str]:
        """Files that lie in the folder and are no part of the archive: they stay, unless they speak of its tasks.

        A model card of ours is written anew by the next push; the Hub client's own notes are of files as they were.
        """
        for path in self.store.paths():
            listed = path == MANIFEST or path in self.manifest.parts or path in new.parts
            if listed or path.startswith(".cache/") or (path == README and self.own_card() is None):
                continue
            pieces = path.split("/")
            if pieces[0] != "tasks" or len(pieces) < 2 or pieces[1] in new.tasks:
                yield path

    def own_card(self) -> str | None:
        """The text of a model card that somebody wrote and put into the folder."""
        if README in self.manifest.parts or README not in self.store.paths():
            return None
        text = bytes(self.store.read(README, 0, self.store.size(README))).decode(errors="replace")
        return None if is_ours(text) else text


@contextmanager
def changing(path: str | os.PathLike[str]) -> Iterator[Change]:
    """Open an archive to change it. Until `commit` nothing has happened to it; after an error nothing will.

    Raises:
        InputError: it is not on this machine.
        OutputError: another process is changing it, or it cannot be written.
        NotAnArchiveError and other ArchiveErrors: it is not whole.
        VersionError: a newer tallstore wrote it, of which this one would lose what it does not know.
    """
    if is_address(path):
        raise InputError(f"{os.fspath(path)}: archives are changed on this machine: pull it, change it, push it")
    target = Path(path)
    if (target / ".git").exists():
        raise OutputError(f"{target}: a repository lies around it, and its folder is replaced whole: change a copy")
    with ExitStack() as stack:
        stack.enter_context(open_store(target)).close()  # says what it is instead, before anything is made beside it
        sink = stack.enter_context(open_sink(target, overwrite=True))
        # Only now that no other process can change it: what is read is what will be replaced.
        store = stack.enter_context(open_store(target))
        manifest = read_manifest(store)
        if minor(manifest.version) > minor(NEWEST):
            raise VersionError(f"{target}: written in format {manifest.version}, and this tallstore writes {NEWEST}")
        yield Change(target, store, manifest, Reader(store, manifest), sink)
        sink.abort()  # after a commit there is nothing left to remove
