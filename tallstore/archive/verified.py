"""Process-wide caches: parsed manifests and headers, and chunks whose checksum was verified.

Manifests and headers are known by their hash and so need not be parsed again, whoever opens an archive with the same
ones: what was parsed is shared, and not to be changed. Chunks are known by the state of the file that they lie in. That
a chunk is known spares the reading ahead that keeps a model from being half written; the bytes that are written are
checked in any case.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from tallstore.format.manifest import Manifest
from tallstore.format.part import PartHeader
from tallstore.stores import Store

__all__ = ["HEADERS", "MANIFESTS", "MANIFEST_MOST", "Chunk", "RecentlyUsed", "VerifiedChunks"]

Chunk = tuple[int | None, int, bytes]
"""Where its tensor's bytes begin in their part, which chunk it is, and its hash."""
_FILES = 64
"""Headers, and files of which chunks are known."""
_CHUNKS = 1 << 17
"""Of one file; those beyond are read ahead again."""
_MANIFESTS = 8
MANIFEST_MOST = 1 << 20
"""Bytes of a manifest that is kept; longer ones are parsed again."""
_V = TypeVar("_V")


class RecentlyUsed(Generic[_V]):
    """A few values by key: those last asked for. Safe to use from several threads."""

    def __init__(self, most: int, size: Callable[[_V], int] = lambda _: 1) -> None:
        """At most so many, or of at most so much by `size`: the last one asked for is kept in any case."""
        self._most, self._size, self._held = most, size, 0
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, _V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _V]) -> _V:
        """A key's value, made where there is none, perhaps by several threads; if that fails there still is none."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = made
                self._held += self._size(made)
            made = self._values[key]
            self._values.move_to_end(key)
            while self._held > self._most and len(self._values) > 1:
                self._held -= self._size(self._values.popitem(last=False)[1])
        return made


class _Chunks:
    """Chunks of one file, in one state, that were verified. Adding to a set is atomic."""

    def __init__(self) -> None:
        self.held: set[Chunk] = set()

    def add(self, chunk: Chunk) -> None:
        if len(self.held) < _CHUNKS:
            self.held.add(chunk)


MANIFESTS = RecentlyUsed[Manifest](_MANIFESTS)
"""By sha256 of their bytes."""
HEADERS = RecentlyUsed[PartHeader](_FILES)
"""By sha256 of the header's bytes, and size of the part."""
_FILES_CHUNKS = RecentlyUsed[_Chunks](_FILES)
"""By a file's state (`Store.state`) and the part's path."""


class VerifiedChunks:
    """Which chunks of a store's files this process found right: hash and content, in files that have not changed since.

    A file's state is looked at once, when it is first asked about after `reset`. Safe to use from several threads.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[str, _Chunks] = {}

    def reset(self) -> None:
        """From here on chunks count as verified only in files that are now what they were."""
        self._files = {}

    def add(self, path: str, chunk: Chunk) -> None:
        """A chunk of a file, read since `reset`, has its hash and decodes."""
        self._of(path).add(chunk)

    def contains(self, path: str, chunk: Chunk) -> bool:
        """Whether a chunk was found right in this process, in a file that has not changed since."""
        return chunk in self._of(path).held

    def _of(self, path: str) -> _Chunks:
        files = self._files
        if path not in files:
            state = self._store.state(path)
            files[path] = _Chunks() if state is None else _FILES_CHUNKS.get((state, path), _Chunks)
        return files[path]
