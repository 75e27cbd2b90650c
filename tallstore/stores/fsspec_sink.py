"""Archives written on fsspec's file systems: s3://, gs://, memory://, … The manifest is put last, and is the commit.

Parts are put together on this machine and go up as they are, large ones in pieces (multipart). A store of objects
cannot swap folders: an archive that is to be replaced is gone, by its manifest, before the first of its files is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tallstore.errors import AccessError, OutputError, OutputExistsError, TallstoreError
from tallstore.format.manifest import MANIFEST
from tallstore.stores.base import Sink
from tallstore.stores.fsspec_files import SystemFiles
from tallstore.stores.local import FileSink
from tallstore.stores.staging import WORK, Staging, translated
from tallstore.stores.zip_directory import SUFFIX

UPLOAD_BLOCK = 32 << 20
"""Bytes of a piece of a multipart upload: 10,000 of them, the most there may be, are 335 GB."""
_PIECE = 4 << 20
_T = TypeVar("_T")


class Putter:
    """Writes objects below one address, or the one at it."""

    def __init__(self, url: str, options: Mapping[str, Any] | None) -> None:
        files = SystemFiles(url, options)
        self.url, self._system, self._full = files.url, files.system, files.full

    def put(self, path: str, pieces: Iterable[bytes | memoryview], size: int) -> int:
        """Write an object of that size, which shows when it is whole. How many bytes there were."""

        failed: list[Exception] = []
        pieces = _noted(pieces, failed)

        def work() -> int:
            self._make_folder(path)
            if size <= UPLOAD_BLOCK:
                data = b"".join(map(bytes, pieces))
                self._system.pipe_file(self._full(path), data)
                return len(data)
            file = self._system.open(self._full(path), "wb", block_size=UPLOAD_BLOCK, autocommit=False)
            try:
                written = sum(file.write(piece) for piece in pieces)
                file.close()
                file.commit()
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong first is what counts
                    file.discard()
                raise
            return int(written)

        try:
            return self._try(work)
        except TallstoreError:
            if failed:  # it was not the writing that failed
                raise failed[0] from None
            raise

    def sizes(self) -> dict[str, int]:
        """Bytes of every object below the address."""

        def work() -> dict[str, int]:
            self._system.invalidate_cache()
            root = self._full("").rstrip("/")
            try:
                listing = self._system.find(root, detail=True)
            except FileNotFoundError:
                return {}
            return {str(name).removeprefix(f"{root}/"): int(facts["size"]) for name, facts in listing.items()}

        return self._try(work)

    def exists(self, path: str) -> bool:
        """Whether an object is there."""

        def work() -> bool:
            self._system.invalidate_cache()
            return bool(self._system.isfile(self._full(path)))

        return self._try(work)

    def remove(self, path: str) -> None:
        """Remove an object, if it is there."""

        def work() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._full(path))

        self._try(work)

    def _make_folder(self, path: str) -> None:
        # Stores of objects know no folders, and some refuse to make the bucket that is there.
        folder = self._full(path).rpartition("/")[0]
        with contextlib.suppress(Exception):
            if not self._system.isdir(folder):
                self._system.makedirs(folder, exist_ok=True)

    def _try(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except PermissionError:
            raise AccessError(f"{self.url}: may not be written: check your rights to it") from None
        except FileNotFoundError:
            raise OutputError(f"{self.url}: cannot be written: there is no such bucket or folder") from None
        except TallstoreError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise OutputError(f"{self.url}: cannot be written ({type(error).__name__}); try again later") from None


def _noted(pieces: Iterable[bytes | memoryview], failed: list[Exception]) -> Iterator[bytes | memoryview]:
    """The same; an error of whoever makes them is noted, to be told from one of writing them."""
    try:
        yield from pieces
    except Exception as error:
        failed.append(error)
        raise


class FarFolderSink(Sink):
    """An archive as objects below one address."""

    def __init__(self, url: str, options: Mapping[str, Any] | None, *, overwrite: bool, resume: bool) -> None:
        self._putter = Putter(url, options)
        self.target = self._putter.url
        self._overwrite = overwrite
        self._staging = Staging(_near(url), resume=resume, shown=self.target)
        self.work = self._staging.path(WORK)
        self._put: dict[str, int] = {}
        self._manifest: bytes | None = None

    def put(self, path: str, pieces: Iterable[bytes | memoryview], size: int) -> None:
        if path == MANIFEST:
            self._manifest = b"".join(map(bytes, pieces))
            return
        if not self._put and self._overwrite:
            self._putter.remove(MANIFEST)
        self._put[path] = size
        written = self._putter.put(path, pieces, size)
        if written != size:
            raise AssertionError(f"{path}: {written} bytes written, {size} announced")

    def commit(self) -> None:
        assert self._manifest is not None
        there = self._putter.sizes()
        if lost := next((path for path, size in self._put.items() if there.get(path) != size), None):
            raise OutputError(f"{self.target}: {lost} was put there and is not there whole: nothing was committed")
        if MANIFEST in there and not self._overwrite:
            raise OutputExistsError(f"{self.target}: appeared while it was being written; nothing was replaced")
        self._putter.put(MANIFEST, [self._manifest], len(self._manifest))
        self._remove(path for path in there if path not in self._put and path.startswith(_OURS))
        self._staging.discard()

    def abort(self) -> None:
        self._remove(self._put)
        self._staging.abandon()

    def _remove(self, paths: Iterable[str]) -> None:
        with contextlib.suppress(OutputError, AccessError):  # they are no part of an archive, whether there or not
            for path in paths:
                self._putter.remove(path)


class FarFileSink(FileSink):
    """An archive as one object: put together here, and put there whole."""

    def __init__(self, url: str, options: Mapping[str, Any] | None, *, overwrite: bool, resume: bool) -> None:
        self._putter = Putter(url, options)
        self._replace = overwrite
        super().__init__(_near(url), overwrite=True, resume=resume, shown=self._putter.url)

    def commit(self) -> None:
        with translated(self.target):
            self._zip.close()
        if not self._replace and self._putter.exists(""):
            raise OutputExistsError(f"{self.target}: appeared while it was being written; nothing was replaced")
        archive = self._staging.path("archive")
        self._putter.put("", _read(archive), archive.stat().st_size)
        self._staging.discard()


_OURS = ("base/", "vector/", "tasks/", "common/")
"""Folders of an archive: what a replaced one had there goes with it."""


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _near(url: str) -> Path:
    """Where on this machine parts of that archive are put together: the same place when a run is taken up."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"tallstore-{user}-{name}"


def check_far_target(url: str, options: Mapping[str, Any] | None, *, overwrite: bool) -> None:
    """Raise OutputExistsError if an archive cannot be put there: before the work, not after it."""
    putter = Putter(url, options)
    there = putter.exists("" if is_single(url) else MANIFEST)
    if there and not overwrite:
        raise OutputExistsError(
            f"{putter.url}: is there already; choose another name, or pass overwrite=True (--overwrite)"
        )
    if not there and not is_single(url) and putter.sizes():
        raise OutputExistsError(f"{putter.url}: holds files and is no tallstore archive; choose another name")


def open_far_sink(url: str, options: Mapping[str, Any] | None, *, overwrite: bool, resume: bool) -> Sink:
    """Begin an archive there: a single object if the name ends in `.tall`, else several below it."""
    check_far_target(url, options, overwrite=overwrite)
    return (FarFileSink if is_single(url) else FarFolderSink)(url, options, overwrite=overwrite, resume=resume)


def is_single(url: str) -> bool:
    """Whether an address is of one `.tall` file."""
    return url.split("?", maxsplit=1)[0].endswith(SUFFIX)
