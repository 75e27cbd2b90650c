"""Archives on this machine: a folder, or a single `.tall` file (a zip whose entries are stored and aligned)."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zipfile
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tallstore.errors import DamagedError, NotAnArchiveError
from tallstore.format import limits
from tallstore.format.manifest import MANIFEST
from tallstore.stores.base import Range, Sink, Store
from tallstore.stores.folder_lock import READ, HeldFolder
from tallstore.stores.staging import WORK, Staging, followed, refuse_existing, translated
from tallstore.stores.zip_directory import LOCAL, NO_ZIP, SUFFIX, ZipEntry, find_data, read_directory

_EPOCH = (1980, 1, 1, 0, 0, 0)
_ALIGN_ID = 0xD935
"""Extra field that pads a local header so that its data is aligned (the id that Android's zipalign uses)."""
_AT_ONCE = 1 << 18
"""Bytes that are written in one call. For longer ones Linux takes memory that it has in one long piece, which scratch
files just gave back in shorter ones: new memory, which a virtual machine may have to ask its host for, page by page."""


class LocalFile:
    """One open file, mapped or read by position; ranges of it are safe to take from several threads.

    The map is private (copy on write): what a caller does to the memory it gets never reaches the file.
    """

    def __init__(self, handle: int, *, mapped: bool) -> None:
        """Takes the open file over, also if it fails."""
        self._handle = os.fdopen(handle, "rb", buffering=0)
        try:
            self.size = os.fstat(handle).st_size
            self._map = mmap.mmap(handle, 0, access=mmap.ACCESS_COPY) if mapped and self.size else None
        except BaseException:
            self._handle.close()
            raise

    @classmethod
    def at(cls, path: Path, *, mapped: bool) -> LocalFile:
        """The file in that place."""
        return cls(os.open(path, READ), mapped=mapped)

    @property
    def handle(self) -> int:
        """Its descriptor. ValueError once it is closed."""
        return self._handle.fileno()

    def stream(self) -> BinaryIO:
        """The same file, to seek and read in."""
        return os.fdopen(os.dup(self.handle), "rb")

    def state(self) -> Hashable:
        """Device, number, size and times of the file as it is now."""
        status = os.fstat(self.handle)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def read(self, start: int, length: int) -> memoryview:
        if self._map is not None:
            return memoryview(self._map)[start : start + length]
        out = memoryview(bytearray(max(0, min(length, self.size - start))))
        return out[: self.read_into(start, out)]

    def read_into(self, start: int, out: memoryview) -> int:
        """By position, mapped or not: pages that are read once are not worth mapping. How many bytes there were."""
        done = 0
        while done < len(out):
            got = os.preadv(self.handle, [out[done : done + (1 << 30)]], start + done)
            if not got:
                break
            done += got
        return done

    def close(self) -> None:
        # The map closes when the last view of it is gone; closing it here would pull memory from under tensors.
        self._map = None
        self._handle.close()


class _LocalStore(Store):
    """What folder and file share: bounds are checked here, once."""

    def __init__(self, path: Path | str) -> None:
        self.url = str(path)

    @abstractmethod
    def _locate(self, path: str) -> tuple[LocalFile, int, int]:
        """The file that holds `path`, and offset and size in it."""

    def size(self, path: str) -> int:
        return self._locate(path)[2]

    def state(self, path: str) -> Hashable:
        try:
            return self._locate(path)[0].state()
        except OSError as error:
            raise self._unreadable(path, error) from error

    def read(self, path: str, start: int, length: int) -> memoryview:
        try:
            file, offset = self._find(path, start, length)
            data = file.read(offset, length)
        except OSError as error:
            raise self._unreadable(path, error) from error
        if len(data) != length:
            raise self._cut_off(path)
        return data

    def read_into(self, path: str, start: int, out: memoryview) -> None:
        try:
            file, offset = self._find(path, start, len(out))
            read = file.read_into(offset, out)
        except OSError as error:
            raise self._unreadable(path, error) from error
        if read != len(out):
            raise self._cut_off(path)

    def handle(self, path: str, start: int, length: int) -> tuple[int, int] | None:
        try:
            file, offset = self._find(path, start, length)
        except OSError as error:
            raise self._unreadable(path, error) from error
        return file.handle, offset

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """Have the system read ahead: it does so while the caller goes on. What cannot be read shows when it is."""
        if not hasattr(os, "posix_fadvise"):
            return
        for each in ranges:
            with contextlib.suppress(OSError, DamagedError):
                file, offset = self._find(each.path, each.start, each.length)
                os.posix_fadvise(file.handle, offset, each.length, os.POSIX_FADV_WILLNEED)

    def _find(self, path: str, start: int, length: int) -> tuple[LocalFile, int]:
        """The file that holds some bytes of `path`, and where in it they begin."""
        file, offset, size = self._locate(path)
        if start < 0 or length < 0 or start + length > size:
            raise DamagedError(f"{self.url}: {path} ends at byte {size}, and {start + length} are needed: cut off")
        return file, offset + start

    def _unreadable(self, path: str, error: OSError) -> DamagedError:
        return DamagedError(f"{self.url}: {path} cannot be read ({error.strerror})")

    def _cut_off(self, path: str) -> DamagedError:
        return DamagedError(f"{self.url}: {path} is cut off; fetch or pack it again")

    def _missing(self, path: str) -> DamagedError:
        return DamagedError(f"{self.url}: {path} is missing; fetch or pack it again")


class FilesStore(_LocalStore):
    """An archive whose files are files of this machine; each is opened when it is first needed, and kept open."""

    def __init__(self, url: Path, *, mapped: bool) -> None:
        super().__init__(url)
        self._mapped = mapped
        self._open: dict[str, LocalFile] = {}

    @abstractmethod
    def _handle(self, path: str) -> int:
        """Open a file. FileNotFoundError where there is none, or none that is a regular one."""

    def _locate(self, path: str) -> tuple[LocalFile, int, int]:
        file = self._open.get(path)
        if file is None:
            try:
                made = LocalFile(self._handle(path), mapped=self._mapped)
            except (FileNotFoundError, NotADirectoryError):
                raise self._missing(path) from None
            except OSError as error:
                raise self._unreadable(path, error) from error
            file = self._open.setdefault(path, made)
            if file is not made:
                made.close()
        return file, 0, file.size

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()


class FolderStore(FilesStore):
    """An archive as a folder. Links are followed only by the operating system's own rules for the root itself.

    The folder itself is open: it stays what it was for this store when somebody else replaces it.
    """

    def __init__(self, root: Path, *, mapped: bool = True) -> None:
        super().__init__(root, mapped=mapped)
        self._folder = HeldFolder(root)

    def paths(self) -> list[str]:
        try:
            return self._folder.files()
        except OSError as error:
            raise DamagedError(f"{self.url}: cannot be listed ({error.strerror})") from error

    def _handle(self, path: str) -> int:
        return self._folder.open(path)

    def local(self, path: str) -> Path:
        return self._folder.place(path)

    def close(self) -> None:
        super().close()
        self._folder.close()


class FileStore(_LocalStore):
    """An archive as one `.tall` file: the zip's directory is read once, after that only ranges."""

    open_ended = False

    def __init__(self, path: Path, *, mapped: bool = True, url: str | None = None) -> None:
        super().__init__(url or path)
        self._held = self._opened(path, mapped=mapped)

    def paths(self) -> list[str]:
        return list(self._held[1])

    def _locate(self, path: str) -> tuple[LocalFile, int, int]:
        file, entries = self._held
        if path not in entries:
            raise self._missing(path)
        return file, *entries[path]

    def _opened(self, path: Path, *, mapped: bool) -> tuple[LocalFile, dict[str, tuple[int, int]]]:
        """The open file, and offset and size of each entry's data in it."""
        file = LocalFile.at(path, mapped=mapped)
        try:
            with file.stream() as stream:
                infos = read_directory(stream, self.url)
            return file, {info.filename: self._entry(file, info) for info in infos}
        except BaseException:
            file.close()
            raise

    def _entry(self, file: LocalFile, info: ZipEntry) -> tuple[int, int]:
        return find_data(info, file.read, file.size, f"{self.url}: {info.filename}"), info.file_size

    def close(self) -> None:
        self._held[0].close()


class _LocalSink(Sink):
    """What folder and file share: staging, one commit."""

    def __init__(self, target: Path, *, overwrite: bool, resume: bool, shown: str | None = None) -> None:
        check_local_target(target, overwrite=overwrite)
        self.target = shown or target
        self._overwrite = overwrite
        with translated(target):
            self._staging = Staging(followed(target), resume=resume, shown=self.target)
        self.work = self._staging.path(WORK)
        try:
            with translated(target):
                self._begin()
        except BaseException:
            self._staging.abandon()
            raise

    @abstractmethod
    def _begin(self) -> None:
        """Make what grows in the staging folder."""

    def scratch(self, name: str) -> Path:
        return self._staging.path(f"scratch-{name}")

    def abort(self) -> None:
        self._staging.abandon()

    def _publish(self, name: str) -> None:
        self._staging.publish(name, overwrite=self._overwrite)


class FolderSink(_LocalSink):
    """Writes a folder, beside the target until it is whole."""

    def _begin(self) -> None:
        self._root = self._staging.path("archive")
        self._root.mkdir()

    def put(self, path: str, pieces: Iterable[bytes | memoryview], size: int) -> None:
        with translated(self.target):
            full = self._root / path
            full.parent.mkdir(parents=True, exist_ok=True)
            with full.open("xb") as out:
                written = sum(out.write(piece) for piece in _cut(pieces))
        _check_written(path, written, size)

    def adopt(self, path: str, store: Store, source: str) -> None:
        place = store.local(source)
        full = self._root / path
        if place is not None:
            with contextlib.suppress(OSError):  # another file system, or one that knows no links: copied then
                full.parent.mkdir(parents=True, exist_ok=True)
                os.link(place.resolve(), full)
                return
        super().adopt(path, store, source)

    def commit(self) -> None:
        self._publish("archive")


class FileSink(_LocalSink):
    """Writes one `.tall` file: a zip with stored entries whose data begins at multiples of 64 bytes."""

    def _begin(self) -> None:
        self._zip = zipfile.ZipFile(self._staging.path("archive"), "x", zipfile.ZIP_STORED, strict_timestamps=True)

    def put(self, path: str, pieces: Iterable[bytes | memoryview], size: int) -> None:
        info = zipfile.ZipInfo(path, _EPOCH)
        info.create_system = 3
        info.external_attr = 0o100644 << 16
        info.file_size = size
        info.extra = _padding(self._zip.start_dir, len(path.encode()), size)
        with translated(self.target), self._zip.open(info, "w") as out:
            written = sum(out.write(piece) for piece in _cut(pieces))
        _check_written(path, written, size)

    def commit(self) -> None:
        with translated(self.target):
            self._zip.close()
        self._publish("archive")

    def abort(self) -> None:
        if self._zip.fp is not None:
            with contextlib.suppress(OSError):
                self._zip.fp.close()
            self._zip.fp = None
        super().abort()


def _cut(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The same bytes, in pieces that are short enough: see `_AT_ONCE`."""
    for piece in pieces:
        view = memoryview(piece)
        yield from (view[at : at + _AT_ONCE] for at in range(0, len(view), _AT_ONCE))


def _padding(at: int, name_bytes: int, size: int) -> bytes:
    """An extra field after which the entry's data, its header beginning at `at`, is aligned."""
    zip64 = 20 if size * 1.05 > zipfile.ZIP64_LIMIT else 0
    begin = at + LOCAL.size + name_bytes + zip64 + 4
    fill = -begin % limits.ALIGNMENT
    return struct.pack("<HH", _ALIGN_ID, fill) + bytes(fill)


def _check_written(path: str, written: int, size: int) -> None:
    if written != size:
        raise AssertionError(f"{path}: {written} bytes written, {size} announced")


def _is_archive(path: Path) -> bool:
    """Whether something is plainly an archive, and nothing more precious such as a repository with one in it."""
    if path.is_dir():
        return (path / MANIFEST).is_file() and not (path / ".git").exists()
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (*NO_ZIP, OSError):
        return False


def open_store(path: str | os.PathLike[str], *, mapped: bool = True) -> Store:
    """Open a local archive for reading: a folder with a manifest, or a `.tall` file.

    Args:
        path: where it lies.
        mapped: map files into memory (quickest on local disks). False reads by position and in order, which is
            much quicker on network file systems.

    Raises:
        NotAnArchiveError: nothing is there, or what is there is no archive.
    """
    try:
        return _open_store(Path(path), mapped=mapped)
    except OSError as error:
        raise NotAnArchiveError(f"{path}: cannot be read ({error.strerror})") from error


def _open_store(path: Path, *, mapped: bool) -> Store:
    if path.is_dir():
        if not (path / MANIFEST).is_file():
            raise NotAnArchiveError(f"{path}: a folder without {MANIFEST}: not an archive, or one never finished")
        return FolderStore(path, mapped=mapped)
    if not path.exists():
        raise NotAnArchiveError(f"{path}: there is nothing there: check the path, or pack one first (tallstore pack)")
    if not path.is_file():
        raise NotAnArchiveError(f"{path}: neither a folder nor a file")
    return FileStore(path, mapped=mapped)


def check_local_target(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise OutputExistsError if an archive cannot be put there: before the work, not after it."""
    target = Path(path)
    with translated(target):
        refuse_existing(target, overwrite=overwrite, ours=_is_archive(target), what="a tallstore archive")


def open_local_sink(path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> Sink:
    """Begin an archive on this machine; see `open_sink`."""
    target = Path(path)
    return (FileSink if target.suffix == SUFFIX else FolderSink)(target, overwrite=overwrite, resume=resume)
