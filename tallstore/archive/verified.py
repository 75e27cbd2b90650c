"""What this process read before and found right, so that it need not be looked at twice before something is written.

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

__all__ = ["CHUNKS", "HEADERS", "MANIFESTS", "MANIFEST_MOST", "Chunk", "VerifiedChunks"]

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


class _Recent(Generic[_V]):
    """A few values by key: those last asked for. Safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, _V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _V]) -> _V:
        """A key's value, made where there is none; if that fails there still is none."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            made = self._values.setdefault(key, made)
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return made


class VerifiedChunks:
    """Chunks of one file, in one state, that were found right."""

    def __init__(self) -> None:
        self._chunks: set[Chunk] = set()

    def add(self, chunk: Chunk) -> None:
        """One that was read after the file was in this state."""
        if len(self._chunks) < _CHUNKS:
            self._chunks.add(chunk)

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._chunks


MANIFESTS = _Recent[Manifest](_MANIFESTS)
"""By sha256 of their bytes."""
HEADERS = _Recent[PartHeader](_FILES)
"""By sha256 of the header's bytes, and size of the part."""
CHUNKS = _Recent[VerifiedChunks](_FILES)
"""By a file's state (`Store.state`) and the part's path."""
