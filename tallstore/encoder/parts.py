"""Writes one part: tensors' coded chunks go to a scratch file as they come; the header, known last, goes in front."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import xxhash

from tallstore.format import limits
from tallstore.format.manifest import PartRecord
from tallstore.format.part import Coded, Entry, PartHeader
from tallstore.stores import Sink
from tallstore.stores.staging import translated

_PIECE = 1 << 20


class PartWriter:
    """A part that grows tensor by tensor. `begin`, `add` each chunk, then `end` or `drop`."""

    def __init__(self, sink: Sink, path: str, part: str, owner: str) -> None:
        self.path = path
        self._sink = sink
        self._part, self._owner = part, owner
        self._spool: BinaryIO | None = None
        self._size = 0
        self._begun_at = 0
        self._chunks: list[tuple[int, str]] = []
        self._entries: dict[str, Entry] = {}
        self._stored: list[str] = []

    def begin(self) -> None:
        """Begin a tensor."""
        self._begun_at = self._size
        self._chunks = []

    def add(self, data: bytes) -> None:
        """Add the current tensor's next chunk."""
        self._write(data)
        self._chunks.append((len(data), xxhash.xxh3_64_hexdigest(data)))

    def end(self, name: str, codec: str, chunk: int, entry: Entry) -> None:
        """End the current tensor; `entry` lacks only what the chunks say."""
        coded = Coded(codec, chunk, tuple(self._chunks))
        self._write(bytes(-coded.size % limits.BLOB_ALIGNMENT))
        values = {f: getattr(entry, f) for f in entry.__dataclass_fields__} | {"coded": coded}
        self._entries[name] = Entry(**values)
        self._stored.append(name)

    def drop(self) -> None:
        """Forget the current tensor."""
        if self._spool is not None:
            with translated(self._sink.target):
                self._spool.seek(self._begun_at)
                self._spool.truncate()
        self._size = self._begun_at

    def note(self, name: str, entry: Entry) -> None:
        """Record a tensor that takes no bytes."""
        self._entries[name] = entry

    @property
    def coded_bytes(self) -> int:
        """Of the tensors so far, their padding with them."""
        return self._size

    def __bool__(self) -> bool:
        return bool(self._entries)

    def finish(self, order: Sequence[str] | None = None) -> PartRecord:
        """Write the part into the archive; entries in the given order (the order of their ends if none)."""
        entries = self._entries if order is None else {name: self._entries[name] for name in order}
        header = PartHeader(part=self._part, owner=self._owner, entries=entries).to_bytes(self._stored)
        digest = hashlib.sha256()

        def pieces() -> Iterator[bytes]:
            yield header
            digest.update(header)
            if self._spool is not None:
                self._spool.seek(0)
                while piece := self._spool.read(_PIECE):
                    digest.update(piece)
                    yield piece
                self._spool.close()

        size = len(header) + self._size
        self._sink.put(self.path, pieces(), size)
        return PartRecord(
            size=size,
            sha256=digest.hexdigest(),
            header_size=len(header),
            header_sha256=hashlib.sha256(header).hexdigest(),
        )

    def _write(self, data: bytes) -> None:
        if self._spool is None:
            self._spool = self._sink.spool(self.path.replace("/", "~"))
        with translated(self._sink.target):
            self._spool.write(data)
        self._size += len(data)
