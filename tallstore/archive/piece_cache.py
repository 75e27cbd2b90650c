"""Pieces of tasks that others build on, decoded once for several that build on the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from tallstore.archive.read_plan import Origin

__all__ = ["Into", "PieceCache", "Read"]

Read = Callable[[str, str, int, int], Tensor]
"""Decodes elements [start, stop) of a tensor of a task: (task, name, start, stop)."""
Into = Callable[[str, str, int, Tensor, Origin | None], bool]
"""Decodes elements of a tensor of a task into memory: (task, name, start, out, origin); see `SegmentWriter.write`."""


class PieceCache:
    """The last pieces of tasks that were decoded to build on, for several archives of the same tasks. Thread-safe."""

    def __init__(self, most: int = 1 << 27) -> None:
        """`most`: bytes that are held."""
        self._most, self._bytes = most, 0
        self._held: OrderedDict[tuple[str, str, int, int], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def reading(self, read: Read) -> Read:
        """The same, from what is held where it is; what it gives is the caller's own."""

        def reads(task: str, name: str, start: int, stop: int) -> Tensor:
            key = task, name, start, stop
            with self._lock:
                piece = self._held.pop(key, None)
                if piece is not None:
                    self._held[key] = piece
                    return piece.clone()
            piece = read(task, name, start, stop)
            with self._lock:
                if key not in self._held:
                    self._held[key] = piece
                    self._bytes += piece.nbytes
                while self._bytes > self._most:
                    self._bytes -= self._held.popitem(last=False)[1].nbytes
            return piece.clone()

        return reads
