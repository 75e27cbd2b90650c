"""Where every tensor of an archive lies, and whether what parts say of each other holds together.

Nothing here reads coded bytes: an entry that does not fit the archive is refused before memory is taken for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from tallstore import codecs
from tallstore.archive.reader import Place, Reader
from tallstore.errors import FormatError
from tallstore.format.dtypes import MASKABLE
from tallstore.format.manifest import BaseTensor, Manifest
from tallstore.format.part import CONDITIONAL_KINDS, CodedRanges, Entry
from tallstore.format.relatives import MergeRecipe, Relatives
from tallstore.kernels import reference

__all__ = ["ONES", "RAW", "Places", "StartOf", "coded", "needs_origin"]

RAW, ONES = "raw", "ones"
"""Codecs of which no bytes need decoding."""


def needs_origin(entry: Entry) -> bool:
    """Whether what is coded of a start is decoded given what the base has, too."""
    if entry.kind not in CONDITIONAL_KINDS or entry.coded is None:
        return False
    codec = codecs.CONDITIONAL[entry.kind].get(entry.coded.codec)
    return codec is not None and codec.needs_origin


def coded(place: Place) -> CodedRanges:
    """How a tensor's bytes are coded, of an entry of a kind that has some."""
    assert place.entry.coded is not None  # the format gives every kind that is asked for here its coded bytes
    return place.entry.coded


class StartOf(NamedTuple):
    """What the elements that an entry builds on are merged of."""

    merge: MergeRecipe
    members: tuple[tuple[int, str, str], ...]
    """Of each relative that counts: its place among the weights, its name, and the tensor of its own."""

    @property
    def copied(self) -> bool:
        """Whether they are another task's as they are."""
        weights = [self.merge.weights[at] for at, _, _ in self.members]
        return self.merge.method == "linear" and weights == [1.0]


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
        stored = self._tasks.get((task, part))
        if stored is None:
            facts = self._manifest.tasks[task]
            relatives = facts.relatives if part == "mask" else None
            stored = self._reader.places(facts.parts.get(part, ()), part if relatives is None else "relative", task)
            if relatives is not None and relatives.head is not None:
                stored = self.headed(relatives, stored, facts.parts["mask"][0])
            self._tasks[task, part] = stored
        return stored

    def assume(self, task: str, places: Mapping[str, Place]) -> None:
        """Take a task's tensors for these, of which nothing is written yet."""
        self._tasks[task, "mask"] = places

    def headed(self, relatives: Relatives, own: Mapping[str, Place], path: str) -> dict[str, Place]:
        """The tensors of a merge: those of one of its tasks, the head's, but for what it lists itself.

        `path`: where messages say that they are.
        """
        assert relatives.head is not None
        like = self.task(relatives.head)
        taken = {place.entry.base for place in like.values()}
        merged = {}
        for name, place in like.items():
            entry = place.entry
            if name not in own and entry.kind != "tied":
                entry = self._merged(relatives, name, entry, taken)
            merged[name] = own[name] if name in own else Place(path, entry, None)
        return {**merged, **own}

    def _merged(self, relatives: Relatives, name: str, entry: Entry, taken: set[str | None]) -> Entry:
        """An entry that builds on the task's recipe, or where tensors cannot be merged on the head's."""
        base = entry.base if entry.rows is None else None
        facts = self._manifest.base.tensors.get(name)
        if base is None and facts is not None and name not in taken and facts.shape == entry.shape:
            base = name if facts.dtype in MASKABLE else None
        others = [self.own(task, name) for task in relatives.tasks]
        alike = entry.dtype in MASKABLE and all(
            each is not None and each.shape == entry.shape and each.dtype in MASKABLE for each in others
        )
        if alike and (base is not None or not relatives.merge.needs_base):
            return Entry(kind="base", dtype=entry.dtype, shape=entry.shape, base=base, start=())
        head = tuple(float(task == relatives.head) for task in relatives.tasks)
        return Entry(kind="base", dtype=entry.dtype, shape=entry.shape, base=base, start=head)

    def own(self, task: str, name: str) -> Entry | None:
        """The entry of a task's tensor, or of the one that it is tied to; None where there is none."""
        return self.task(task)[self.source(task, name)].entry if name in self.task(task) else None

    def vectors(self, group: str) -> Mapping[str, Place]:
        """A group's multi-task vector, by base tensor."""
        places = self._vectors.get(group)
        if places is None:
            parts = next(g.parts for g in self._manifest.groups if g.id == group)
            places = self._vectors[group] = self._reader.places(parts, "vector", group)
        return places

    @property
    def base_names(self) -> Collection[str]:
        """The base's tensors, here or elsewhere."""
        return self._manifest.base.tensors

    def base_facts(self, name: str) -> BaseTensor:
        """What the manifest says of a base tensor."""
        return self._manifest.base.tensors[name]

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
        if not _fits(entry, facts.shape):
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

    def start_of(self, task: str, name: str) -> StartOf:
        """What a tensor that has a start builds on; names, shapes and types checked."""
        entry, relatives = self.task(task)[name].entry, self._manifest.tasks[task].relatives
        where = self._where(task, name)
        assert relatives is not None  # parts of others have no starts
        assert entry.start is not None
        if entry.start and len(entry.start) != len(relatives.tasks):
            raise FormatError(f"{where}: {len(entry.start)} weights for {len(relatives.tasks)} tasks")
        merge = MergeRecipe(method="linear", weights=entry.start) if entry.start else relatives.merge
        members = []
        for at, (relative, weight) in enumerate(zip(relatives.tasks, merge.weights, strict=True)):
            if not weight and merge.method == "linear":
                continue
            if name not in self.task(relative):
                raise FormatError(f"{where}: builds on task {relative!r}, which has no such tensor")
            members.append((at, relative, self.source(relative, name)))
        start = StartOf(merge, tuple(members))
        if not members:
            raise FormatError(f"{where}: builds on nothing: every weight is 0")
        for _, relative, source in members:
            other = self.task(relative)[source].entry
            if not _fits(entry, other.shape):
                raise FormatError(f"{where}: shape {list(entry.shape or ())} is not that of task {relative!r}")
            if not {entry.dtype, other.dtype} <= set(MASKABLE) and not (start.copied and entry.dtype == other.dtype):
                raise FormatError(f"{where}: {entry.dtype} does not come from {other.dtype} of task {relative!r}")
        if merge.needs_base and (
            entry.base is None or self._manifest.base.tensors[self.base_of(task, name)].dtype not in MASKABLE
        ):
            raise FormatError(f"{where}: is merged by differences from the base, which has nothing in its place")
        return start

    def bases(self, task: str, name: str) -> Iterator[str]:
        """The base's tensors that a tensor of its own is decoded from."""
        entry = self.task(task)[name].entry
        if entry.start is None:
            if entry.base is not None:
                yield entry.base
            return
        start = self.start_of(task, name)
        if start.merge.needs_base or needs_origin(entry):
            yield str(entry.base)
        for _, relative, source in start.members:
            yield from self.bases(relative, source)

    def check(self, task: str, name: str) -> None:
        """Raise for an entry of a task that does not fit the archive. What was found to fit is not looked at again."""
        if (task, name) in self._fitting:
            return
        asked, name = name, self.source(task, name)
        entry: Entry = self.task(task)[name].entry
        if entry.kind == "private" or entry.covered < entry.numel:
            self.private(task, name)
        if entry.kind != "private" and entry.base is not None:
            self.base_of(task, name)
            self.vector_of(task, name)
        if entry.start is not None:
            for _, relative, source in self.start_of(task, name).members:
                self.check(relative, source)
        if needs_origin(entry):
            self._check_origin(task, name, entry)
        self._fitting.add((task, asked))

    def _check_origin(self, task: str, name: str, entry: Entry) -> None:
        """Raise where a codec asks for the base beside the start, and there is no start, or nothing of its type."""
        if entry.start is None or entry.base is None:
            raise FormatError(f"{self._where(task, name)}: is coded given a start and the base, and lacks one of them")
        dtype = self._manifest.base.tensors[self.base_of(task, name)].dtype
        if dtype != entry.dtype:
            raise FormatError(f"{self._where(task, name)}: {entry.dtype} is coded given a base of {dtype}")

    def check_task(self, task: str, *, embedded: bool) -> None:
        """Raise for any entry of a task that does not fit the archive; `embedded`: or its embedded base."""
        for name, place in self.task(task).items():
            self.check(task, name)
            if place.entry.kind != "tied" and embedded:
                for base in self.bases(task, name):
                    self.base(base)

    def _where(self, task: str, name: str) -> str:
        return f"{self._reader.store.url}: task {task!r}: tensor {name!r}"


def _fits(entry: Entry, shape: tuple[int, ...] | None) -> bool:
    """Whether a tensor, or its leading rows, can come from one of a shape."""
    own, other = entry.shape or (), shape or ()
    if entry.rows is None:
        return own == other
    return bool(own and other) and own[1:] == other[1:] and entry.rows <= other[0]
