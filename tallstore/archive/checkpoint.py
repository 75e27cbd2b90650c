"""An archive's base, and tasks of it, as checkpoints, so that what is packed against them needs no originals."""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tallstore.archive.decode import Decoder
from tallstore.archive.piece_cache import PieceCache
from tallstore.archive.reader import Place, Reader
from tallstore.checkpoints import Checkpoint, TensorInfo
from tallstore.format.manifest import Manifest, Task
from tallstore.format.part import Entry
from tallstore.format.relatives import Relatives

__all__ = ["ArchiveBase", "ArchiveStart", "ArchiveTask", "StartPlan"]

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

    def once(self, name: str, start: int, stop: int) -> Tensor:
        """The same of elements that nobody comes back to: nothing of them is kept."""
        return self._range(name, start, stop)

    def _run(self, name: str, first: int, end: int) -> Tensor:
        with self._lock:
            rows = self._held.get((name, first))
        if rows is None:
            rows = self._range(name, first, end)
            with self._lock:
                self._held[name, first] = rows
                while len(self._held) > _HELD:
                    self._held.popitem(last=False)
        return rows


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

    ties_are_all = True  # a writer looked for them

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


@dataclass(frozen=True, kw_only=True)
class StartPlan:
    """What one tensor of a task that is to be packed builds on."""

    base: str | None
    """The base's tensor that it comes from, if any."""
    start: tuple[float, ...] | None = None
    """As an entry's: None for the base itself."""
    kept: bool = False
    """Whether it is left as it starts: what it differs by is not coded."""


class ArchiveStart(Checkpoint):
    """What a task that is to be packed starts from, tensor by tensor, under its own names of them.

    An encoder that is given this for a base codes what is left. Of tensors that are to stay as they start it is given
    the task's own, so that it finds nothing to code.
    """

    def __init__(
        self,
        reader: Reader,
        base: Checkpoint,
        task: Checkpoint,
        relatives: Relatives,
        held: PieceCache | None = None,
    ) -> None:
        """`held`: what several tasks that start from the same ones decode of those, each piece once."""
        manifest = reader.manifest
        name = _free_name(manifest)
        group = manifest.groups[0].id
        tasks = {**manifest.tasks, name: Task(group=group, parts={"mask": ("-",)}, relatives=relatives)}
        extended = Reader(reader.store, replace(manifest, tasks=tasks))
        given = None if manifest.base.storage == "embed" else base
        self.decoder, self._name, self._parts = Decoder(extended, given, None), name, manifest.parts
        if held is not None:
            self.decoder.pieces.hold(held)
        self._base, self._task = base, task
        self._goes_on = relatives.parent is not None
        self._plans: Mapping[str, StartPlan] = {}
        self._decoded: ArchiveTask | None = None
        self.where = f"what {task.where} starts from"

    def plan(self, plans: Mapping[str, StartPlan]) -> None:
        """Settle what each tensor builds on. Those that are not named build on nothing."""
        entries = {
            name: Entry(
                kind="base",
                dtype=self._task.tensors[name].dtype,
                shape=self._task.tensors[name].shape,
                base=each.base,
                start=each.start,
            )
            for name, each in plans.items()
            if each.start is not None
        }
        self.decoder.places.assume(self._name, {name: Place("-", entry, None) for name, entry in entries.items()})
        self._plans, self._decoded = plans, ArchiveTask(self.decoder, self._name, self.where)
        self.tensors = {
            name: self._task.tensors[name] if each.start is not None else self._base.tensors[str(each.base)]
            for name, each in plans.items()
        }

    def started(self, name: str, start: int, stop: int) -> Tensor:
        """Elements that a tensor builds on, also of one that stays as it starts."""
        assert self._decoded is not None
        each = self._plans[name]
        return (
            self._base.read(str(each.base), start, stop)
            if each.start is None
            else self._decoded.read(name, start, stop)
        )

    def once(self, name: str, start: int, stop: int) -> Tensor:
        """The same, for who does not come back to it."""
        assert self._decoded is not None
        each = self._plans[name]
        if each.start is None:
            return self._base.read(str(each.base), start, stop)
        return self._decoded.once(name, start, stop)

    def origin_of(self, name: str, start: int, stop: int) -> Tensor | None:
        """Of a tensor that goes on from a parent."""
        return self._base.read(str(self._plans[name].base), start, stop) if self.goes_on(name) else None

    def goes_on(self, name: str) -> bool:
        """Whether a tensor is coded given a parent and the base: it has a counterpart of its type there."""
        each = self._plans[name]
        if each.kept or not self._goes_on or each.start != () or each.base is None:
            return False
        return self._base.tensors[each.base].dtype == self.tensors[name].dtype

    def fingerprint(self) -> str:
        parts = sorted((path, record.sha256) for path, record in self._parts.items())
        said = repr((parts, self._task.fingerprint(), sorted(self._plans.items())))
        return hashlib.sha256(said.encode()).hexdigest()

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._task.read(name, start, stop) if self._plans[name].kept else self.started(name, start, stop)


def _free_name(manifest: Manifest) -> str:
    """A name that no task has."""
    name = "-"
    while name in manifest.tasks:
        name += "-"
    return name
