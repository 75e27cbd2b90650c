"""Segments of tensors, written: the one place where a task's elements are put together from what `read_plan` lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from tallstore.archive.base_tensors import BaseElements, Filler, Job
from tallstore.archive.chunk_reader import ChunkReader
from tallstore.archive.locations import needs_origin
from tallstore.archive.piece_cache import Into, Read
from tallstore.archive.read_plan import How, Origin, Segment, TensorPlan, chunks_of
from tallstore.format.part import CONDITIONAL_KINDS
from tallstore.kernels.reference import wide
from tallstore.kernels.steps import Steps
from tallstore.kernels.tiled import DecodedSteps
from tallstore.merging.stored_merge import merged
from tallstore.tensors import as_bytes, empty

__all__ = ["SegmentWriter"]


class SegmentWriter:
    """Of one archive. Safe to use from several threads."""

    def __init__(self, chunks: ChunkReader, base: BaseElements, read: Read, into: Into) -> None:
        self._chunks, self._base = chunks, base
        self.read = read
        """Decodes what tensors of other tasks are built on."""
        self.into: Into | None = into
        """The same of one task, in place; None where `read` has it at hand."""

    def write(
        self,
        plan: TensorPlan,
        segment: Segment,
        out: Tensor,
        *,
        given: Tensor | None = None,
        fill: Filler | None = None,
        steps: Steps | None = None,
        origin: Origin | None = None,
    ) -> bool:
        """Decode a segment.

        Args:
            plan: the tensor's.
            segment: one of it.
            out: flat, of the segment's elements, in the tensor's type.
            given: the base's whole tensor, where it was read already.
            fill: what writes the base's elements, with steps on them, in one call, if there is such a way.
            steps: what is added to the base's elements, where that was decoded already.
            origin: where to put elements of the base that are met.

        Returns:
            whether they were met, all of them.
        """
        met = False
        if segment.how is How.WHOLE:
            assert plan.private is not None
            self._chunks.whole(plan.private, segment.number, plan.name, out)
            return False
        if segment.how is How.START:
            met = self._start(plan, segment, out, origin)
        elif segment.how is How.STEPS:
            steps = steps or self.steps(plan, segment)
            if fill is None or not fill(segment.number, steps):
                self._base.apply(str(plan.base), segment.start, out, steps, given)
        elif segment.how is How.CONDITIONAL and steps is not None:
            steps.begin()(out, out)
        else:
            if given is not None or fill is None or not fill(segment.number):
                self._base.converted(str(plan.base), segment.start, out, given)
            if origin is not None and origin.base == plan.base and origin.out.dtype == out.dtype:
                as_bytes(origin.out)[...] = as_bytes(out)
                met = True
            if segment.how is How.CONDITIONAL:
                self._chunks.conditional(plan.own, segment.number, plan.name, out)
        if plan.lost is not None:
            for chunk in chunks_of(plan.lost, plan.name, segment.start, segment.stop):
                begin, end = max(chunk.start, segment.start), min(chunk.stop, segment.stop)
                part = out[begin - segment.start : end - segment.start]
                self._chunks.restore(*chunk, part, begin - chunk.start)
        return met

    def _start(self, plan: TensorPlan, segment: Segment, out: Tensor, origin: Origin | None) -> bool:
        """A segment of what other tasks merge to, and what is coded of the difference; see `write`."""
        if not needs_origin(plan.entry):
            met = self._merge(plan, segment.start, out, origin)
            self._add(plan, segment, out, None)
            return met
        wanted = origin is not None and origin.base == plan.base
        held = origin if origin is not None and wanted else Origin(str(plan.base), torch.empty_like(out))
        if not self._merge(plan, segment.start, out, held):
            self._base.converted(held.base, segment.start, held.out)
        self._add(plan, segment, out, held.out)
        return wanted

    def steps(self, plan: TensorPlan, segment: Segment) -> Steps:
        """What a segment adds to the base's elements, or, coded given these, has in their place; decoded here."""
        if segment.how is How.CONDITIONAL:
            out = empty(str(plan.entry.dtype), segment.stop - segment.start)
            self.write(plan, segment, out)
            return DecodedSteps(out)
        return self._chunks.steps(plan.own, plan.vector, segment.number, plan.name)

    def are_verified(self, plan: TensorPlan, segment: Segment) -> bool:
        """Whether a segment's chunks, but for the base's, were decoded once, of files that have not changed since."""
        return self._chunks.steps_are_verified(plan.own, plan.vector, segment.number)

    def check(self, plan: TensorPlan, segment: Segment) -> None:
        """Decode a segment, and keep nothing of it."""
        self.write(plan, segment, empty(str(plan.entry.dtype), segment.stop - segment.start))

    def jobs(
        self, plan: TensorPlan, out: Tensor, steps: Callable[[Segment], Steps | None] = lambda _: None
    ) -> list[Job]:
        """Jobs that write a whole tensor; `out` is flat, `steps`: what is decoded already of a segment."""
        embedded = self._base.embedded
        head = out[: plan.covered]
        fill = self._base.filler(str(plan.base), plan.size, head) if plan.on_base else None
        jobs: list[Job] = []
        over_base: list[Callable[..., object]] = []
        for segment in plan.segments():
            part = out[segment.start : segment.stop]
            write = partial(self.write, plan, segment, part, fill=fill, steps=steps(segment))
            late = plan.on_base and not embedded and segment.how is not How.WHOLE
            (over_base if late else jobs).append(write)
        if over_base and self._base.resident:
            given = self._base.tensor(str(plan.base))
            return [*jobs, *(partial(write, given=given) for write in over_base)]
        return [*jobs, partial(self._over_base, str(plan.base), over_base)] if over_base else jobs

    def base_jobs(self, segments: Iterable[Segment], name: str, out: Tensor) -> list[Job]:
        """Jobs that write a base tensor, in its own type or another."""
        fill = self._base.filler(name, self._base.span(name), out)

        def job(segment: Segment) -> None:
            if fill is None or not fill(segment.number):
                self._base.converted(name, segment.start, out[segment.start : segment.stop])

        return [partial(job, segment) for segment in segments]

    def _over_base(self, base: str, writes: list[Callable[..., object]]) -> None:
        """Segments of one tensor over a base that is read a tensor at a time."""
        given = self._base.tensor(base)
        for write in writes:
            write(given=given)

    def _merge(self, plan: TensorPlan, start: int, out: Tensor, origin: Origin | None) -> bool:
        """What other tasks' elements merge to; whether the origin was met."""
        assert plan.start is not None
        stop = start + len(out)
        if plan.start.copied:
            _, task, source = plan.start.members[0]
            if self.into is not None:
                return self.into(task, source, start, out, origin)
            out.copy_(self.read(task, source, start, stop))
            return False
        kind = wide(out.dtype)
        rows = [self.read(task, source, start, stop).to(kind) for _, task, source in plan.start.members]
        before = None
        if plan.start.merge.needs_base:
            elements = empty(self._base.facts(str(plan.base)).dtype, len(out))
            self._base.fill(str(plan.base), start, stop, elements)
            before = elements.to(kind)
        out.copy_(merged(plan.start.merge, [place for place, _, _ in plan.start.members], rows, before))
        return False

    def _add(self, plan: TensorPlan, segment: Segment, out: Tensor, origin: Tensor | None) -> None:
        """What is coded of a merge: differences from it; `origin`: what the base has, where that is asked for."""
        if plan.own.entry.coded is None:
            return
        for chunk in chunks_of(plan.own, plan.name, segment.start, segment.stop):
            begin, end = chunk.start - segment.start, chunk.stop - segment.start
            part = out[begin:end]
            if plan.entry.kind in CONDITIONAL_KINDS:
                self._chunks.conditional(*chunk, part, None if origin is None else origin[begin:end])
            else:
                self._chunks.steps(chunk.place, plan.vector, chunk.number, chunk.name).begin()(part, part)
