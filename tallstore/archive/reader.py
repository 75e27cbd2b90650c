"""Parts and their tensors' coded bytes, each piece checked against its hash before anything believes it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import xxhash

from tallstore.archive.refetch import read_checked, refetch_or_raise
from tallstore.archive.verified import HEADERS, Chunk, VerifiedChunks
from tallstore.errors import DamagedError, FormatError
from tallstore.format import limits
from tallstore.format.manifest import Manifest
from tallstore.format.part import Entry, PartHeader
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.fill import FillSource, part_of
from tallstore.kernels.scratch import scratch
from tallstore.stores import Store
from tallstore.stores.base import pieces

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a part: the part's path, its entry, and where its coded bytes begin."""

    path: str
    entry: Entry
    offset: int | None

    def chunk(self, index: int) -> Chunk:
        """What a chunk of it is known by."""
        assert self.entry.coded is not None
        return self.offset, index, self.entry.coded.chunks.digest(index)


class Reader:
    """Headers of parts, read once and kept; coded bytes, read on demand. Safe to use from several threads."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        store.expect(manifest.parts)
        self._headers: dict[str, PartHeader] = {}
        self._lock = threading.Lock()
        self.verified = VerifiedChunks(store)

    def header(self, path: str) -> PartHeader:
        """A part's header, its bytes checked against the manifest's hash."""
        with self._lock:
            if path not in self._headers:
                self._headers[path] = read_checked(self.store, path, partial(self._read_header, path))
            return self._headers[path]

    def places(self, paths: Sequence[str], part: str, owner: str) -> dict[str, Place]:
        """Every tensor of some parts of one kind and owner, in order."""
        places: dict[str, Place] = {}
        for path in paths:
            header = self.header(path)
            if (header.part, header.owner) != (part, owner):
                raise FormatError(
                    f"{self.where(path)}: holds {header.part} of {header.owner!r}, expected {part} of {owner!r}"
                )
            for name, entry in header.entries.items():
                if name in places:
                    raise FormatError(f"{self.where(path)}: tensor {name!r} is also in {places[name].path}")
                places[name] = Place(path, entry, header.offsets.get(name))
        return places

    def chunk(self, place: Place, index: int, name: str) -> memoryview:
        """The coded bytes of one chunk, checked."""
        return read_checked(self.store, place.path, partial(self._chunk, place, index, name))

    def _chunk(self, place: Place, index: int, name: str) -> memoryview:
        data = self.store.read(place.path, *self._span(place, index))
        self._check(place, index, name, xxhash.xxh3_64_digest(data))
        return data

    def chunk_here(self, place: Place, index: int, name: str) -> memoryview:
        """The coded bytes of one chunk, checked, in memory of this thread's that the next call uses again.

        What is read once, from end to end, is not worth mapping, and should not take memory beside the output.
        """
        if self.store.far:
            return self.chunk(place, index, name)
        start, length = self._span(place, index)

        def read() -> memoryview:
            data = scratch("coded", length, np.uint8).data
            source = self.source(place, index)
            raw = np.frombuffer(data, np.uint8)
            if source is not None and decoding().whole(part_of(raw), source) and self.holds(place, index, source):
                return data
            self.store.read_into(place.path, start, data)
            self._check(place, index, name, xxhash.xxh3_64_digest(data))
            return data

        return read_checked(self.store, place.path, read)

    def source(self, place: Place, index: int) -> FillSource | None:
        """A chunk's coded bytes, for kernels that read them themselves; None where there is no way or no kernel."""
        start, length = self._span(place, index)
        handle = self.store.handle(place.path, start, length)
        return None if handle is None else decoding().file(*handle)

    def check(self, place: Place, index: int, name: str) -> None:
        """Read the coded bytes of one chunk and check them, and keep nothing."""
        source = self.source(place, index)
        length = self._span(place, index)[1]
        if source is None or not decoding().check(source, length) or not self.holds(place, index, source):
            self.chunk_here(place, index, name)

    def chunk_into(self, place: Place, index: int, name: str, out: memoryview, step: int) -> Iterator[tuple[int, int]]:
        """Fill `out` with a chunk's coded bytes, run by run as they are checked: they are in the cache then.

        Yields the first byte of each run of `step` bytes and the one behind its last. Raises DamagedError at the end,
        so nothing made of them counts before: RefetchedError where the file was got anew meanwhile.
        """
        start, length = self._span(place, index)
        if length != len(out):
            raise FormatError(f"{length} raw bytes, expected {len(out)}")
        data = self.store.read(place.path, start, length) if self.store.far else None
        digest = xxhash.xxh3_64()
        for a in range(0, length, step):
            b = min(a + step, length)
            if data is None:
                self.store.read_into(place.path, start + a, out[a:b])
            else:
                out[a:b] = data[a:b]
            digest.update(out[a:b])
            yield a, b
        try:
            self._check(place, index, name, digest.digest())
        except DamagedError as error:
            refetch_or_raise(self.store, place.path, error)

    def holds(self, place: Place, index: int, source: FillSource) -> bool:
        """Whether a chunk's bytes, which were read to the end, have its hash."""
        return source.digest == place.chunk(index)[2]

    def _span(self, place: Place, index: int) -> tuple[int, int]:
        """Where a chunk begins in its part, and how long it is."""
        coded = place.entry.coded
        assert coded is not None
        assert place.offset is not None
        return place.offset + coded.chunks.before(index), coded.chunks.length(index)

    def _check(self, place: Place, index: int, name: str, digest: bytes) -> None:
        if digest != place.chunk(index)[2]:
            raise DamagedError(
                f"{self.where(place.path)}: tensor {name!r} is damaged (chunk {index}: checksum differs); "
                "fetch or pack it again"
            )

    def check_padding(self, path: str) -> None:
        """Raise FormatError for a byte behind a tensor's coded bytes that is not zero."""
        header = self.header(path)
        for name, start in header.offsets.items():
            coded = header.entries[name].coded
            if coded is not None and any(self.store.read(path, start + coded.size, coded.padded - coded.size)):
                raise FormatError(f"{self.where(path)}: tensor {name!r}: bytes behind it are not zero")

    def file(self, path: str) -> bytes:
        """A small file, checked against the manifest's hash."""
        return read_checked(self.store, path, partial(self._file, path))

    def _file(self, path: str) -> bytes:
        record = self.manifest.parts[path]
        if record.size > limits.FILE_BYTES or self.store.size(path) != record.size:
            raise DamagedError(
                f"{self.where(path)}: {self.store.size(path)} bytes, and the manifest says {record.size}"
            )
        data = bytes(self.store.read(path, 0, record.size))
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise DamagedError(f"{self.where(path)}: damaged (sha256 differs); fetch or pack it again")
        return data

    def whole(self, path: str) -> Iterator[memoryview]:
        """Every byte of a file, in order, whatever its size.

        Raises DamagedError at the end, so nothing made of them counts before: RefetchedError where the file was
        fetched again meanwhile.
        """
        record = self.manifest.parts[path]
        digest = hashlib.sha256()
        for piece in pieces(self.store, path, record.size):
            digest.update(piece)
            yield piece
        if digest.hexdigest() == record.sha256:
            return
        damage = DamagedError(f"{self.where(path)}: damaged (sha256 differs); fetch or pack it again")
        refetch_or_raise(self.store, path, damage)

    def where(self, path: str) -> str:
        """How messages name a part."""
        return f"{self.store.url}: {path}"

    def _read_header(self, path: str) -> PartHeader:
        record = self.manifest.parts[path]
        assert record.header_size is not None
        if record.header_size > limits.HEADER_BYTES + 8:
            raise FormatError(f"{self.where(path)}: a header of {record.header_size} bytes is over the cap")
        if (size := self.store.size(path)) != record.size:
            raise DamagedError(f"{self.where(path)}: {size} bytes, and the manifest says {record.size}; fetch it again")
        data = bytes(self.store.read(path, 0, record.header_size))
        if hashlib.sha256(data).hexdigest() != record.header_sha256:
            raise DamagedError(f"{self.where(path)}: its header is damaged (sha256 differs); fetch or pack it again")
        return HEADERS.get(
            (record.header_sha256, record.size),
            lambda: PartHeader.from_bytes(data, record.size, self.where(path)),
        )
