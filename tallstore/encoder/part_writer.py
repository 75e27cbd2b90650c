"""Puts parts together: coded chunks stay where workers left them until the headers, known last, are in front."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, groupby, repeat
from typing import Any, TypeVar, cast

import numpy as np

from tallstore.codecs.base import Buffer
from tallstore.concurrency import ordered
from tallstore.encoder.result_files import Span, Spool, Taker
from tallstore.format import limits, strict_json
from tallstore.format.manifest import PartRecord
from tallstore.format.part import ChunkIndex, CodedRanges, Entry, PartHeader
from tallstore.kernels.scratch import scratch
from tallstore.stores import Sink
from tallstore.stores.staging import translated

MOST = 5 * 10**9
"""Bytes that a part has at most, unless one tensor alone has more: what the Hub likes files to have."""
IO_BLOCK = 1 << 21
"""Bytes that are read, and written, at a time."""
_AHEAD = 2
"""Blocks that are made ahead, at each of two stages."""
LARGEST_BLOCK = 8 * IO_BLOCK
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

    def size_of(self, name: str) -> int:
        """Coded bytes of a tensor that was ended; 0 of any other."""
        entry = self._entries.get(name)
        return 0 if entry is None or entry.coded is None else entry.coded.size

    @property
    def coded_bytes(self) -> int:
        """Of the tensors so far, their padding with them."""
        return sum(entry.coded.padded for entry in self._entries.values() if entry.coded is not None)

    def end(self, name: str, codec: str, chunk: int, entry: Entry) -> None:
        """End the current tensor; `entry` lacks only what the chunks say."""
        coded = CodedRanges(codec, chunk, ChunkIndex((span.length, span.xxh3) for span in self._chunks))
        self._entries[name] = replace(entry, coded=coded)
        self._stored[name] = self._chunks

    def note(self, name: str, entry: Entry) -> None:
        """Record a tensor that takes no bytes."""
        self._entries[name] = entry

    def __bool__(self) -> bool:
        return bool(self._entries)

    def finish(self, order: Sequence[str] | None = None) -> dict[str, PartRecord]:
        """`write_parts` of this one alone."""
        (records,) = write_parts(self._sink, [(self, order)])
        return records

    def parts(self, order: Sequence[str] | None = None) -> Iterator[tuple[_Part, _Pieces]]:
        """The parts, and what each consists of, to be used up before the next one.

        Entries come in the given order (the order of their ends if none), coded bytes in the order of their ends.
        """
        cuts = list(self._cuts(list(self._entries) if order is None else order))
        with Taker(keep=self._keep) as taker:
            for path, names in zip(self._paths(len(cuts)), cuts, strict=True):
                entries = {name: self._entries[name] for name in names}
                stored = [name for name in self._stored if name in entries]
                said = PartHeader(part=self._part, owner=self._owner, entries=entries)
                header = said.to_bytes(stored)
                size = len(header) + sum(e.coded.padded for e in entries.values() if e.coded is not None)
                yield _Part(path, header, size, said.version), _pieces(header, stored, entries, self._stored, taker)

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


@dataclass(eq=False)
class _Part:
    """A part that is being written."""

    path: str
    header: bytes
    size: int
    """Bytes."""
    version: str
    """Of the format, that its header says."""
    digest: Any = field(default_factory=hashlib.sha256)
    """Of the blocks so far."""

    def record(self) -> PartRecord:
        """What is to be said of it, once it is written."""
        return PartRecord(
            size=self.size,
            sha256=self.digest.hexdigest(),
            header_size=len(self.header),
            header_sha256=hashlib.sha256(self.header).hexdigest(),
            version=self.version,
        )


_Pieces = Iterator[tuple[int, Callable[[memoryview], None]]]
"""Of each piece its bytes, and what puts them into memory of that size."""


def write_parts(sink: Sink, writers: Sequence[tuple[PartWriter, Sequence[str] | None]]) -> list[dict[str, PartRecord]]:
    """Write what several writers have gathered, each with the order of its entries; what is to be said of each path.

    While a block is written the next one is hashed, and the one behind that is read, of whichever part it is.
    """
    records: list[dict[str, PartRecord]] = [{} for _ in writers]
    # By turns: one is being written, the others are hashed, or read, or wait.
    rooms = cycle([scratch(f"block {n}", LARGEST_BLOCK, np.uint8).data for n in range(1 + 2 * _AHEAD)])
    ahead = sum(writer.coded_bytes for writer, _ in writers) > IO_BLOCK

    def blocks() -> Generator[tuple[int, _Part, memoryview], None, None]:
        for number, (writer, order) in enumerate(writers):
            for part, pieces in writer.parts(order):
                yield from ((number, part, block) for block in _blocks(pieces, rooms))

    def hashed() -> Generator[tuple[int, _Part, memoryview], None, None]:
        for number, part, block in _made_ahead(blocks()) if ahead else blocks():
            part.digest.update(block)
            yield number, part, block

    with translated(sink.target), closing(_made_ahead(hashed()) if ahead else hashed()) as stream:
        for (number, part), run in groupby(stream, lambda each: each[:2]):
            sink.put(part.path, (block for _, _, block in run), part.size)
            records[number][part.path] = part.record()
    return records


def _blocks(pieces: _Pieces, rooms: Iterator[memoryview]) -> Iterator[memoryview]:
    """All the bytes, in blocks, so that little is done for each; each is good as long as its room is."""
    held: list[tuple[int, Callable[[memoryview], None]]] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += piece[0]
        if size >= IO_BLOCK:
            yield _joined(held, _room(next(rooms), size))
            held, size = [], 0
    yield _joined(held, _room(next(rooms), size))


def _room(room: memoryview, size: int) -> memoryview:
    return room[:size] if size <= len(room) else memoryview(bytearray(size))


def _joined(pieces: Sequence[tuple[int, Callable[[memoryview], None]]], out: memoryview) -> memoryview:
    at = 0
    for size, put in pieces:
        put(out[at : at + size])
        at += size
    return out


_Item = TypeVar("_Item")


def _made_ahead(items: Iterator[_Item]) -> Generator[_Item, None, None]:
    """The same, a few of them made on a thread of its own while the one before is being used."""
    end = object()
    with closing(ordered(repeat(partial(next, items, end)), 1, ahead=_AHEAD + 1, name="tallstore-part")) as made:
        for item in made:
            if item is end:
                return
            yield cast(_Item, item)


def _pieces(
    header: bytes,
    stored: Sequence[str],
    entries: Mapping[str, Entry],
    spans: Mapping[str, Sequence[Span]],
    taker: Taker,
) -> _Pieces:
    yield len(header), partial(_copy, header)
    for name in stored:
        yield from ((span.length, partial(taker.take, span)) for span in spans[name] if span.length)
        coded = entries[name].coded
        assert coded is not None
        if coded.size % limits.BLOB_ALIGNMENT:
            fill = bytes(coded.padded - coded.size)
            yield len(fill), partial(_copy, fill)


def _copy(data: bytes, out: memoryview) -> None:
    out[:] = data
