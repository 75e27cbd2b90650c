"""Where every tensor of an archive lies, and whether what parts say of each other holds together.

Nothing here reads coded bytes: an entry that does not fit the archive is refused before memory is taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from tallstore.archive.reader import Place, Reader
from tallstore.errors import FormatError
from tallstore.format.dtypes import MASKABLE
from tallstore.format.manifest import Manifest
from tallstore.format.part import CodedRanges, Entry
from tallstore.kernels import reference

__all__ = ["ONES", "RAW", "Places", "coded"]

RAW, ONES = "raw", "ones"
"""Codecs of which no bytes need decoding."""


def coded(place: Place) -> CodedRanges:
    """How a tensor's bytes are coded, of an entry of a kind that has some."""
    assert place.entry.coded is not None  # the format gives every kind that is asked for here its coded bytes
    return place.entry.coded


class Places:
    """The tensors of one archive's parts; headers are read when they are first needed. Safe to use from threads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._manifest: Manifest = reader.manifest
        self._base: Mapping[str, Place] | None = None
        self._vectors: dict[str, Mapping[str, Place]] = {}
        self._tasks: dict[tuple[str, str], Mapping[str, Place]] = {}
        self._fitting: set[tuple[str, str]] = set()

    def task(self, task: str, part: str = "mask") -> Mapping[str, Place]:
        """A task's tensors in its parts of one kind, in the checkpoint's order."""
        places = self._tasks.get((task, part))
        if places is None:
            places = self._reader.places(self._manifest.tasks[task].parts.get(part, ()), part, task)
            self._tasks[task, part] = places
        return places

    def vectors(self, group: str) -> Mapping[str, Place]:
        """A group's multi-task vector, by base tensor."""
        places = self._vectors.get(group)
        if places is None:
            parts = next(g.parts for g in self._manifest.groups if g.id == group)
            places = self._vectors[group] = self._reader.places(parts, "vector", group)
        return places

    def base(self, name: str) -> Place:
        """A tensor of the embedded base, or the one that it shares its bytes with."""
        if self._base is None:
            self._base = self._reader.places(self._manifest.base.parts, "base", "")
        facts = self._manifest.base.tensors[name]
        place = self._base.get(name)
        if place is not None and place.entry.kind == "tied":
            place = self._base.get(str(place.entry.to))
        if place is None or (place.entry.dtype, place.entry.shape) != (facts.dtype, facts.shape):
            raise FormatError(f"{self._reader.store.url}: the base part has no tensor {name!r} as the manifest says")
        return place

    def source(self, task: str, name: str) -> str:
        """The tensor of its own whose bytes a task's tensor has: itself, unless it is tied."""
        places = self.task(task)
        entry = places[name].entry
        if entry.kind != "tied":
            return name
        if entry.to is None or entry.to not in places or places[entry.to].entry.kind == "tied":
            raise FormatError(f"{self._where(task, name)}: is tied to {entry.to!r}, which is no tensor of its own")
        return entry.to

    def private(self, task: str, name: str) -> Place:
        """What a task stores whole of one of its tensors: all of it, or the rows beyond the base's."""
        entry = self.task(task)[name].entry
        expected = entry.numel if entry.kind == "private" else entry.numel - entry.covered
        place = self.task(task, "private").get(name)
        if place is None or place.entry.dtype != entry.dtype or place.entry.numel != expected:
            raise FormatError(f"{self._where(task, name)} is not in its private part")
        return place

    def exact(self, task: str, name: str) -> Place:
        """What turns a task's tensor into its original."""
        place = self.task(task, "exact").get(name)
        if place is None or place.entry.numel != self.task(task)[name].entry.covered:
            raise FormatError(f"{self._where(task, name)} is not in its exact part")
        return place

    def base_of(self, task: str, name: str) -> str:
        """The base tensor that a task's tensor comes from, its shape and type and the entry's checked."""
        entry = self.task(task)[name].entry
        where = self._where(task, name)
        facts = self._manifest.base.tensors.get(str(entry.base))
        if facts is None:
            raise FormatError(f"{where}: the base has no tensor {entry.base!r}")
        shape = entry.shape or ()
        fits = facts.shape == shape
        if entry.rows is not None:
            fits = bool(shape and facts.shape) and facts.shape[1:] == shape[1:] and entry.rows <= facts.shape[0]
        if not fits:
            raise FormatError(f"{where}: shape {list(shape)} does not come from the base's {list(facts.shape)}")
        as_it_is = entry.kind in {"base", "lossless"} and entry.dtype == facts.dtype
        if not {facts.dtype, str(entry.dtype)} <= set(MASKABLE) and not as_it_is:
            raise FormatError(
                f"{where}: a {entry.kind} entry of {entry.dtype} cannot come from the base's {facts.dtype}"
            )
        return str(entry.base)

    def vector_of(self, task: str, name: str) -> Place | None:
        """The vector that a task's mask is over, shapes and chunks checked; None for a tensor without a mask."""
        place = self.task(task)[name]
        if place.entry.kind not in reference.SYMBOL_BITS:
            return None
        base, where = str(place.entry.base), self._reader.where(place.path)
        vector = self.vectors(self._manifest.tasks[task].group).get(base)
        if vector is None:
            raise FormatError(f"{where}: tensor {name!r}: the vector has no {base!r}")
        self.check_vector(vector, base)
        if coded(vector).chunk != coded(place).chunk:
            raise FormatError(f"{where}: tensor {name!r}: its chunks are not its vector's")
        return vector

    def check_vector(self, place: Place, name: str) -> None:
        """Raise unless a vector's tensor has the base's shape."""
        if name not in self._manifest.base.tensors or place.entry.shape != self._manifest.base.tensors[name].shape:
            raise FormatError(f"{self._reader.where(place.path)}: tensor {name!r} has not the base's shape")

    def check(self, task: str, name: str) -> None:
        """Raise for an entry of a task that does not fit the archive. What was found to fit is not looked at again."""
        if (task, name) in self._fitting:
            return
        asked, name = name, self.source(task, name)
        entry: Entry = self.task(task)[name].entry
        if entry.kind == "private" or entry.covered < entry.numel:
            self.private(task, name)
        if entry.kind != "private":
            self.base_of(task, name)
            self.vector_of(task, name)
        self._fitting.add((task, asked))

    def check_task(self, task: str, *, embedded: bool) -> None:
        """Raise for any entry of a task that does not fit the archive; `embedded`: or its embedded base."""
        for name, place in self.task(task).items():
            self.check(task, name)
            if place.entry.base is not None and embedded:
                self.base(place.entry.base)

    def _where(self, task: str, name: str) -> str:
        return f"{self._reader.store.url}: task {task!r}: tensor {name!r}"
