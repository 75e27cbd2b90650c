"""A place beside the target where output grows until it is whole, and the one step that puts it in place.

A killed process can leave its staging folder behind: it carries a fixed name beside the target, so that the next run
finds it, sees by its lock that nobody works in it, and clears it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

from tallstore.errors import OutputError, OutputExistsError
from tallstore.stores.folder_lock import remove_unless_held, staging_folder

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_LEAST = 1 << 16
"""Bytes that are worth giving back."""
_LOCK = "lock"
WORK = "work"
"""The folder in it that a resumed run finds again."""


class Staging:
    """A locked scratch folder `.NAME.partial` beside the target `NAME`.

    What a dead run left in it is cleared away at once; with `resume`, all but its folder `WORK` is, and that folder
    also stays behind where this run fails.
    """

    def __init__(self, target: Path, *, resume: bool = False, shown: Path | str | None = None) -> None:
        """`shown`: how messages name what is written, where that is not the target."""
        self.target = target
        shown = shown or target
        self._resume, self._process = resume, os.getpid()
        self.folder = staging_folder(target)
        self._made: list[Path] = []
        self._lock: IO[bytes] | None = None
        try:
            with translated(shown):
                self._make_parents()
                self._lock = _locked(self.folder)
            if self._lock is None:
                raise OutputError(f"{shown}: another process is writing it; wait for it to end")
            with translated(shown):
                self._clear(keep=WORK if resume else None)
        except BaseException:
            if self._lock is None:
                _remove_unlocked(self.folder)
            self.abandon()
            raise

    def path(self, name: str) -> Path:
        """Where a scratch file or folder of that name goes."""
        return self.folder / name

    def publish(self, name: str, *, overwrite: bool, durable: bool = True) -> None:
        """Put the scratch file or folder `name` in the target's place, in one step, and clear up.

        `durable`: wait until the disk has it, so that it is whole after a power cut too.
        """
        source = self.path(name)
        with translated(self.target):
            if durable:
                sync(source)
            if self.target.exists() and not overwrite:
                raise OutputExistsError(f"{self.target}: appeared while it was being written; nothing was replaced")
            if self.target.is_dir() or (self.target.exists() and source.is_dir()):
                _exchange(source, self.target)
            else:
                source.replace(self.target)
            with contextlib.suppress(PermissionError):  # a folder may be one to write to and not to read
                _flush(self.target.parent)
        self.discard()

    def abandon(self) -> None:
        """Give up: remove everything; where the run may be resumed, everything but its work."""
        if not self._resume or not self.path(WORK).is_dir():
            self.discard()
        elif self._lock is not None:
            with contextlib.suppress(OSError):
                self._clear(keep=WORK)
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Remove the scratch folder and all in it, and the target's parents if they were made for nothing."""
        try:
            self._discard()
        except BaseException:  # interrupted: it is done all the same, and the interrupt goes on
            self._discard()
            raise

    def _discard(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._clear()
                # The lock goes last: whoever waits for it finds nothing that is still being removed.
                (self.folder / _LOCK).unlink(missing_ok=True)
                self.folder.rmdir()
            self._lock.close()
            self._lock = None
        while self._made:
            with contextlib.suppress(OSError):
                self._made.pop().rmdir()

    def _make_parents(self) -> None:
        parents = (self.target.parent, *self.target.parent.parents)
        for parent in reversed([p for p in parents if not p.exists()]):
            self._made.append(parent)  # first: an interrupt may come when it is made
            parent.mkdir(exist_ok=True)

    def _clear(self, keep: str | None = None) -> None:
        for left in self.folder.iterdir():
            if left.name not in {_LOCK, keep}:
                _remove(left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def __del__(self) -> None:
        """An interrupt can come when a place is made and nobody has it yet who would clear it away."""
        if getattr(self, "_lock", None) is not None and self._process == os.getpid():  # else a parent's, which goes on
            self.abandon()


@contextlib.contextmanager
def translated(target: Path | str) -> Iterator[None]:
    """Turn the operating system's errors into OutputError with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "the disk is full: free space or choose another place",
            errno.EDQUOT: "the disk quota is used up: free space or choose another place",
            errno.EACCES: "no permission to write there",
            errno.EPERM: "no permission to write there",
            errno.EROFS: "the file system is read-only",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EEXIST: "a part of the path is a file",
        }.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"{target}: cannot be written: {remedy}") from error


def followed(target: Path) -> Path:
    """What a link points at, so that output lands there and the link stays; any other path as it is."""
    return target.resolve() if target.is_symlink() and target.exists() else target


def refuse_existing(target: Path, *, overwrite: bool, ours: bool, what: str) -> None:
    """Raise OutputExistsError unless the target is free, or is one of `ours` and overwriting was asked for."""
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise OutputExistsError(
            f"{target}: is there already; choose another name, or pass overwrite=True (--overwrite)"
        )
    if not ours:
        raise OutputExistsError(f"{target}: is not {what}, so it is not overwritten; choose another name")


def sync(path: Path) -> None:
    """Flush a file, or a folder and all below it, to the disk."""
    if path.is_dir() and not path.is_symlink():
        for below in path.iterdir():
            if below.is_dir() or below.is_file():
                sync(below)
    _flush(path)


def give_back(handle: int, start: int, length: int) -> bool:
    """Let a scratch file's bytes go that are needed no more, where the system can: what is written next gets the room.

    They read as zeros then. What cannot be given back, or is too little to be worth it, stays. Whether they went.
    """
    if sys.platform != "linux" or sys.maxsize <= 1 << 32 or length < _LEAST:
        return False
    punch = _fallocate()
    where = ctypes.c_int64(start), ctypes.c_int64(length)
    return punch is not None and bool(punch(handle, _KEEP_SIZE | _PUNCH_HOLE, *where) == 0)


@cache
def _fallocate() -> Any:
    """The C library's; None where it has none."""
    return getattr(ctypes.CDLL(None), "fallocate", None)


def _flush(path: Path) -> None:
    """Flush one file, or a folder's own entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(folder: Path) -> IO[bytes] | None:
    """The folder's lock, held; None if another process holds it. Makes the folder; leaves none behind that failed."""
    while True:
        folder.mkdir(exist_ok=True)
        handle = None
        try:
            handle = (folder / _LOCK).open("ab")
            if not _try_lock(handle):
                handle.close()
                return None
            if (folder / _LOCK).stat().st_ino == os.fstat(handle.fileno()).st_ino:
                return handle
        except FileNotFoundError:
            pass  # its last user removed the folder, or the lock, just now: what is locked protects nothing
        except BaseException:  # an interrupt, too
            if handle is not None:
                handle.close()
            _remove_unlocked(folder)
            raise
        if handle is not None:
            handle.close()


def _remove_unlocked(folder: Path) -> None:
    """Remove a scratch folder that nobody works in and that has nothing in it: an interrupt came before it was ours."""
    with contextlib.suppress(OSError):
        if not (folder / _LOCK).exists():
            folder.rmdir()
            return
        with (folder / _LOCK).open("ab") as handle:
            if _try_lock(handle):
                (folder / _LOCK).unlink()
                folder.rmdir()


def _try_lock(handle: IO[bytes]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_unless_held(path)
    else:
        path.unlink()


def _exchange(source: Path, target: Path) -> None:
    """Swap two paths in one step where the system can; else by renames, undone if the second one fails."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
                return
    aside = source.parent / "replaced"
    target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        aside.rename(target)
        raise
