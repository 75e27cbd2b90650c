"""Quick checksums of bytes that were found to have a sha256 once, so that later readings need not take it again.

A seal says: bytes of this sha256 have that xxh3-128. It is found by content, so it holds for whatever file the bytes
lie in, and one that is lost, damaged or wrong costs the slow check and nothing else. Whoever can write seals can write
the files beside them too.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from hashlib import sha256
from pathlib import Path

import xxhash

_MOST = 64 << 20
"""Bytes of a file of seals that are read."""


class HashCache:
    """Those that a file keeps. Safe to use from several threads and processes."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._new = False
        self._known = _read(place)

    def match(self, data: memoryview, digest: str) -> bool:
        """Whether bytes have this sha256, in hex: by their seal, or else by the sha256 itself, which makes a seal."""
        quick = xxhash.xxh3_128_hexdigest(data)
        if self._known.get(digest) == quick:
            return True
        if sha256(data).hexdigest() != digest:
            return False
        with self._lock:
            self._known[digest] = quick
            self._new = True
        return True

    def save(self) -> None:
        """Keep what was found since. Where that cannot be, as in a cache that may not be written, nothing is kept."""
        with self._lock, contextlib.suppress(OSError):
            if not self._new:
                return
            self._new = False
            self._place.parent.mkdir(exist_ok=True)
            beside = self._place.with_name(f"{self._place.name}.{os.getpid()}.{threading.get_ident()}")
            beside.write_text(json.dumps(self._known))
            beside.replace(self._place)


def _read(place: Path) -> dict[str, str]:
    try:
        if place.stat().st_size > _MOST:
            return {}
        content = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return dict(content) if isinstance(content, dict) else {}
