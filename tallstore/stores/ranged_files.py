"""Archives that are read where they lie: exact byte ranges, joined, several at a time, tried again when they fail."""

from __future__ import annotations

import io
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import BinaryIO, cast

from tallstore.concurrency import Background
from tallstore.errors import DamagedError, FormatError
from tallstore.format.manifest import PartRecord
from tallstore.stores.base import Range, Store
from tallstore.stores.blocks import Block, BlockPlan, Bytes
from tallstore.stores.retries import TransientError, with_retries
from tallstore.stores.zip_directory import LOCAL, find_data, read_directory

TIMEOUT = 30.0
"""Seconds that a request may be silent."""
_WORKERS = 8
_DIRECTORY = 64 << 20
"""Most bytes of a zip's directory that are read in one piece."""


class Files(ABC):
    """Where files lie that are read by range. Safe to use from several threads.

    A method makes one try. It raises `TransientError` for what is worth another, DamagedError for a file that is not
    there, and other errors of ours for what will not change.
    """

    url: str
    """How messages name it: nothing secret in it."""
    totals: dict[str, int]
    """Bytes of the files that were read from, as far as the answers told."""

    @abstractmethod
    def paths(self) -> list[str]:
        """Every file, if that can be known."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def read(self, path: str, start: int, stop: int) -> bytes | memoryview:
        """Bytes [start, stop), which are not empty: no others are asked for."""

    def close(self) -> None:
        """Release connections."""


class FarFolder(Store):
    """An archive as a folder far away."""

    far = True
    ranged = True

    def __init__(self, files: Files) -> None:
        self.url = files.url
        self._files = files
        self._records: Mapping[str, PartRecord] = {}
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._pool = Background(_WORKERS, "tallstore-far")
        self._plan = BlockPlan(self._submit)

    def paths(self) -> list[str]:
        return with_retries(self.url, self._files.paths)

    def size(self, path: str) -> int:
        if path in self._records:
            return self._records[path].size
        if path not in self._sizes:
            self._sizes[path] = with_retries(self._where(path), lambda: self._files.size(path))
        return self._sizes[path]

    def read(self, path: str, start: int, length: int) -> memoryview:
        if start < 0 or length < 0:
            raise DamagedError(f"{self.url}: {path}: no bytes at {start}")
        return self._read(Range(path, start, length))

    def expect(self, records: Mapping[str, PartRecord]) -> None:
        self._records = records

    def prefetch(self, ranges: Sequence[Range]) -> None:
        with self._lock:
            self._plan.add(ranges)

    def refetch(self, path: str) -> bool:
        with self._lock:
            self._forget(path)
        return True

    def close(self) -> None:
        with self._lock:
            self._plan.drop()
        self._pool.close()
        self._files.close()

    def _forget(self, path: str) -> None:
        self._plan.drop(path)

    def _read(self, wanted: Range) -> memoryview:
        with self._lock:
            pieces = [
                (None if block is None else self._plan.fetch(block, stop - start), block, start, stop)
                for block, start, stop in self._plan.pieces(wanted)
            ]
        chunks = []
        for data, block, start, stop in pieces:
            if data is None or block is None:
                chunks.append(self._fetch(wanted.path, start, stop))
                continue
            try:
                chunks.append(data.result()[start - block.start : stop - block.start])
            except CancelledError:  # another reader found this file damaged, and let go of all of it
                chunks.append(self._fetch(wanted.path, start, stop))
            except BaseException:
                with self._lock:
                    self._plan.drop(wanted.path)  # else the failure would be kept like bytes are
                raise
        return chunks[0] if len(chunks) == 1 else memoryview(b"".join(chunks))

    def _where(self, path: str) -> str:
        return f"{self.url}: {path}" if path else self.url

    def _submit(self, block: Block) -> Bytes:
        return self._pool.submit(self._fetch, block.path, block.start, block.stop)

    def _fetch(self, path: str, start: int, stop: int) -> memoryview:
        if start == stop:
            return memoryview(b"")
        return with_retries(f"{self._where(path)}: bytes {start} to {stop}", lambda: self._once(path, start, stop))

    def _once(self, path: str, start: int, stop: int) -> memoryview:
        data = memoryview(self._files.read(path, start, stop))
        if path in self._records and (total := self._files.totals.get(path)) not in {None, self._records[path].size}:
            raise DamagedError(
                f"{self._where(path)}: {total} bytes, and the manifest says {self._records[path].size}: fetch it again"
            )
        if len(data) != stop - start:
            if (size := self._files.size(path)) < stop:
                raise DamagedError(f"{self._where(path)}: ends at byte {size}, and {stop} are needed: cut off")
            raise TransientError(f"{len(data)} bytes came instead of {stop - start}")
        return data


class FarFile(FarFolder):
    """An archive as one `.tall` file far away. `Files` names that one file by the empty path."""

    open_ended = False

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        try:
            self._total = super().size("")
            raw = _Seekable(self._far, self._total, self.url)
            self._entries = {info.filename: info for info in read_directory(cast("BinaryIO", raw), self.url)}
            self._check()
        except BaseException:
            self.close()
            raise
        self._starts: dict[str, int] = {}

    def paths(self) -> list[str]:
        return list(self._entries)

    def size(self, path: str) -> int:
        if path not in self._entries:
            raise DamagedError(f"{self.url}: {path} is missing; fetch or pack it again")
        return self._entries[path].file_size

    def read(self, path: str, start: int, length: int) -> memoryview:
        size = self.size(path)
        if start < 0 or length < 0 or start + length > size:
            raise DamagedError(f"{self.url}: {path} ends at byte {size}, and {start + length} are needed: cut off")
        return self._read(Range("", self._start(path) + start, length))

    def prefetch(self, ranges: Sequence[Range]) -> None:
        there = [wanted for wanted in ranges if wanted.path in self._entries]
        for began in [self._pool.submit(self._start, path) for path in dict.fromkeys(wanted.path for wanted in there)]:
            began.result()
        super().prefetch([Range("", self._start(path) + start, length) for path, start, length in there])

    def _check(self) -> None:
        """What can be said before the files' own headers are read."""
        for info in self._entries.values():
            where = f"{self.url}: {info.filename}"
            if info.header_offset + LOCAL.size > self._total:
                raise FormatError(f"{where}: the zip's directory points at no file")
            end = info.header_offset + LOCAL.size + len(info.name_bytes) + info.file_size
            if end > self._total:
                raise DamagedError(f"{where}: is cut off; fetch or pack it again")
            if end > info.end:
                raise FormatError(f"{where}: overlaps another file of the archive")

    def _forget(self, path: str) -> None:  # noqa: ARG002 - all files are in one
        self._plan.drop("")

    def _start(self, path: str) -> int:
        """Where the file's data begins. Its own header is read once: in one range, as long as ours are."""
        if path not in self._starts:
            info = self._entries[path]
            begin = info.header_offset
            head = self._far(begin, min(LOCAL.size + len(info.name_bytes), self._total - begin))

            def read(start: int, length: int) -> memoryview:
                return head[start - begin : start - begin + length]

            self._starts[path] = find_data(info, read, self._total, f"{self.url}: {path}")
        return self._starts[path]

    def _far(self, start: int, length: int) -> memoryview:
        return self._read(Range("", start, max(0, min(length, self._total - start))))


class _Seekable(io.RawIOBase):
    """A file far away as zipfile wants one."""

    def __init__(self, read: Callable[[int, int], memoryview], size: int, url: str) -> None:
        self._read, self._size, self._url = read, size, url
        self._at = 0
        self._seen: dict[bytes, int] = {}
        """What was read, and where it ends."""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError("before the file")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        length = max(0, min(self._size - self._at, self._size if size is None or size < 0 else size))
        if length > _DIRECTORY:
            raise FormatError(f"{self._url}: a zip directory of {length} bytes is over the cap of {_DIRECTORY}")
        stop = self._at + length
        # zipfile reads from the end, and what it has read once more as the end of something longer.
        known = next((data for data in self._seen if len(data) <= length and self._seen[data] == stop), b"")
        data = bytes(self._read(self._at, length - len(known))) + known
        self._seen[data] = stop
        self._at += len(data)
        return data
