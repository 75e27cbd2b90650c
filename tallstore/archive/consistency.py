"""Whether what an archive says of its tensors holds together, and every chunk decodes. Nothing is put together."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

from tallstore.archive.chunk_codes import Codes
from tallstore.archive.locations import Places, coded
from tallstore.archive.reader import Place, Reader
from tallstore.codecs.base import Bytes
from tallstore.errors import DamagedError
from tallstore.format import limits
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.part import CONDITIONAL_KINDS
from tallstore.kernels.conversion import convert

__all__ = ["BaseReader", "Checker"]


class BaseReader(Protocol):
    """Where the base's elements come from."""

    def check(self, name: str) -> None:
        """Raise for a tensor that cannot be had, or is of another type or shape."""

    def bytes_into(self, name: str, a: int, out: Bytes, dtype: str) -> None:
        """Elements from `a` on, as many as `out` has, converted to `dtype`; `out`: their bytes."""


class StoredBase:
    """The base in the archive itself."""

    def __init__(self, places: Places, codes: Codes) -> None:
        self._places, self._codes = places, codes

    def check(self, name: str) -> None:
        """See `BaseReader`."""
        self._places.base(name)

    def bytes_into(self, name: str, a: int, out: Bytes, dtype: str) -> None:
        """See `BaseReader`."""
        own = str(self._places.base(name).entry.dtype)
        if own == dtype:
            self._fill(name, a, out)
            return
        raw = np.empty(len(out) // ITEM_BYTES[dtype] * ITEM_BYTES[own], np.uint8)
        self._fill(name, a, raw)
        if not convert(raw, own, out, dtype):
            from tallstore.tensors import convert_bytes  # torch's image of a NaN is what a decoder would have

            convert_bytes(raw, own, out, dtype)

    def _fill(self, name: str, a: int, out: Bytes) -> None:
        """Elements from `a` on in their own type."""
        place = self._places.base(name)
        size, item = coded(place).chunk, ITEM_BYTES[str(place.entry.dtype)]
        b = a + len(out) // item
        for index in range(a // size, -(-b // size)):
            start, stop = index * size, min((index + 1) * size, place.entry.numel)
            low, high = max(a, start), min(b, stop)
            part = out[(low - a) * item : (high - a) * item]
            whole = part if (low, high) == (start, stop) else np.empty((stop - start) * item, np.uint8)
            for _ in self._codes.whole_bytes(place, index, name, whole):
                pass
            if whole is not part:
                part[:] = whole[(low - start) * item : (high - start) * item]


class Checker:
    """Checks one archive."""

    def __init__(self, reader: Reader, given: BaseReader | None) -> None:
        """Of an archive, and the base that the caller gave, if any."""
        self._reader, self._manifest = reader, reader.manifest
        self._places, self._codes = Places(reader), Codes(reader)
        self._embedded = given is None and self._manifest.base.storage == "embed"
        self._base = StoredBase(self._places, self._codes) if self._embedded else given

    def vector(self, group: str) -> None:
        """Read and decode every chunk of a group's vector."""
        for name, place in self._places.vectors(group).items():
            self._places.check_vector(place, name)
            self._codes.check(place, name)

    def entries(self, task: str) -> None:
        """Raise for any entry of a task that does not fit the archive, without reading coded bytes.

        A base that the archive only references, and that was not given, is not missed.
        """
        self._places.check_task(task, embedded=self._embedded)

    def codes(self, task: str) -> None:
        """Read and decode every chunk of a task's own parts, one at a time."""
        for part in ("mask", "private", "exact"):
            for name, place in self._places.task(task, part).items():
                if place.entry.start is not None:
                    self._relative(task, name)
                elif place.entry.kind in CONDITIONAL_KINDS:
                    self._conditional(place, name)
                elif place.entry.coded is not None:
                    self._codes.check(place, name)

    def _relative(self, task: str, name: str) -> None:
        """Every chunk of a tensor that builds on other tasks', decoded as a reader would."""
        if self._base is None and any(True for _ in self._places.bases(task, name)):
            place = self._places.task(task)[name]
            for index in range(len(coded(place).chunks) if place.entry.coded is not None else 0):
                self._codes.read(place, index, name)
            return
        from tallstore.archive.base_tensors import BaseElements  # with torch, which other tasks do without
        from tallstore.archive.chunk_reader import ChunkReader
        from tallstore.archive.slices import Pieces
        from tallstore.tensors import empty

        chunks = ChunkReader(self._reader)
        given = self._base if isinstance(self._base, BaseElements) else None
        base = given or BaseElements(self._reader, self._places, chunks, None)
        pieces = Pieces(self._places, chunks, base, _nothing)
        entry = self._places.task(task)[name].entry
        for start, stop, fill in pieces.of(task, name, 0, entry.covered, exact=False):
            fill(empty(str(entry.dtype), stop - start))

    def _conditional(self, place: Place, name: str) -> None:
        """Every chunk with the base's; without one that is at hand, against its checksum alone."""
        size, dtype = coded(place).chunk, str(place.entry.dtype)
        for index in range(len(coded(place).chunks)):
            if self._base is None:
                self._codes.read(place, index, name)
                continue
            n = min(size, place.entry.covered - index * size)
            out = np.empty(n * ITEM_BYTES[dtype], np.uint8)
            self._base.bytes_into(str(place.entry.base), index * size, out, dtype)
            self._codes.conditional_bytes(place, index, name, out)

    def base(self) -> None:
        """Raise unless every tensor of the base is the one that the manifest identifies. There is a base."""
        assert self._base is not None
        for name, facts in self._manifest.base.tensors.items():
            self._base.check(name)
            digest, total = hashlib.sha256(), facts.numel
            for start in range(0, total, limits.CHUNK_MAX):
                out = np.empty(min(limits.CHUNK_MAX, total - start) * ITEM_BYTES[facts.dtype], np.uint8)
                self._base.bytes_into(name, start, out, facts.dtype)
                digest.update(out.data)
            if digest.hexdigest() != facts.sha256:
                raise DamagedError(
                    f"{self._reader.store.url}: base tensor {name!r} is not the one that the manifest identifies"
                )


def _nothing(jobs: object) -> None:
    """Pieces are filled one after the other: none of their jobs is run beside."""
