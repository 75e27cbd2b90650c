"""An archive's base, and tasks of it, as checkpoints, so that what is packed against them needs no originals."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Reader
from tallstore.checkpoints import Checkpoint, TensorInfo

__all__ = ["ArchiveBase", "ArchiveTask"]

_RUN = 1 << 20
"""Elements that are decoded at once."""
_HELD = 16
"""Runs that are kept: those who sample read many short pieces of each."""


class _Decoded(Checkpoint):
    """Tensors that are decoded run by run. Safe to read from several threads."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @abstractmethod
    def _range(self, name: str, start: int, stop: int) -> Tensor:
        """Decode elements of a tensor."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        first = start - start % _RUN
        if first == start and stop - start >= _RUN:
            return self._range(name, start, stop)
        end = min(self.tensors[name].numel, -(-stop // _RUN) * _RUN)
        if end - first > _RUN:
            return self._range(name, start, stop)
        return self._run(name, first, end)[start - first : stop - first]

    def _run(self, name: str, first: int, end: int) -> Tensor:
        with self._lock:
            found = self._held.get((name, first))
        if found is None:
            found = self._range(name, first, end)
            with self._lock:
                self._held[name, first] = found
                while len(self._held) > _HELD:
                    self._held.popitem(last=False)
        return found


class ArchiveBase(_Decoded):
    """The base in an archive's own parts: exact."""

    def __init__(self, reader: Reader, files: Mapping[str, Path] | None = None) -> None:
        """`files`: those beside the base's weights, where they are at hand: the archive itself has none."""
        super().__init__()
        manifest = reader.manifest
        if files is not None:
            self.files = files
        self.where = f"the base in {reader.store.url}"
        self.tensors = {name: TensorInfo(t.dtype, t.shape) for name, t in manifest.base.tensors.items()}
        self.source = manifest.base.source
        places = reader.places(manifest.base.parts, "base", "")
        self.ties = {name: str(place.entry.to) for name, place in places.items() if place.entry.kind == "tied"}
        self._decoder = Decoder(reader, None, 1)

    def _range(self, name: str, start: int, stop: int) -> Tensor:
        return self._decoder.base_range(name, start, stop)


class ArchiveTask(_Decoded):
    """A task as its archive gives it back; the files beside its weights stay where they are."""

    def __init__(self, decoder: Decoder, task: str, where: str) -> None:
        super().__init__()
        places = decoder.task(task)
        own = {n: places[str(p.entry.to)] if p.entry.kind == "tied" else p for n, p in places.items()}
        self.where = where
        self.tensors = {n: TensorInfo(str(p.entry.dtype), p.entry.shape or ()) for n, p in own.items()}
        self.ties = {name: str(place.entry.to) for name, place in places.items() if place.entry.kind == "tied"}
        self._decoder, self._task = decoder, task

    def _range(self, name: str, start: int, stop: int) -> Tensor:
        return self._decoder.pieces.elements(self._task, self.ties.get(name, name), start, stop)
