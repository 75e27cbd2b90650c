"""How a tensor of a task is put together: the segments that are decoded by themselves, and the chunks each is made of.

    how          elements are
    whole        the task's own, stored whole
    base         the base's, as they are
    steps        the base's, with what a mask over a vector or a delta adds
    conditional  the base's, with what a codec needs to turn them into the task's
    start        other tasks', merged, with what is coded of the difference

One plan for everything that reads: a store far away is told of its chunks in advance (`prefetch`), whole tensors are
checked and decoded by it (`decode`), and of a slice the segments that it touches (`slices`). Nothing is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from torch import Tensor

from tallstore.archive.locations import Places, StartOf, coded, needs_origin
from tallstore.archive.reader import Place
from tallstore.format.part import CONDITIONAL_KINDS, Entry
from tallstore.kernels.reference import SYMBOL_BITS
from tallstore.stores import Range

__all__ = ["LOSSY", "ChunkRef", "How", "Origin", "ReadPlan", "Segment", "TensorPlan", "chunks_of"]

LOSSY = frozenset({*SYMBOL_BITS, "delta", "sampled"})
"""Kinds that an exact part, if there is one, has a word on."""
_PLANS = 1 << 13
"""Plans of tensors that are kept at most."""
_SPAN = 1 << 18
"""Elements that are merged at once where nothing asks for more."""


class How(Enum):
    """What a segment's elements are: see the table above."""

    WHOLE = "whole"
    BASE = "base"
    STEPS = "steps"
    CONDITIONAL = "conditional"
    START = "start"


class ChunkRef(NamedTuple):
    """A chunk of a tensor in a part. `name` is the tensor's, for messages."""

    place: Place
    number: int
    name: str

    @property
    def start(self) -> int:
        """Its first element."""
        return self.number * coded(self.place).chunk

    @property
    def stop(self) -> int:
        """The one behind its last."""
        return min(self.start + coded(self.place).chunk, self.place.entry.covered)

    @property
    def range(self) -> Range:
        """Its coded bytes; the last chunk's with the zeros behind them."""
        ranges = coded(self.place)
        assert self.place.offset is not None
        last = self.number + 1 == len(ranges.chunks)
        padding = ranges.padded - ranges.size if last else 0
        begin = self.place.offset + ranges.chunks.before(self.number)
        return Range(self.place.path, begin, ranges.chunks.length(self.number) + padding)


def chunks_of(place: Place, name: str, start: int, stop: int) -> Iterator[ChunkRef]:
    """The chunks that elements [start, stop) of a coded tensor lie in; of what has no bytes in the part, none."""
    if place.entry.coded is not None and place.offset is not None and start < stop:
        size = place.entry.coded.chunk
        yield from (ChunkRef(place, index, name) for index in range(start // size, -(-stop // size)))


class Segment(NamedTuple):
    """Elements [start, stop) of a tensor, decoded in one go."""

    how: How
    start: int
    stop: int
    number: int
    """Among the segments of its kind: that of its chunk."""


class Origin(NamedTuple):
    """Memory for elements of a base tensor, filled where they are met on the way to those of a task."""

    base: str
    out: Tensor
    """Flat, of the base's type."""

    def part(self, start: int, stop: int) -> Origin:
        """The memory for some of them."""
        return Origin(self.base, self.out[start:stop])


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """A tensor of its own, not a tied one, and the places that it is decoded from; shapes and names are checked."""

    name: str
    entry: Entry
    head: How
    """What the leading elements are, those that a base or other tasks stand for."""
    covered: int
    """How many those are; the others are whole."""
    size: int
    """Elements of a segment of the head."""
    own: Place
    """What the task has coded of the head: a mask, a delta, or what makes it lossless; perhaps nothing."""
    base: str | None = None
    """The base's tensor that the head's elements are taken from; of a start, one that merging or decoding needs."""
    vector: Place | None = None
    """What the mask is over."""
    lost: Place | None = None
    """What makes the head bit for bit the original's, where that is asked for."""
    start: StartOf | None = None
    """The tasks' tensors that the head is merged of."""
    private: Place | None = None
    """The tail, stored whole."""

    @property
    def on_base(self) -> bool:
        """Whether the head is read from the base's tensor, element by element."""
        return self.base is not None and self.head is not How.START

    def segments(self, start: int = 0, stop: int | None = None) -> Iterator[Segment]:
        """Those that elements [start, stop) lie in, by default all; in order."""
        stop = self.entry.numel if stop is None else stop
        yield from _cut(self.head, self.size, 0, self.covered, start, min(stop, self.covered))
        if self.private is not None:
            yield from _cut(How.WHOLE, coded(self.private).chunk, self.covered, self.entry.numel, start, stop)

    def chunks(self, segment: Segment, base: Place | None) -> Iterator[ChunkRef]:
        """Every chunk that a segment reads, but for those of other tasks.

        Args:
            segment: one of this tensor's.
            base: where the base's tensor is, if it is in the archive.
        """
        start, stop = segment.start, segment.stop
        if segment.how is How.WHOLE:
            assert self.private is not None
            yield from chunks_of(self.private, self.name, start - self.covered, stop - self.covered)
            return
        yield from chunks_of(self.own, self.name, start, stop)
        if self.vector is not None:
            yield from chunks_of(self.vector, str(self.base), start, stop)
        if base is not None:
            yield from chunks_of(base, str(self.base), start, stop)
        if self.lost is not None:
            yield from chunks_of(self.lost, self.name, start, stop)


class ReadPlan:
    """Of one archive, whose base's chunks are its own or not. Safe to use from several threads."""

    def __init__(self, places: Places, *, embedded: bool) -> None:
        self._places, self._embedded = places, embedded
        self._made: dict[tuple[str, str, bool], TensorPlan] = {}

    def of(self, task: str, name: str, *, exact: bool = False) -> TensorPlan:
        """The plan of a tensor that is not tied.

        Args:
            task: its task.
            name: its name.
            exact: with what makes it bit for bit the original.

        Raises:
            FormatError: what the parts say of it does not fit together.
        """
        made, own = self._made.get((task, name, exact)), self._places.task(task)[name]
        if made is None or made.own is not own:  # a chain asks for its links chunk by chunk
            if len(self._made) >= _PLANS:
                self._made.clear()
            made = self._made[task, name, exact] = self._new(task, name, own, exact=exact)
        return made

    def _new(self, task: str, name: str, own: Place, *, exact: bool) -> TensorPlan:
        places, entry = self._places, own.entry
        places.check(task, name)
        head = _head(entry)
        covered = 0 if head is How.WHOLE else entry.covered
        start = places.start_of(task, name) if entry.start is not None else None
        lossy = entry.kind in LOSSY or (start is not None and name in places.task(task, "exact"))
        return TensorPlan(
            name=name,
            entry=entry,
            head=head,
            covered=covered,
            size=self._size(task, name, head),
            own=own,
            base=entry.base if start is None or start.merge.needs_base or needs_origin(entry) else None,
            vector=places.vector_of(task, name),
            lost=places.exact(task, name) if exact and lossy else None,
            start=start,
            private=places.private(task, name) if covered < entry.numel or head is How.WHOLE else None,
        )

    def of_base(self, name: str) -> Iterator[Segment]:
        """The segments of a base tensor."""
        total = self._places.base_facts(name).numel
        return _cut(How.BASE, self.span(name), 0, total, 0, total)

    def base(self, name: str | None) -> Place | None:
        """Where a base tensor lies in the archive; None where it is not there."""
        return self._places.base(name) if name is not None and self._embedded else None

    def span(self, base: str) -> int:
        """Elements of a base tensor that are read at once: a chunk, or the whole tensor where it was given."""
        place = self.base(base)
        return max(1, self._places.base_facts(base).numel) if place is None else coded(place).chunk

    def _size(self, task: str, name: str, head: How) -> int:
        place = self._places.task(task)[name]
        if head is How.BASE:
            return self.span(str(place.entry.base))
        if head is How.START:
            return self._merged_at_once(task, name)
        return 1 if head is How.WHOLE else coded(place).chunk

    def _merged_at_once(self, task: str, name: str) -> int:
        """A power of two, and a whole number of chunks of each tensor that it is made of: none is decoded twice."""
        place = self._places.task(task)[name]
        sizes = [_SPAN if place.entry.coded is None else coded(place).chunk]
        if place.entry.kind == "private":
            sizes.append(coded(self._places.private(task, name)).chunk)
        if place.entry.start is not None:
            members = self._places.start_of(task, name).members
            sizes += [self._merged_at_once(other, source) for _, other, source in members]
        return max(sizes)


def _head(entry: Entry) -> How:
    if entry.start is not None:
        return How.START
    if entry.base is None:
        return How.WHOLE
    if entry.kind in CONDITIONAL_KINDS:
        return How.CONDITIONAL
    return How.BASE if entry.kind == "base" else How.STEPS


def _cut(how: How, size: int, begin: int, end: int, start: int, stop: int) -> Iterator[Segment]:
    """[begin, end) in segments of so many elements; those that [start, stop) touches."""
    low, high = max(start, begin) - begin, min(stop, end) - begin
    for index in range(low // size, -(-high // size)) if low < high else ():
        yield Segment(how, begin + index * size, min(begin + (index + 1) * size, end), index)
