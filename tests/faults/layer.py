"""A layer between this process and its files: it counts operations below one folder, and spoils the n-th.

Everything in Python that opens, reads, writes, names or removes files goes through here: `open`, what it gives, the
functions of `os`, memory maps, and the system's exchange of two names; and what is sent to other machines, wherever it
goes. A write that fails or is the last one leaves half of its bytes behind, as a full disk and a killed process do.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

KILL = "kill"
_BY_PATH = {
    "mkdir": "write", "rmdir": "write", "rename": "write", "replace": "write", "unlink": "write", "remove": "write",
    "link": "write", "symlink": "write", "truncate": "write", "chmod": "write",
    "stat": "read", "lstat": "read", "scandir": "read", "listdir": "read", "readlink": "read",
}  # fmt: skip
_BY_HANDLE = {
    "fsync": "write", "ftruncate": "write", "write": "write", "pwrite": "write", "pwritev": "write", "sendfile": "write",
    "read": "read", "pread": "read", "preadv": "read", "fstat": "read",
}  # fmt: skip


class Layer:
    """Counts, and spoils one operation."""

    def __init__(self, root: str, kind: str, fault: str, at: int) -> None:
        """Of this process, from `install` on.

        Args:
            root: only what lies below this folder counts.
            kind: `write` (what changes something), `read`, or `send`.
            fault: `kill`, or the name of an error (`ENOSPC`, `EIO`, `ECONNRESET`).
            at: the operation that is spoiled, from 1 on; 0 only counts.
        """
        self.root, self.kind, self.fault, self.at = os.path.realpath(root), kind, fault, at
        self.counts = {"write": 0, "read": 0, "send": 0}
        self.handles: set[int] = set()
        self._lock = threading.Lock()

    def ours(self, path: Any, folder: Any = None) -> bool:
        if isinstance(path, int):
            return path in self.handles
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = os.fsdecode(path)
        return folder in self.handles if folder is not None and not text.startswith("/") else self.root in text

    def step(self, kind: str, last: Callable[[], object] = lambda: None) -> None:
        """An operation is about to happen. `last`: what of it still happens where it fails."""
        with self._lock:
            self.counts[kind] += 1
            spoiled = kind == self.kind and self.counts[kind] == self.at
        if not spoiled:
            return
        last()
        if self.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.fault)
        raise OSError(number, os.strerror(number))

    def install(self) -> None:
        """From now on."""
        layer, real_open, real_close, fdopen = self, os.open, os.close, builtins.open

        def os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            mine = layer.ours(path, dir_fd)
            if mine:
                layer.step("write" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else "read")
            handle = real_open(path, flags, mode, dir_fd=dir_fd)
            if mine:
                layer.handles.add(handle)
            return handle

        def os_close(handle: int) -> None:
            layer.handles.discard(handle)
            real_close(handle)

        def opened(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
            newline: Any = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            if not layer.ours(file):
                return fdopen(file, mode, buffering, encoding, errors, newline, closefd, opener)
            return layer.file(file, mode, buffering, encoding, errors, newline, closefd, opener)

        os.open, os.close = os_open, os_close  # type: ignore[assignment]
        io.open = builtins.open = opened  # type: ignore[assignment]
        for name, kind in _BY_PATH.items():
            setattr(os, name, self._by_path(getattr(os, name), kind))
        for name, kind in _BY_HANDLE.items():
            setattr(os, name, self._by_handle(getattr(os, name), kind))
        self._maps()
        self._kernels()
        self._exchanges()
        self._sends()

    def file(
        self, file: Any, mode: str, buffering: int, encoding: Any, errors: Any, newline: Any, closefd: bool, opener: Any
    ) -> Any:
        """What `open` gives, over a raw file whose operations count."""
        writing = any(c in mode for c in "wxa+")
        if not isinstance(file, int):
            self.step("write" if writing else "read")
        raw = _file_of(self)(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom if "+" in mode else io.BufferedWriter if writing else io.BufferedReader
        binary = buffer(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    def _by_path(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def wrapped(path: Any = ".", *args: Any, **how: Any) -> Any:
            if self.ours(path, how.get("dir_fd", how.get("src_dir_fd"))):
                self.step(kind)
            return real(path, *args, **how)

        return wrapped

    def _by_handle(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def wrapped(handle: int, *args: Any, **how: Any) -> Any:
            if handle in self.handles:
                self.step(kind)
            return real(handle, *args, **how)

        return wrapped

    def _maps(self) -> None:
        layer, real = self, mmap.mmap

        class Map(real):  # type: ignore[misc,valid-type]
            def __new__(cls, handle: int, *args: Any, **how: Any) -> Any:
                if handle in layer.handles:
                    layer.step("read")
                return super().__new__(cls, handle, *args, **how)

        mmap.mmap = Map  # type: ignore[misc]

    def _kernels(self) -> None:
        """Readings that need no interpreter. Where one fails, the kernel leaves the chunk to the usual way."""
        from tallstore.kernels.decoding_backends import NativeDecoding

        layer, source, runs = self, NativeDecoding.file, NativeDecoding.gather

        def file(backend: NativeDecoding, handle: int, at: int) -> Any:
            try:
                if handle in layer.handles:
                    layer.step("read")
            except OSError:
                return source(backend, -1, at)
            return source(backend, handle, at)

        def gather(backend: NativeDecoding, out: Any, handle: int, *args: Any) -> bool:
            try:
                if handle in layer.handles:
                    layer.step("read")
            except OSError:
                return False
            return runs(backend, out, handle, *args)

        NativeDecoding.file, NativeDecoding.gather = file, gather  # type: ignore[method-assign]

    def _sends(self) -> None:
        layer, real = self, socket.socket.send

        def send(sock: socket.socket, data: Any, *args: Any) -> int:
            def last() -> None:
                real(sock, memoryview(data).cast("B")[: len(data) // 2], *args)
                sock.shutdown(socket.SHUT_RDWR)  # or the other end would wait for the rest, and this one for an answer

            layer.step("send", last)
            return real(sock, data, *args)

        socket.socket.send = send  # type: ignore[method-assign]

    def _exchanges(self) -> None:
        """The one call that goes by no function of Python's. Where it fails, names are exchanged one by one."""
        layer, real = self, ctypes.CDLL

        class Library:
            def __init__(self, *args: Any, **how: Any) -> None:
                self._real = real(*args, **how)

            def __getattr__(self, name: str) -> Any:
                found = getattr(self._real, name)
                if name != "renameat2":
                    return found

                def exchange(*args: Any) -> int:
                    try:
                        layer.step("write")
                    except OSError:
                        return -1
                    return int(found(*args))

                return exchange

        ctypes.CDLL = Library  # type: ignore[misc,assignment]


def _file_of(layer: Layer) -> type[io.FileIO]:
    class File(io.FileIO):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            layer.handles.add(self.fileno())

        def write(self, data: Any) -> int:  # type: ignore[override]
            view = memoryview(data).cast("B")
            layer.step("write", lambda: super(File, self).write(view[: len(view) // 2]))
            return super().write(data)

        def truncate(self, size: int | None = None) -> int:
            layer.step("write")
            return super().truncate(size)

        def readinto(self, data: Any) -> int:  # type: ignore[override]
            layer.step("read")
            return super().readinto(data)

        def readall(self) -> bytes:  # type: ignore[override]
            layer.step("read")
            return super().readall()

        def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            layer.step("read")
            return super().read(size)

        def close(self) -> None:
            if not self.closed:
                layer.handles.discard(self.fileno())
            super().close()

    return File
