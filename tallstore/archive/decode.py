"""From a task's entries to tensors: which chunks are read and decoded, and where what they hold is put together.

Every tensor is cut into jobs of one chunk each. A job reads, checks, decodes and writes its own slice of the output,
so jobs run side by side and memory beyond the output stays at a few chunks. All ways to a task's tensors (whole, in
place, by range, for merging and switching) are here, since they share these jobs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.archive.base_tensors import BaseElements, Job
from tallstore.archive.chunk_reader import ChunkReader
from tallstore.archive.locations import ONES, Places, coded
from tallstore.archive.memory_guard import bytes_of, room_for
from tallstore.archive.read_plan import How, Segment, TensorPlan
from tallstore.archive.reader import Place, Reader
from tallstore.archive.resident import PackedTensor
from tallstore.archive.resident_conditional import CodedConditional
from tallstore.archive.resident_sampled import packed_apart
from tallstore.archive.slices import Pieces
from tallstore.checkpoints import Checkpoint
from tallstore.codecs.base import Bytes
from tallstore.concurrency import run_all
from tallstore.errors import NoSuchTensorError
from tallstore.format.part import CONDITIONAL_KINDS
from tallstore.kernels import reference
from tallstore.kernels.native import library
from tallstore.kernels.steps import Run, Steps
from tallstore.tensors import TORCH, empties, empty, shape_of

__all__ = ["Decoder", "Job"]

_KEPT = 1 << 27
"""Bytes of decoded codes that are kept between checking and writing them."""
_Array = npt.NDArray[Any]
_NOTHING: Mapping[tuple[str, int], Steps] = MappingProxyType({})


class Decoder:
    """Decodes tensors of one archive. Safe to use from several threads."""

    def __init__(self, reader: Reader, base: Checkpoint | None, threads: int | None) -> None:
        self._reader = reader
        self._manifest = reader.manifest
        self._threads = threads or os.cpu_count() or 1
        self._places = Places(reader)
        self._chunks = ChunkReader(reader)
        self._base = BaseElements(reader, self._places, self._chunks, base)
        self.task = self._places.task
        self.vectors = self._places.vectors
        self.pieces = Pieces(self._places, self._chunks, self._base, self._run)
        self._plan, self._writer = self.pieces.plan, self.pieces.writer

    def base_ties(self) -> dict[str, str]:
        """The base's tensors that share the memory of another one → that one."""
        return self._base.ties()

    @property
    def given_base(self) -> BaseElements | None:
        """The base that the caller gave; None where there is none, or the archive's own is used."""
        return self._base if self._base.given else None

    @property
    def places(self) -> Places:
        """Where every tensor lies."""
        return self._places

    @property
    def threads(self) -> int:
        """How many chunks are worked on at a time."""
        return self._threads

    # ------------------------------------------------------------------------------------------- weights of a task

    def tensors(self, task: str, names: Iterable[str], *, exact: bool = False) -> dict[str, Tensor]:
        """Decode tensors of a task: fresh CPU tensors, tied ones sharing memory.

        `exact`: bit for bit what was packed: what masks lost is put back from the task's exact part.
        """
        places = self.task(task)
        sources = {name: self._places.source(task, name) for name in names}
        own = dict.fromkeys(sources.values())
        for name in own:
            self._check(task, name)
        with room_for(bytes_of(places[name] for name in own), f"{self._reader.store.url}: task {task!r}"):
            out = empties({name: (str(places[name].entry.dtype), places[name].entry.numel) for name in own})
        plans = {name: self._plan.of(task, name, exact=exact) for name in own}
        self._run([job for name, flat in out.items() for job in self._writer.jobs(plans[name], flat)])
        shaped = {name: flat.reshape(_shape(places[name])) for name, flat in out.items()}
        return {name: shaped[source] for name, source in sources.items()}

    def base_cannot_fail(self, task: str) -> bool:
        """Whether what a task takes from the base cannot fail to decode once it was checked."""
        self._reader.verified.reset()
        if any(place.entry.start is not None for place in self.task(task).values()):
            return False
        used = {str(p.entry.base) for p in self.task(task).values() if p.entry.base is not None}
        return all(self._base.cannot_fail(name) for name in used)

    def prepare(self, task: str, names: Iterable[str]) -> dict[tuple[str, int], Steps]:
        """Check all that `write` will read of some tensors. Returns what it decoded, as far as that is not too much."""
        kept: dict[tuple[str, int], Steps] = {}
        jobs: list[Job] = []
        for name in dict.fromkeys(self._places.source(task, name) for name in names):
            self._check(task, name)
            jobs += self._checks(self._plan.of(task, name), kept)
        self._run(jobs)
        return kept

    def fill(self, task: str, out: Mapping[str, Tensor], threads: int | None = None) -> None:
        """Decode tensors of a task into flat, contiguous CPU tensors of their types, some perhaps before one fails.

        `threads`: how many, at most.
        """
        for name in out:
            self._check(task, self._places.source(task, name))
        self._write(task, out, _NOTHING, threads or self._threads)

    def write(self, task: str, out: Mapping[str, Tensor], prepared: Mapping[tuple[str, int], Steps] = _NOTHING) -> None:
        """Decode tensors of a task into flat, contiguous CPU tensors of their types."""
        self._write(task, out, prepared, self._threads)

    def _write(
        self, task: str, out: Mapping[str, Tensor], prepared: Mapping[tuple[str, int], Steps], threads: int
    ) -> None:
        jobs: list[Job] = []
        for name, flat in out.items():
            plan = self._plan.of(task, self._places.source(task, name))
            jobs += self._writer.jobs(plan, flat, partial(_prepared, prepared, plan.name))
        run_all(jobs, threads, "tallstore-decode", library.held)

    def check(self, task: str) -> None:
        """Raise for any entry of a task that does not fit the archive, without reading coded bytes.

        A base that the archive only references, and that was not given, is not missed.
        """
        self._places.check_task(task, embedded=self._base.embedded)

    def base_dtype(self, name: str) -> torch.dtype:
        """The element type of a base tensor."""
        return TORCH[self._base.facts(name).dtype]

    def check_base(self, name: str) -> None:
        """Raise for a base tensor that cannot be had, or is of another type or shape."""
        self._base.check(name)

    def _check(self, task: str, name: str) -> None:
        """Raise for an entry that does not fit the archive, before memory is taken for it."""
        self._places.check(task, name)
        for base in self._places.bases(task, name):
            self._base.check(base)

    def _checks(self, plan: TensorPlan, kept: dict[tuple[str, int], Steps]) -> list[Job]:
        """Jobs that read and check everything that a tensor needs, and keep what they decoded."""
        jobs: list[Job] = self._base.checks(str(plan.base)) if plan.on_base else []

        def steps(segment: Segment) -> None:
            decoded = self._writer.steps(plan, segment)
            if sum(each.nbytes for each in list(kept.values())) < _KEPT:
                kept[plan.name, segment.number] = decoded

        for segment in plan.segments():
            if segment.how in {How.WHOLE, How.START}:
                jobs.append(partial(self._writer.check, plan, segment))
            elif segment.how is not How.BASE and not self._writer.are_verified(plan, segment):
                jobs.append(partial(steps, segment))
        return jobs

    # ------------------------------------------------------------------------------------------------ whole tensors

    def base_tensor(self, name: str) -> Tensor:
        """A base tensor, whole."""
        return self.base_tensors([name])[name]

    def base_tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Base tensors, whole."""
        facts_by_name = {}
        for name in names:
            if name not in self._manifest.base.tensors:
                raise NoSuchTensorError(f"{self._reader.store.url}: the base has no tensor {name!r}")
            self._base.check(name)
            facts_by_name[name] = self._base.facts(name)
        out = empties({name: (facts.dtype, facts.numel) for name, facts in facts_by_name.items()})
        self._run(
            [job for name, flat in out.items() for job in self._writer.base_jobs(self._plan.of_base(name), name, flat)]
        )
        return {
            name: flat.reshape(shape_of(facts_by_name[name].dtype, facts_by_name[name].shape))
            for name, flat in out.items()
        }

    def vector_tensor(self, group: str, name: str) -> Tensor:
        """The multi-task vector for a base tensor: float32, zeros where no task moved."""
        shape = self._base.facts(name).shape
        out = torch.zeros(int(np.prod(shape, dtype=np.int64)), dtype=torch.float32)
        place = self.vectors(group).get(name)
        if place is not None:
            self._places.check_vector(place, name)
            self._each(place, name, out, self._chunks.values)
        return out.reshape(shape)

    def delta(self, task: str, name: str) -> Tensor:
        """A task's own quantized task vector: float32 in the tensor's shape; 0 where rows are its own."""
        place = self.task(task)[name]
        out = torch.zeros(place.entry.numel, dtype=torch.float32)
        self._each(place, name, out[: place.entry.covered], self._chunks.values)
        return out.reshape(place.entry.shape or ())

    def symbols(self, task: str, name: str) -> Tensor:
        """A task's mask for a tensor: uint8 symbols in the tensor's shape; 0 where rows are its own."""
        place = self.task(task)[name]
        out = torch.zeros(place.entry.numel, dtype=torch.uint8)
        if place.entry.kind in reference.SYMBOL_BITS:
            self._each(place, name, out[: place.entry.covered], self._chunks.symbols)
        return out.reshape(place.entry.shape or ())

    def _each(self, place: Place, name: str, out: Tensor, read: Callable[[Place, int, int, str], _Array]) -> None:
        """Every chunk into its slice of `out`, side by side."""
        size = coded(place).chunk

        def job(index: int) -> None:
            part = out[index * size : (index + 1) * size]
            part.copy_(torch.from_numpy(np.asarray(read(place, index, len(part), name))))

        self._run([partial(job, index) for index in range(len(coded(place).chunks))])

    def packed(self, task: str, name: str) -> PackedTensor | CodedConditional | None:
        """What a task adds to the base in one of its tensors, still packed; None where it adds nothing."""
        place = self.task(task)[name]
        entry = place.entry
        if entry.coded is None or not entry.covered:
            return None
        size = entry.coded.chunk
        runs = [(i, min(size, entry.covered - i * size)) for i in range(len(entry.coded.chunks))]
        if entry.kind in CONDITIONAL_KINDS:
            elements = self.pieces.elements(task, name, 0, entry.covered)  # checked before it is believed
            plain = elements.dtype == torch.float32 and not bool(elements.isnan().any())  # decoding fixes a NaN's bits
            return (self._sampled(place, name) if plain else None) or self._chunks.coded_conditional(place, name)
        if entry.kind in reference.SYMBOL_BITS:
            symbols = np.concatenate([self._chunks.packed(place, i, n, name) for i, n in runs])
            scales = torch.tensor(entry.scales if entry.scales is not None else [1.0] * len(runs), dtype=torch.float32)
            return PackedTensor(
                entry.kind, torch.from_numpy(symbols), reference.SYMBOL_BITS[entry.kind], size, scales=scales
            )
        return self._indexed(place, name)

    def _sampled(self, place: Place, name: str) -> PackedTensor | None:
        """A tensor of which some is kept, as a product and levels; None where what is kept depends on the base."""
        apart = self._chunks.chunks_apart(place, name)
        return None if apart is None else packed_apart(apart, coded(place).chunk)

    def packed_vector(self, group: str, name: str) -> PackedTensor:
        """The multi-task vector for a base tensor, still packed: levels or values."""
        place = self.vectors(group)[name]
        self._places.check_vector(place, name)
        return self._indexed(place, name)

    def _indexed(self, place: Place, name: str) -> PackedTensor:
        """A vector or a delta as indices of levels; as values where its codec has no indices."""
        size, total = coded(place).chunk, place.entry.covered
        runs = [(i, min(size, total - i * size)) for i in range(len(coded(place).chunks))]
        chunks = [self._chunks.levels(place, i, n, name) for i, n in runs]
        levels = [each for each in chunks if each is not None]
        if len(levels) < len(chunks):
            values = np.concatenate([self._chunks.values(place, i, n, name) for i, n in runs])
            return PackedTensor("values", torch.from_numpy(values), 32, size)
        return PackedTensor.of_levels(levels, [n for _, n in runs], size)

    def vector_of(self, task: str, name: str) -> tuple[str, str] | None:
        """Group and base tensor of the vector that a tensor's mask is over; None where it has none, or v is 1."""
        vector = self._places.vector_of(task, name)
        if vector is None or coded(vector).codec == ONES:
            return None
        return self._manifest.tasks[task].group, str(self.task(task)[name].entry.base)

    # ------------------------------------------------------------------------------------------------------- ranges

    def vector_range(self, group: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a group's vector for a base tensor, which it has; `start` begins a chunk."""
        place = self.vectors(group)[name]
        self._places.check_vector(place, name)
        return torch.from_numpy(self._range(place, name, start, stop, self._chunks.values))

    def symbol_range(self, task: str, name: str, start: int, stop: int) -> Bytes:
        """Elements [start, stop) of a task's mask, which it has for this tensor; `start` begins a chunk."""
        return self._range(self.task(task)[name], name, start, stop, self._chunks.symbols)

    def packed_chunk(self, task: str, name: str, index: int) -> Bytes:
        """One chunk of a task's mask, which it has for this tensor, as `reference.pack` packs it."""
        place = self.task(task)[name]
        size = coded(place).chunk
        return self._chunks.packed(place, index, min(size, place.entry.covered - index * size), name)

    def delta_range(self, task: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor's own delta, which it has; `start` begins a chunk."""
        return torch.from_numpy(self._range(self.task(task)[name], name, start, stop, self._chunks.values))

    def steps(self, task: str, name: str, index: int) -> Steps | None:
        """What a task adds to the base in one chunk of a tensor that is masked or has a delta.

        None where a vector that tasks share is needed for it.
        """
        place = self.task(task)[name]
        vector = self._places.vector_of(task, name)
        return None if vector is not None and coded(vector).size else self._chunks.steps(place, vector, index, name)

    def rows(self, task: str, name: str, start: int, stop: int) -> Run | None:
        """What writes base + τ̂ of elements [start, stop) run by run, each within a chunk; `start` begins one.

        None where a vector that tasks share is needed for it.
        """
        place = self.task(task)[name]
        vector = self._places.vector_of(task, name)
        if vector is not None and coded(vector).size:
            return None
        size = coded(place).chunk
        chunks = iter(range(start // size, -(-min(stop, place.entry.covered) // size)))
        left = 0
        inner: Run | None = None

        def run(out: Tensor, base: Tensor) -> None:
            nonlocal left, inner
            if inner is None or not left:
                index = next(chunks)
                left = min(size, place.entry.covered - index * size)
                inner = self._chunks.steps(place, vector, index, name).begin()
            inner(out, base)
            left -= len(out)

        return run

    def own_range(self, task: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor of a task."""
        return self.pieces.elements(task, name, start, stop)

    def base_range(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a base tensor."""
        out = empty(self._base.facts(name).dtype, stop - start)
        self._base.fill(name, start, stop, out)
        return out

    def _range(
        self, place: Place, name: str, start: int, stop: int, read: Callable[[Place, int, int, str], _Array]
    ) -> _Array:
        """Whole chunks, decoded one after the other, in fresh memory; `stop` may cut the last one short."""
        size, total = coded(place).chunk, place.entry.covered
        pieces = [read(place, at // size, min(size, total - at), name) for at in range(start, stop, size)]
        return np.concatenate(pieces)[: stop - start]

    def _run(self, jobs: list[Job]) -> None:
        run_all(jobs, self._threads, "tallstore-decode", library.held)


def _prepared(prepared: Mapping[tuple[str, int], Steps], name: str, segment: Segment) -> Steps | None:
    return prepared.get((name, segment.number)) if segment.how in {How.STEPS, How.CONDITIONAL} else None


def _shape(place: Place) -> tuple[int, ...]:
    """The shape of a decoded tensor."""
    return shape_of(str(place.entry.dtype), place.entry.shape or ())
