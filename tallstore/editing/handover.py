"""Tensors that tasks share with one that goes: the first of those that have them takes them over, byte for byte."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from tallstore.archive.reader import Place, Reader
from tallstore.archive.shared_tensors import coded_bytes, part_of
from tallstore.archive.splice import Spliced, weighed
from tallstore.format.manifest import Manifest, PartRecord, Task
from tallstore.format.part import Entry, PartHeader
from tallstore.format.relatives import MergeRecipe, Relatives
from tallstore.stores import Sink

__all__ = ["handed_over", "only_shares"]


def only_shares(manifest: Manifest, task: str) -> bool:
    """Whether what a task has of others are tensors as they are, so that it can keep them without these."""
    relatives = manifest.tasks[task].relatives
    return relatives is not None and relatives.shares


def handed_over(full: Spliced, reader: Reader, gone: Collection[str], sink: Sink) -> Spliced:
    """An archive in which tasks that share tensors need none of those that go. Every decoded bit stays."""
    manifest, files = full.manifest, dict(full.files)
    tasks, parts = dict(manifest.tasks), dict(manifest.parts)
    heirs: dict[tuple[str, str], str] = {}
    for name, task in manifest.tasks.items():
        if name in gone or not only_shares(manifest, name) or _others(task).isdisjoint(gone):
            continue
        own = _Heir(name, task, reader, frozenset(gone), heirs)
        tasks[name], written = own.written()
        for paths in task.parts.values():
            for path in paths:
                parts.pop(path, None)
                files.pop(path, None)
        for path, (data, record) in written.items():
            sink.put(path, [data], len(data))
            parts[path] = record
        tasks[name] = weighed(tasks[name], parts)
    return Spliced(replace(manifest, tasks=tasks, parts=parts), files)


def _others(task: Task) -> frozenset[str]:
    """The tasks that one has tensors of."""
    return frozenset(task.relatives.tasks if task.relatives is not None else ())


@dataclass
class _Heir:
    """A task that is written anew with the tensors that it had of tasks that go."""

    name: str
    task: Task
    reader: Reader
    gone: frozenset[str]
    heirs: dict[tuple[str, str], str]
    """(task that goes, tensor) → who has it now; added to."""

    def written(self) -> tuple[Task, Mapping[str, tuple[bytes, PartRecord]]]:
        """The task's record and its new parts."""
        assert self.task.relatives is not None
        before = self.task.relatives.tasks
        mask = self.reader.places(self.task.parts["mask"], "relative", self.name)
        private = dict(self.reader.places(self.task.parts.get("private", ()), "private", self.name))
        sources: dict[str, str] = {}
        own: dict[str, Place] = {}
        for tensor, place in mask.items():
            own[tensor] = place
            if not place.entry.start:
                continue
            other = before[place.entry.start.index(1.0)]
            heir = self.heirs.setdefault((other, tensor), self.name) if other in self.gone else other
            if heir != self.name:
                sources[tensor] = heir
                continue
            own[tensor], whole = self._of(other, tensor)
            if whole is not None:
                private[tensor] = whole
        others = tuple(dict.fromkeys(sources.values()))
        entries = {
            tensor: replace(place.entry, start=tuple(float(each == sources[tensor]) for each in others))
            if tensor in sources
            else place.entry
            for tensor, place in own.items()
        }
        kind = "relative" if others else "mask"
        written = {self.task.parts["mask"][0]: self._part(kind, entries, own)}
        kinds = {"mask": (self.task.parts["mask"][0],)}
        if private:
            path = self.task.parts.get("private", (f"tasks/{self.name}/private.safetensors",))[0]
            written[path] = self._part("private", {n: place.entry for n, place in private.items()}, private)
            kinds["private"] = (path,)
        merge = MergeRecipe(method="linear", weights=(0.0,) * len(others))
        relatives = Relatives(tasks=others, merge=merge) if others else None
        return replace(self.task, parts={**self.task.parts, **kinds}, relatives=relatives), written

    def _of(self, other: str, tensor: str) -> tuple[Place, Place | None]:
        """A tensor as the task that goes has it; and where its bytes are, if it is stored whole."""
        facts = self.reader.manifest.tasks[other]
        kind = "mask" if facts.relatives is None else "relative"
        place = self.reader.places(facts.parts["mask"], kind, other)[tensor]
        if place.entry.kind != "private":
            return place, None
        return place, self.reader.places(facts.parts["private"], "private", other)[tensor]

    def _part(self, kind: str, entries: Mapping[str, Entry], places: Mapping[str, Place]) -> tuple[bytes, PartRecord]:
        coded = {n: coded_bytes(self.reader, places[n], n) for n, e in entries.items() if e.coded is not None}
        return part_of(PartHeader(part=kind, owner=self.name, entries=entries), coded)
