"""What finished work leaves in the working folder: one file a batch, coded bytes first, then what is said of them.

A file gets its name when it is whole, and says which job it belongs to, so what a dead run left is used or it is not:
nothing of it is guessed. Its last bytes are lengths and checksums.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import uuid
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import xxhash

from tallstore.codecs.base import Buffer
from tallstore.errors import OutputError
from tallstore.stores.staging import give_back

_MAGIC = b"tallwork"
_TAIL = struct.Struct("<QQ16s16s16s8s")
"""Bytes of the coded data and of the facts, their XXH3-128 sums, the job, and the magic."""
_PIECE = 1 << 20
MOST_OPEN = 64
"""Files that are open at a time, at most."""


class Span(NamedTuple):
    """Coded bytes in the working folder."""

    path: Path
    start: int
    length: int
    xxh3: str
    """XXH3-64 of the bytes, in hexadecimal."""


class Taker:
    """Takes coded bytes from where they lie. A context manager; the files that were asked for last stay open in it."""

    def __init__(self, *, keep: bool) -> None:
        """`keep`: whether the bytes stay where they are; else their room on the disk is given back."""
        self._keep = keep
        self._open: dict[Path, FileIO] = {}

    def take(self, span: Span, out: memoryview) -> None:
        """Read the bytes into `out`, which has as many. Raises OutputError if they are not what was written."""
        file, done = self._file(span.path), 0
        file.seek(span.start)
        while done < span.length and (got := file.readinto(out[done:])):
            done += got
        if done < span.length or xxhash.xxh3_64_hexdigest(out) != span.xxh3:
            raise OutputError(f"{span.path}: what was just made is damaged on its disk: pack again, elsewhere")
        if not self._keep:
            give_back(file.fileno(), span.start, span.length)

    def _file(self, path: Path) -> FileIO:
        handle = self._open.get(path)
        if handle is None:
            if len(self._open) == MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            handle = self._open[path] = self.open_file(path)
        return handle

    def open_file(self, path: Path) -> FileIO:
        if not self._keep:
            with contextlib.suppress(PermissionError):  # another one's file, perhaps: its room stays then
                return path.open("r+b", buffering=0)
        return path.open("rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open.values():
            file.close()


class Spool:
    """Coded bytes that no worker made, kept one behind the other in a file until their part is put together."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._at = 0

    def add(self, data: Buffer) -> Span:
        """Keep a chunk."""
        view = memoryview(data)
        with self._path.open("ab", buffering=0) as file:
            left = view
            while left:
                left = left[file.write(left) :]
        start, self._at = self._at, self._at + view.nbytes
        return Span(self._path, start, view.nbytes, xxhash.xxh3_64_hexdigest(view))


Place = tuple[int, int, str]
"""Start, length and checksum of coded bytes, in the file that says it."""


class ResultFile:
    """A result being written. Nothing shows under its name before `end`."""

    def __init__(self, path: Path, job: bytes) -> None:
        self._path, self._job = path, job
        # Two workers may make the same result, one of them given up for dead: each writes a file of its own.
        self._growing = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        self._out = self._growing.open("xb")
        self._digest = xxhash.xxh3_128()
        self._at = 0

    def add(self, *pieces: Buffer) -> Place:
        """Add coded bytes, in one piece or several; where they lie."""
        begin, own = self._at, xxhash.xxh3_64()
        for piece in pieces:
            view = memoryview(piece)
            self._out.write(view)
            self._digest.update(view)
            own.update(view)
            self._at += view.nbytes
        return begin, self._at - begin, own.hexdigest()

    def end(self, facts: Sequence[Any]) -> None:
        """Add what is said of them, plain JSON values, and put the file in place."""
        said = json.dumps(facts, separators=(",", ":")).encode()
        sums = self._digest.digest(), xxhash.xxh3_128_digest(said)
        self._out.write(said + _TAIL.pack(self._at, len(said), *sums, self._job, _MAGIC))
        self._out.close()
        self._growing.replace(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._out.closed:
            with contextlib.suppress(OSError):  # closing writes out what is buffered, and a full disk takes no more
                self._out.close()
        if kind is not None:
            with contextlib.suppress(OSError):
                self._growing.unlink()


def read_result(path: Path, job: bytes, *, check: bool) -> list[Any] | None:
    """What a result says; None if there is none, or one that is damaged or of another job.

    Args:
        path: its file.
        job: 16 bytes, of the job that it must be of.
        check: read the coded bytes too.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size < _TAIL.size:
                return None
            coded, said, coded_sum, said_sum, its_job, magic = _TAIL.unpack(
                os.pread(file.fileno(), _TAIL.size, size - _TAIL.size)
            )
            if (magic, its_job) != (_MAGIC, job) or coded + said + _TAIL.size != size:
                return None
            facts = os.pread(file.fileno(), said, coded)
            if xxhash.xxh3_128_digest(facts) != said_sum or (check and _sum(file.fileno(), coded) != coded_sum):
                return None
    except OSError:
        return None
    content: list[Any] = json.loads(facts)
    return content


def _sum(handle: int, size: int) -> bytes:
    digest = xxhash.xxh3_128()
    for start in range(0, size, _PIECE):
        digest.update(os.pread(handle, min(_PIECE, size - start), start))
    return digest.digest()
