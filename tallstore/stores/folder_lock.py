"""Folders that are read while somebody may replace them: who has one open keeps it, until the last reader closes it.

A file that is replaced lives on for those who have it open; a folder does not, since it is emptied to be removed. So a
reader opens the folder itself, finds files by it and not by its name, and holds a shared lock on it. Whoever replaces
it moves it aside, in one step, and removes it if nobody holds it. Else it stays aside under a name that its readers
know, and goes with the last of them, or with the next writer. Where the file system has no
such locks, nothing is kept for readers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path

__all__ = ["READ", "HeldFolder", "remove_unless_held", "staging_folder"]

READ = os.O_RDONLY | os.O_CLOEXEC
"""How files are opened to be read."""


def staging_folder(target: Path) -> Path:
    """Where what will be `target` grows, and what it was stays while it is held."""
    return target.parent / f".{target.name}.partial"


class HeldFolder:
    """A folder that is open for reading, and stays as it is until `close`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._handle = _opened(root)
        self._close = weakref.finalize(self, _release, self._handle, root.resolve())

    def open(self, path: str) -> int:
        """A handle of a regular file in it. FileNotFoundError where there is none; links are followed."""
        # Looked at before: opening a pipe waits for its other end, and opening a device may do anything.
        if not stat.S_ISREG(os.stat(path, dir_fd=self._handle).st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return os.open(path, READ, dir_fd=self._handle)

    def files(self) -> list[str]:
        """Every regular file below it, links to such files too; sorted. Folders that may not be read are left out."""
        return sorted(self._files())

    def _files(self) -> Iterator[str]:
        for folder, _, names, handle in os.fwalk(".", dir_fd=self._handle, onerror=_unless_forbidden):
            for name in names:
                with contextlib.suppress(OSError):  # a link that leads nowhere
                    if stat.S_ISREG(os.stat(name, dir_fd=handle).st_mode):
                        yield os.path.normpath(f"{folder}/{name}")

    def place(self, path: str) -> Path:
        """A path that leads to a file of this folder, also when it was replaced, where the system has such paths."""
        by_handle = Path(f"/proc/self/fd/{self._handle}")
        return (by_handle if by_handle.exists() else self._root) / path

    def close(self) -> None:
        """Let it go."""
        self._close()


def _unless_forbidden(error: OSError) -> None:
    if not isinstance(error, PermissionError):
        raise error


def _opened(root: Path) -> int:
    """A handle of the folder that is in that place now, with a shared lock where there are locks."""
    while True:
        handle = os.open(root, READ | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), root.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was replaced before it was locked, and may be half gone


def _release(handle: int, root: Path) -> None:
    """Close, and remove the folder if it was replaced meanwhile and nobody else holds it."""
    aside = None
    with contextlib.suppress(OSError):  # where the disk fails, the next writer removes it
        aside = staging_folder(root) / _held_name(handle)
    os.close(handle)  # first: a process that was forked may still hold it by the same lock
    if aside is not None:
        try:
            _clear(aside)
        except KeyboardInterrupt:  # nobody would come back for it
            _clear(aside)
            raise


def _clear(aside: Path) -> None:
    with contextlib.suppress(OSError):
        if aside.is_dir():
            remove_unless_held(aside)
            aside.parent.rmdir()


def _held_name(handle: int) -> str:
    return f"held-{os.fstat(handle).st_ino}"


def remove_unless_held(folder: Path) -> None:
    """Remove a folder that is aside; if somebody holds it, give it the name by which the last holder finds it."""
    handle = os.open(folder, READ | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            folder.rename(folder.with_name(_held_name(handle)))
            return
        except OSError:  # no locks here, so nobody holds it by one
            pass
        shutil.rmtree(folder)
    finally:
        os.close(handle)
