"""Folders that are read while somebody may replace them: who has one open keeps it, until the last reader closes it.

A file that is replaced lives on for those who have it open; a folder does not, since it is emptied to be removed. So a
reader opens the folder itself, finds files by it and not by its name, and holds a shared lock on it. Whoever replaces
it moves it aside, in one step, and removes it if nobody holds it. Else it stays aside under a name that its readers
know, and goes with the last of them, or with the next writer. Where the system has no such locks, or no folders that
can be opened, files are found by name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

__all__ = ["READ", "HeldFolder", "remove_unless_held", "staging_folder"]

READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""How files are opened to be read."""


def staging_folder(target: Path) -> Path:
    """Where what will be `target` grows, and what it was stays while it is held."""
    return target.parent / f".{target.name}.partial"


class HeldFolder:
    """A folder that is open for reading, and stays as it is until `close`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._handle = None if sys.platform == "win32" else _opened(root)
        self._close = weakref.finalize(self, _release, self._handle, root.resolve())

    def open(self, path: str) -> int:
        """A handle of a regular file in it. FileNotFoundError where there is none; links are followed."""
        where, folder = (path, self._handle) if self._handle is not None else (str(self._root / path), None)
        # Looked at before: opening a pipe waits for its other end, and opening a device may do anything.
        if not stat.S_ISREG(os.stat(where, dir_fd=folder).st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return os.open(where, READ, dir_fd=folder)

    def files(self) -> list[str]:
        """Every regular file below it, links to such files too; sorted. Folders that may not be read are left out."""
        return sorted(self._files())

    def _files(self) -> Iterator[str]:
        if sys.platform == "win32":
            yield from (p.relative_to(self._root).as_posix() for p in self._root.rglob("*") if p.is_file())
            return
        for folder, _, names, handle in os.fwalk(".", dir_fd=self._handle, onerror=_unless_forbidden):
            for name in names:
                with contextlib.suppress(OSError):  # a link that leads nowhere
                    if stat.S_ISREG(os.stat(name, dir_fd=handle).st_mode):
                        yield os.path.normpath(f"{folder}/{name}")

    def place(self, path: str) -> Path:
        """A path that leads to a file of this folder, also when it was replaced, where the system has such paths."""
        by_handle = Path(f"/proc/self/fd/{self._handle}")
        return (by_handle if self._handle is not None and by_handle.exists() else self._root) / path

    def close(self) -> None:
        """Let it go."""
        self._close()


def _unless_forbidden(error: OSError) -> None:
    if not isinstance(error, PermissionError):
        raise error


def _opened(root: Path) -> int:
    """A handle of the folder that is in that place now, with a shared lock where there are locks."""
    import fcntl

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


def _release(handle: int | None, root: Path) -> None:
    """Close, and remove the folder if it was replaced meanwhile and nobody else holds it."""
    if handle is None:
        return
    aside = None
    with contextlib.suppress(OSError):  # where the disk fails, the next writer removes it
        aside = staging_folder(root) / _held_name(handle)
    os.close(handle)  # first: a process that was forked may still hold it by the same lock
    with contextlib.suppress(OSError):
        if aside is not None and aside.is_dir():
            remove_unless_held(aside)
            aside.parent.rmdir()


def _held_name(handle: int) -> str:
    return f"held-{os.fstat(handle).st_ino}"


def remove_unless_held(folder: Path) -> None:
    """Remove a folder that is aside; if somebody holds it, give it the name by which the last holder finds it."""
    if sys.platform == "win32":
        shutil.rmtree(folder)
        return
    import fcntl

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
