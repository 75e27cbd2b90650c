"""A place beside the target where output grows until it is whole, and the one step that puts it in place.

A killed process can leave its staging folder behind: it carries a fixed name beside the target, so that the next run
finds it, sees by its lock that nobody works in it, and clears it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import IO, Self

from tallstore.errors import OutputError, OutputExistsError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Staging:
    """A locked scratch folder `.NAME.partial` beside the target `NAME`."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.parent / f".{target.name}.partial"
        self._lock: IO[bytes] | None = None
        with translated(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / "lock").open("ab")
        if not _try_lock(self._lock):
            self._lock.close()
            raise OutputError(f"{target}: another process is writing it; wait for it to end")
        with translated(target):
            for left in self.folder.iterdir():
                if left.name != "lock":
                    _remove(left)

    def path(self, name: str) -> Path:
        """Where a scratch file or folder of that name goes."""
        return self.folder / name

    def publish(self, name: str, *, overwrite: bool) -> None:
        """Put the scratch file or folder `name` in the target's place, in one step, and clear up."""
        source = self.path(name)
        with translated(self.target):
            sync(source)
            if self.target.exists() and not overwrite:
                raise OutputExistsError(f"{self.target}: appeared while it was being written; nothing was replaced")
            if self.target.is_dir() or (self.target.exists() and source.is_dir()):
                _exchange(source, self.target)
            else:
                source.replace(self.target)
            sync(self.target.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the scratch folder and all in it."""
        if self._lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


@contextlib.contextmanager
def translated(target: Path):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a context manager
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


def refuse_existing(target: Path, *, overwrite: bool, ours: bool, what: str) -> None:
    """Raise OutputExistsError unless the target is free, or is one of `ours` and overwriting was asked for."""
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise OutputExistsError(f"{target}: is there already; choose another name or overwrite it (--overwrite)")
    if not ours:
        raise OutputExistsError(f"{target}: is not {what}, so it is not overwritten; choose another name")


def sync(path: Path) -> None:
    """Flush a file, or a folder and all below it, to the disk."""
    if path.is_dir() and not path.is_symlink():
        for below in path.iterdir():
            if below.is_dir() or below.is_file():
                sync(below)
    if path.is_dir() and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _try_lock(handle: IO[bytes]) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
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
