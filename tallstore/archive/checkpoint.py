"""An archive's base as a checkpoint, so that what is packed against it needs no original of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Reader
from tallstore.checkpoints import Checkpoint, TensorInfo

_RUN = 1 << 20
"""Elements that are decoded at once."""
_HELD = 16
"""Runs that are kept: those who sample read many short pieces of each."""


class ArchiveBase(Checkpoint):
    """The base in an archive's own parts: exact, decoded run by run. Safe to read from several threads."""

    def __init__(self, reader: Reader, files: Mapping[str, Path] | None = None) -> None:
        """`files`: those beside the base's weights, where they are at hand: the archive itself has none."""
        manifest = reader.manifest
        if files is not None:
            self.files = files
        self.where = f"the base in {reader.store.url}"
        self.tensors = {name: TensorInfo(t.dtype, t.shape) for name, t in manifest.base.tensors.items()}
        self.source = manifest.base.source
        places = reader.places(manifest.base.parts, "base", "")
        self.ties = {name: str(place.entry.to) for name, place in places.items() if place.entry.kind == "tied"}
        self._decoder = Decoder(reader, None, 1)
        self._held: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, start: int, stop: int) -> Tensor:
        first = start - start % _RUN
        if first == start and stop - start >= _RUN:
            return self._decoder.base_range(name, start, stop)
        end = min(self.tensors[name].numel, -(-stop // _RUN) * _RUN)
        if end - first > _RUN:
            return self._decoder.base_range(name, start, stop)
        return self._run(name, first, end)[start - first : stop - first]

    def _run(self, name: str, first: int, end: int) -> Tensor:
        with self._lock:
            values = self._held.get((name, first))
        if values is None:
            values = self._decoder.base_range(name, first, end)
            with self._lock:
                self._held[name, first] = values
                while len(self._held) > _HELD:
                    self._held.popitem(last=False)
        return values
