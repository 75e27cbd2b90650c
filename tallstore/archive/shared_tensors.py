"""Tensors that several tasks have alike, coded once: one task keeps the bytes, the others refer to it.

What is compared is what was coded: the same entry over the same bytes decodes to the same tensor, which a hash of the
originals alone would not promise (another base tensor, another setting). A task that has tensors of others and is no
merge of them has these as relatives with weights of 0; its entries name the one that each tensor is taken from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tallstore.archive.reader import Place, Reader
from tallstore.archive.splice import SplicedArchive, weighed
from tallstore.format import limits
from tallstore.format.manifest import Manifest, PartRecord, Task
from tallstore.format.part import CONDITIONAL_KINDS, Entry, PartHeader
from tallstore.format.relatives import MergeRecipe, Relatives
from tallstore.stores import Store

__all__ = ["SharedTensors", "coded_bytes", "part_of"]

_LEAST = 1 << 12
"""Coded bytes of a tensor from which on it is worth a reference."""
_DEEPEST = 2
"""How long a chain of tasks may be that another one refers to the end of."""
_CODED = frozenset({"binary", "signed", "delta"}) | CONDITIONAL_KINDS
_Key = tuple[str, str, Entry]


class Referring(NamedTuple):
    """Tasks that refer to others' tensors: their records, their new parts with those's records, and parts that go."""

    tasks: Mapping[str, Task]
    parts: Mapping[str, tuple[bytes, PartRecord]]
    gone: tuple[str, ...]


class SharedTensors:
    """Coded tensors of tasks, each with the first task that has it."""

    def __init__(self) -> None:
        self._held: dict[_Key, str] = {}
        self._readers: dict[str, Reader] = {}
        self._depths: dict[str, int] = {}

    def know(self, archive: SplicedArchive, tasks: Iterable[str] | None = None) -> None:
        """Take note of an archive's tasks, of all for None."""
        manifest, reader = archive.manifest, Reader(archive.store, archive.manifest)
        for name in manifest.tasks if tasks is None else tasks:
            self._depths[name] = _depth(manifest, name)
            self._know(name, manifest.tasks[name], reader, {})

    def share(self, archive: SplicedArchive, reopen: Callable[[Store], Store]) -> SplicedArchive:
        """An archive of new tasks, on this machine and its caller's, without what known ones or earlier ones have.

        `reopen`: opens a store anew, whose files are others now.
        """
        written = self.shared(archive)
        if not written.tasks:
            return archive
        manifest = archive.manifest
        for path in (*written.parts, *written.gone):
            file = archive.store.local(path)
            assert file is not None
            file.unlink()  # what others may hold open, or mapped, stays as it is
            if path in written.parts:
                file.write_bytes(written.parts[path][0])
        parts = {path: record for path, record in manifest.parts.items() if path not in written.gone}
        parts |= {path: record for path, (_, record) in written.parts.items()}
        tasks = {**manifest.tasks, **{name: weighed(task, parts) for name, task in written.tasks.items()}}
        archive.store.close()  # who holds a folder keeps it from being removed
        made = SplicedArchive(reopen(archive.store), replace(manifest, tasks=tasks, parts=parts))
        self._readers |= dict.fromkeys(tasks, Reader(made.store, made.manifest))
        return made

    def shared(self, archive: SplicedArchive) -> Referring:
        """What is to be written of an archive's tasks so that those refer to what known ones, or earlier ones, have."""
        manifest, reader = archive.manifest, Reader(archive.store, archive.manifest)
        needed = {other for task in manifest.tasks.values() if task.relatives for other in task.relatives.tasks}
        tasks: dict[str, Task] = {}
        parts: dict[str, tuple[bytes, PartRecord]] = {}
        gone: list[str] = []
        for name, task in manifest.tasks.items():
            self._depths[name] = _depth(manifest, name)
            # What others are made of stays as it is: their chains would become longer.
            own = {} if name in needed else self._taken(name, task, reader)
            if own:
                self._depths[name] = 1 + max(self._depths[other] for other in own.values())
                written, removed = _without(reader, name, task, own)
                tasks[name] = _referring(task, own, removed)
                parts |= written
                gone += removed
            self._know(name, task, reader, own)
        return Referring(tasks, parts, tuple(gone))

    def _know(self, name: str, task: Task, reader: Reader, but: Mapping[str, str]) -> None:
        if "exact" in task.parts or task.adapter is not None or self._depths[name] > _DEEPEST:
            return
        self._readers[name] = reader
        for tensor, place in _coded_of(name, task, reader):
            if tensor not in but:
                self._held.setdefault(_key(tensor, task, place), name)

    def _taken(self, name: str, task: Task, reader: Reader) -> dict[str, str]:
        """Tensors of a task that others have → the task that each is to be taken from."""
        if "exact" in task.parts or task.adapter is not None or task.relatives is not None:
            return {}
        taken: dict[str, str] = {}
        for tensor, place in _coded_of(name, task, reader):
            owner = self._held.get(_key(tensor, task, place))
            if owner is None or owner == name or len({*taken.values(), owner}) > limits.RELATIVES:
                continue
            theirs = self._readers[owner]
            there = dict(_coded_of(owner, theirs.manifest.tasks[owner], theirs))[tensor]
            if coded_bytes(reader, place, tensor) == coded_bytes(theirs, there, tensor):
                taken[tensor] = owner
        return taken


def _depth(manifest: Manifest, task: str) -> int:
    """How long the longest chain is that a task is the end of."""
    relatives = manifest.tasks[task].relatives
    others = [] if relatives is None else [other for other in relatives.tasks if other in manifest.tasks]
    return max((1 + _depth(manifest, other) for other in others), default=0)


def _key(tensor: str, task: Task, place: Place) -> _Key:
    """What tensors have in common that decode alike: masks are over a vector of their group."""
    return tensor, task.group if place.entry.kind in {"binary", "signed"} else "", place.entry


def _coded_of(name: str, task: Task, reader: Reader) -> Iterator[tuple[str, Place]]:
    """Tensors whose bytes could be another's: all of them in one place, and not built on other tasks'."""
    kind = "mask" if task.relatives is None else "relative"
    private = reader.places(task.parts.get("private", ()), "private", name)
    for tensor, own in reader.places(task.parts["mask"], kind, name).items():
        entry = own.entry
        place = private[tensor] if entry.kind == "private" else own
        apart = entry.kind in _CODED and entry.start is None and entry.covered == entry.numel
        if not apart and entry.kind != "private":
            continue
        if place.entry.coded is not None and place.entry.coded.size >= _LEAST:
            yield tensor, place


def _referring(task: Task, taken: Mapping[str, str], removed: Sequence[str]) -> Task:
    others = tuple(dict.fromkeys(taken.values()))
    left = {kind: tuple(path for path in paths if path not in removed) for kind, paths in task.parts.items()}
    return replace(
        task,
        parts={kind: paths for kind, paths in left.items() if paths},
        relatives=Relatives(tasks=others, merge=MergeRecipe(method="linear", weights=(0.0,) * len(others))),
    )


def _without(
    reader: Reader, name: str, task: Task, taken: Mapping[str, str]
) -> tuple[dict[str, tuple[bytes, PartRecord]], list[str]]:
    """A task's parts without these tensors' bytes, by path, and paths of parts that have no others."""
    others = list(dict.fromkeys(taken.values()))
    written: dict[str, tuple[bytes, PartRecord]] = {}
    gone: list[str] = []
    headers = {path: reader.header(path) for kind in ("mask", "private") for path in task.parts.get(kind, ())}
    for path, header in headers.items():
        entries = dict(header.entries)
        if header.part == "private":
            entries = {tensor: entry for tensor, entry in entries.items() if tensor not in taken}
        else:
            entries |= {
                tensor: replace(
                    Entry(kind="base", dtype=e.dtype, shape=e.shape, base=e.base),
                    start=tuple(float(other == taken[tensor]) for other in others),
                )
                for tensor, e in header.entries.items()
                if tensor in taken
            }
        places = {n: Place(path, header.entries[n], offset) for n, offset in header.offsets.items()}
        coded = {
            n: coded_bytes(reader, places[n], n)
            for n in header.offsets
            if n in entries and entries[n].coded is not None
        }
        if not entries:
            gone.append(path)
            continue
        part = "private" if header.part == "private" else "relative"
        written[path] = part_of(PartHeader(part=part, owner=name, entries=entries), coded)
    return written, gone


def part_of(header: PartHeader, coded: Mapping[str, bytes]) -> tuple[bytes, PartRecord]:
    """A part's file, of its tensors' coded bytes in the order that they are to lie in; its record."""
    first = header.to_bytes(list(coded))
    data = first + b"".join(each + bytes(-len(each) % limits.BLOB_ALIGNMENT) for each in coded.values())
    return data, record_of(header, first, data)


def record_of(header: PartHeader, first: bytes, data: bytes) -> PartRecord:
    """A part's record: of its header, that as bytes, and the whole file."""
    return PartRecord(
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        header_size=len(first),
        header_sha256=hashlib.sha256(first).hexdigest(),
        version=header.version,
    )


def coded_bytes(reader: Reader, place: Place, tensor: str) -> bytes:
    """A tensor's coded bytes, checked."""
    assert place.entry.coded is not None
    return b"".join(reader.chunk(place, index, tensor) for index in range(len(place.entry.coded.chunks)))
