"""Puts parts together: coded chunks stay where workers left them until the headers, known last, are in front."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle

import numpy as np

from tallstore.codecs.base import Buffer
from tallstore.encoder.results import Span, Spool
from tallstore.format import limits, strict_json
from tallstore.format.manifest import PartRecord
from tallstore.format.part import Chunks, Coded, Entry, PartHeader
from tallstore.kernels.scratch import scratch
from tallstore.stores import Sink
from tallstore.stores.staging import translated

MOST = 5 * 10**9
"""Bytes that a part has at most, unless one tensor alone has more: what the Hub likes files to have."""
_BLOCK = 1 << 22
"""Bytes that are read, and written, at a time."""
_ROOM = 4 * _BLOCK
"""Bytes that a block may have: it ends with a chunk."""
_HEADER = 1024
"""Bytes of a part's header that are no tensor's."""
_NAMED = 160
"""Bytes that a tensor takes in a part's header beside its name, twice, and its entry."""


class PartWriter:
    """Parts of one kind and owner that grow tensor by tensor: `begin`, `add` each chunk, `end`; or begin another.

    One file, or several of at most so many bytes, named as the Hub likes: `base-00001-of-00003.safetensors`.
    """

    def __init__(self, sink: Sink, path: str, part: str, owner: str, most: int = MOST, *, keep: bool = False) -> None:
        """`keep`: whether the chunks that workers left stay where they are, for a run that takes up this one."""
        self.path = path
        """Of the part, if there is one."""
        self._spool: Spool | None = None
        self._sink, self._most, self._keep = sink, most, keep
        self._part, self._owner = part, owner
        self._chunks: list[Span] = []
        self._entries: dict[str, Entry] = {}
        self._stored: dict[str, list[Span]] = {}

    def begin(self) -> None:
        """Begin a tensor."""
        self._chunks = []

    def add(self, data: Span | Buffer) -> None:
        """Add the current tensor's next chunk: where it lies, or its bytes."""
        if isinstance(data, Span):
            self._chunks.append(data)
            return
        with translated(self._sink.target):
            self._sink.work.mkdir(exist_ok=True)
            self._spool = self._spool or Spool(self._sink.work / f"spool-{self.path.replace('/', '~')}")
            self._chunks.append(self._spool.add(data))

    @property
    def coded_bytes(self) -> int:
        """Of the tensors so far, their padding with them."""
        return sum(entry.coded.padded for entry in self._entries.values() if entry.coded is not None)

    def end(self, name: str, codec: str, chunk: int, entry: Entry) -> None:
        """End the current tensor; `entry` lacks only what the chunks say."""
        coded = Coded(codec, chunk, Chunks((span.length, span.xxh3) for span in self._chunks))
        self._entries[name] = replace(entry, coded=coded)
        self._stored[name] = self._chunks

    def note(self, name: str, entry: Entry) -> None:
        """Record a tensor that takes no bytes."""
        self._entries[name] = entry

    def __bool__(self) -> bool:
        return bool(self._entries)

    def finish(self, order: Sequence[str] | None = None) -> dict[str, PartRecord]:
        """Write the parts into the archive, and give what is to be said of each path.

        Entries come in the given order (the order of their ends if none), coded bytes in the order of their ends.
        """
        cuts = list(self._cuts(list(self._entries) if order is None else order))
        return {path: self._write(path, names) for path, names in zip(self._paths(len(cuts)), cuts, strict=True)}

    def _paths(self, count: int) -> list[str]:
        if count == 1:
            return [self.path]
        stem, ending = self.path.rsplit(".", 1)
        return [f"{stem}-{number:05}-of-{count:05}.{ending}" for number in range(1, count + 1)]

    def _cuts(self, order: Sequence[str]) -> Iterator[list[str]]:
        """Names of consecutive entries that fit one part."""
        names: list[str] = []
        head, data = _HEADER, 0
        for name in order:
            entry = self._entries[name]
            said = strict_json.dumps(entry.to_json())
            own_head = _NAMED + 2 * len(name.encode()) + len(said) + said.count(b'"')
            own_data = entry.coded.padded if entry.coded is not None else 0
            too_long = head + own_head > limits.HEADER_BYTES or head + own_head + data + own_data > self._most
            if names and too_long:
                yield names
                names, head, data = [], _HEADER, 0
            names.append(name)
            head, data = head + own_head, data + own_data
        yield names

    def _write(self, path: str, names: Sequence[str]) -> PartRecord:
        entries = {name: self._entries[name] for name in names}
        stored = [name for name in self._stored if name in entries]
        header = PartHeader(part=self._part, owner=self._owner, entries=entries).to_bytes(stored)
        digest = hashlib.sha256()

        # By turns: one is being used while the next is made.
        rooms = [scratch(name, _ROOM, np.uint8).data for name in ("even block", "odd block")]

        def pieces() -> Iterator[memoryview]:
            for piece in _blocks(_pieces(header, stored, entries, self._stored), rooms, keep=self._keep):
                digest.update(piece)
                yield piece

        size = len(header) + sum(e.coded.padded for e in entries.values() if e.coded is not None)
        self._sink.put(path, pieces() if size <= _BLOCK else _made_ahead(pieces()), size)
        return PartRecord(
            size=size,
            sha256=digest.hexdigest(),
            header_size=len(header),
            header_sha256=hashlib.sha256(header).hexdigest(),
        )


def _blocks(pieces: Iterable[bytes | Span], rooms: Sequence[memoryview], *, keep: bool) -> Iterator[memoryview]:
    """All the bytes, in blocks, so that little is done for each; each is good until the next but one is asked for."""
    held: list[bytes | Span] = []
    size, turns = 0, cycle(rooms)
    for piece in pieces:
        held.append(piece)
        size += _length(piece)
        if size >= _BLOCK:
            yield _joined(held, _room(next(turns), size), keep=keep)
            held, size = [], 0
    yield _joined(held, _room(next(turns), size), keep=keep)


def _room(room: memoryview, size: int) -> memoryview:
    return room[:size] if size <= len(room) else memoryview(bytearray(size))


def _joined(pieces: Sequence[bytes | Span], out: memoryview, *, keep: bool) -> memoryview:
    at = 0
    for piece in pieces:
        here = out[at : at + _length(piece)]
        if isinstance(piece, Span):
            piece.take(here, keep=keep)
        else:
            here[:] = piece
        at += len(here)
    return out


def _length(piece: bytes | Span) -> int:
    return piece.length if isinstance(piece, Span) else len(piece)


def _made_ahead(blocks: Iterator[memoryview]) -> Iterator[memoryview]:
    """The same blocks, each made on a thread of its own while the one before is being used."""
    with ThreadPoolExecutor(1, "tallstore-part") as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block


def _pieces(
    header: bytes, stored: Sequence[str], entries: Mapping[str, Entry], spans: Mapping[str, Sequence[Span]]
) -> Iterator[bytes | Span]:
    yield header
    for name in stored:
        yield from (span for span in spans[name] if span.length)
        coded = entries[name].coded
        assert coded is not None
        if coded.size % limits.BLOB_ALIGNMENT:
            yield bytes(coded.padded - coded.size)
