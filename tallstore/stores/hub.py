"""Archives on the Hugging Face Hub: one repository at one pinned commit, through the Hub's own cache or by range.

Through the cache, a file is fetched when something of it is first wanted, and what was fetched is held against the
manifest's hash before anything is read from it. What lies in the cache already is held to its size here, and to its
checksums wherever it is read; a file found damaged is named, dropped and fetched anew, once. So is a `.tall` file.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tallstore.concurrency import ordered
from tallstore.errors import (
    ArchiveError,
    DamagedError,
    UnreachableError,
)
from tallstore.format import limits
from tallstore.format.manifest import MANIFEST, PartRecord
from tallstore.stores.base import Range, pieces
from tallstore.stores.folder_lock import READ
from tallstore.stores.hub_repo import Repo
from tallstore.stores.local import FilesStore, FileStore, LocalFile
from tallstore.stores.retries import with_retries

Progress = Callable[[str, int, int], None]

_WORKERS = 8
_TRIES = 3
_PIECE = 1 << 22
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubStore(FilesStore):
    """A repository's files, through the Hub's cache: each fetched whole when it is first wanted."""

    far = True

    def __init__(self, repo: Repo, *, mapped: bool = True) -> None:
        super().__init__(Path(repo.id), mapped=mapped)
        self.url = repo.url
        self.repo = repo
        self._records: Mapping[str, PartRecord] = {}
        self._places: dict[str, Path] = {}
        self._fetched: set[str] = set()
        self._renewed: set[str] = set()
        self._retired: list[LocalFile] = []
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    @property
    def derived_cache(self) -> Path | None:
        with _caching(self.url):
            return self.repo.derived_cache(MANIFEST)

    def _handle(self, path: str) -> int:
        return os.open(self.local(path), READ)

    def paths(self) -> list[str]:
        if not self.repo.access.local_files_only:
            try:
                return self.repo.paths()
            except UnreachableError:
                pass  # what is in the cache is what can be read
        return [path for path in (MANIFEST, *self._records) if self.repo.cached(path) is not None]

    def expect(self, records: Mapping[str, PartRecord]) -> None:
        self._records = records

    def prefetch(self, ranges: Sequence[Range]) -> None:
        self.fetch(dict.fromkeys(wanted.path for wanted in ranges))

    def fetch(self, paths: Sequence[str] | Mapping[str, Any], progress: Progress | None = None) -> None:
        """Have files in the cache, fetched several at a time, the largest first. Progress counts bytes."""
        sizes = {path: self._records[path].size if path in self._records else 0 for path in paths}
        wanted = sorted((p for p in sizes if not self._is_here(p)), key=lambda p: -sizes[p])
        done, total = 0, sum(sizes[p] for p in wanted)
        if not wanted:
            return
        jobs = [partial(self.local, path) for path in wanted]
        for path, _ in zip(wanted, ordered(jobs, _WORKERS, ahead=len(jobs), name="tallstore-fetch"), strict=True):
            done += sizes[path]
            if progress is not None:
                progress(path, done, total)

    def check(self, paths: Sequence[str]) -> None:
        """Hold every byte of files to the manifest's hashes; what is damaged is fetched anew."""
        for path in paths:
            if path in self._records and path not in self._fetched and self._wrong(path, self.local(path)):
                if not self.refetch(path):
                    raise DamagedError(f"{self.url}: {path}: damaged, and cannot be fetched anew")
                self.local(path)

    def refetch(self, path: str) -> bool:
        with self._lock(path), _caching(f"{self.url}: {path}"):
            if path in self._renewed:  # and whoever asks again still had the old bytes
                return True
            place = self.repo.cached(path)
            if place is None:
                return False
            self._renewed.add(path)
            self._drop(path, place, "damaged in the local cache")
            _refuse_offline(self.repo, f"{self.url}: {path}")
        return True

    def close(self) -> None:
        super().close()
        for file in self._retired:
            file.close()

    @property
    def fetched(self) -> frozenset[str]:
        """Paths that were fetched, and not found in the cache, since the archive was opened."""
        return frozenset(self._fetched)

    def local(self, path: str) -> Path:
        with self._lock(path), _caching(f"{self.url}: {path}"):
            if path not in self._places:
                self._places[path] = self._have(path)
            return self._places[path]

    def _is_here(self, path: str) -> bool:
        """Whether a file is in the cache and right in size."""
        with self._lock(path), _caching(f"{self.url}: {path}"):
            if path not in self._places and (cached := self._cached(path)) is not None:
                self._places[path] = cached
            return path in self._places

    def _cached(self, path: str) -> Path | None:
        if self.repo.access.force_download or (cached := self.repo.cached(path)) is None:
            return None
        if path not in self._records or cached.stat().st_size == self._records[path].size:
            return cached
        self._drop(path, cached, "of the wrong size in the local cache")
        return None

    def _have(self, path: str) -> Path:
        """The file in the cache; right in size, and in every byte if it was fetched just now."""
        if (cached := self._cached(path)) is not None:
            return cached
        if path in self._renewed:  # another thread removed it
            _refuse_offline(self.repo, f"{self.url}: {path}")
        if self.repo.access.force_download and (old := self.repo.cached(path)) is not None:
            remove(old)
        cached = _obtained(self.repo, path, partial(self._wrong, path), partial(self._drop, path))
        self._fetched.add(path)
        return cached

    def _wrong(self, path: str, place: Path) -> str:
        """What is wrong with a file's bytes; nothing if they are those that the manifest says."""
        record = self._records.get(path)
        if record is None:
            return ""
        try:
            if (size := place.stat().st_size) != record.size:
                return f"{size} bytes, and the manifest says {record.size}"
            return "" if sha256_of(place) == record.sha256 else "damaged (sha256 differs)"
        except OSError as error:
            return f"unreadable ({error.strerror})"

    def _drop(self, path: str, place: Path, why: str) -> None:
        """Name a damaged file, and remove it from the cache, so that nobody takes it for whole."""
        _remove_named(place, f"{self.url}: {path}: {why}")
        self._places.pop(path, None)
        if (old := self._open.pop(path, None)) is not None:
            self._retired.append(old)  # others may be reading from it

    def _lock(self, path: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(path, threading.Lock())


class HubFileStore(FileStore):
    """A `.tall` file of a repository that is in the Hub's cache; fetched anew, whole and once, if it is damaged there.

    A large file lies in the cache under its sha256, so that a damaged one is told from one that the repository holds
    so: that one is not fetched again. A file of another name is.
    """

    def __init__(self, repo: Repo, path: str, place: Path, *, mapped: bool = True) -> None:
        self._repo, self._path, self._mapped = repo, path, mapped
        self._records: Mapping[str, PartRecord] = {}
        self._retired: list[LocalFile] = []
        self._lock = threading.Lock()
        self._renewed = False
        url = f"{repo.url}/{path}"
        with _caching(url):
            try:
                super().__init__(place, mapped=mapped, url=url)
            except ArchiveError:
                fetched = self._anew(place)
                if fetched is None:
                    raise
                super().__init__(fetched, mapped=mapped, url=url)

    @property
    def derived_cache(self) -> Path | None:
        with _caching(self.url):
            return self._repo.derived_cache(self._path)

    def expect(self, records: Mapping[str, PartRecord]) -> None:
        self._records = records

    def check(self, paths: Sequence[str]) -> None:
        """Hold every byte of files to the manifest's hashes; if one is damaged, the archive is fetched anew."""
        for path in paths:
            if self._wrong(path) and (not self.refetch(path) or self._wrong(path)):
                raise DamagedError(f"{self.url}: {path}: damaged (sha256 differs), and cannot be fetched anew")

    def refetch(self, path: str) -> bool:  # noqa: ARG002 - all of them are in one file
        with self._lock, _caching(self.url):
            if self._renewed:  # and whoever asks again still had the old bytes
                return True
            place = self._repo.cached(self._path)
            if place is None or (fetched := self._anew(place)) is None:
                return False
            opened = self._opened(fetched, mapped=self._mapped)
            self._retired.append(self._held[0])  # others may be reading from it
            self._held = opened
        return True

    @property
    def fetched(self) -> frozenset[str]:
        """Paths that were fetched since the archive was opened: all, if the file was fetched anew."""
        return frozenset(self.paths() if self._renewed else ())

    def close(self) -> None:
        super().close()
        for file in self._retired:
            file.close()

    def _anew(self, place: Path) -> Path | None:
        """The file, fetched in place of one that was found damaged; None if the repository's own is no other."""
        if named_right(place):
            return None
        self._renewed = True
        url = f"{self._repo.url}/{self._path}"
        _remove_named(place, f"{url}: damaged in the local cache")
        _refuse_offline(self._repo, url)
        return _obtained(
            self._repo,
            self._path,
            lambda file: "damaged (sha256 differs)" if named_right(file) is False else "",
            lambda file, why: _remove_named(file, f"{url}: {why}"),
        )

    def _wrong(self, path: str) -> bool:
        """Whether bytes of a file of the archive are others than the manifest says."""
        record = self._records.get(path)
        if record is None:
            return False
        if self.size(path) != record.size:
            return True
        digest = hashlib.sha256()
        for piece in pieces(self, path, record.size):
            digest.update(piece)
        return digest.hexdigest() != record.sha256


def _obtained(repo: Repo, path: str, wrong: Callable[[Path], str], drop: Callable[[Path, str], None]) -> Path:
    """A file that is fetched into the cache, and fetched once more if something is wrong with it."""
    cap = limits.MANIFEST_BYTES if path == MANIFEST else None
    for _ in range(2):
        file = with_retries(f"{repo.url}: {path}", lambda: repo.download(path, cap), _TRIES)
        why = wrong(file)
        if not why:
            return file
        drop(file, f"{why} after it was fetched")
    raise DamagedError(f"{repo.url}: {path}: {why}, twice in a row: the repository's own copy is damaged")


def _refuse_offline(repo: Repo, where: str) -> None:
    if repo.access.local_files_only:
        raise UnreachableError(
            f"{where}: the file in the local cache was damaged, and is removed; fetch it again with the network"
        )


def _remove_named(place: Path, what: str) -> None:
    warnings.warn(f"{what}: removed, to be fetched again", stacklevel=3)
    remove(place)


@contextmanager
def _caching(where: str) -> Iterator[None]:
    """Turn what the disk has against the cache into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise DamagedError(f"{where}: the local cache cannot be read or written ({error.strerror or error})") from error


def named_right(place: Path) -> bool | None:
    """Whether a file of the cache has the sha256 that the cache has it under; None if its name is no sha256."""
    blob = place.resolve()
    return sha256_of(blob) == blob.name if _SHA256.fullmatch(blob.name) else None


def sha256_of(place: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with place.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def remove(place: Path) -> None:
    """Remove a file of the cache: the link, and the bytes that it points at."""
    blob = place.resolve()
    place.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
