"""A task packed as what it is: a combination of tasks of an archive, and what that leaves.

The encoder codes it against what the tasks merge to in the base's place; its part is then written anew as one of kind
`relative`, in which entries say so. Where the archive keeps tasks with some loss, what is left of a combination is left
out, if the task comes back as well as those that it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tallstore.archive.checkpoint import ArchiveStart, ArchiveTask, StartPlan
from tallstore.archive.piece_cache import PieceCache
from tallstore.archive.reader import Reader
from tallstore.archive.shared_tensors import record_of
from tallstore.archive.sharing import Home, find_home, joined, ones_part
from tallstore.archive.splice import SplicedArchive, joined_archive
from tallstore.checkpoints import Checkpoint
from tallstore.encoder import GroupSlot, Options, Progress, TaskReport
from tallstore.encoder.components import matched
from tallstore.encoder.options import LOSSLESS
from tallstore.encoder.row_bits import same_bits
from tallstore.encoder.tied_weights import tied_names
from tallstore.format import limits
from tallstore.format.dtypes import ITEM_BYTES, MASKABLE
from tallstore.format.manifest import PartRecord, Task, depth_of
from tallstore.format.part import Entry, PartHeader
from tallstore.format.relatives import MergeRecipe, Relatives
from tallstore.packing.choose_parents import OCTAVES, cost_of, step_cost
from tallstore.packing.find_combinations import LinearFit
from tallstore.packing.groups import packed_beside
from tallstore.packing.score_combinations import Combination, Kept, kept_of
from tallstore.recipes.histogram import NARROW_BYTES
from tallstore.stores import Sink, open_store
from tallstore.tensors import TORCH

__all__ = ["RelativePacker", "relatives_of"]

_SAMPLE, _LONG_SAMPLE, _RUNS = 1 << 10, 1 << 12, 4
_CHEAPER = 0.9
"""A start must leave less than this share of what the base leaves."""
_AS_WELL, _ROUNDED_AS_WELL = 1.25, 1.5
"""How many times the error of the tasks that it is made of a combination may have: both sides are rounded once more,
which in types of few bits is no small part of what is lost."""
_LEAST_ERROR = 0.02
"""An error that a lossy archive may always have: tasks that happen to lose nothing do not forbid it."""
_RUN = 1 << 20
_FEW = 1 << 12
"""Elements that mostly tell whether two tensors are the same."""


def relatives_of(fit: LinearFit) -> Relatives:
    """A combination as a recipe."""
    linear = abs(math.fsum(fit.weights.values()) - 1) < 1e-9
    weights = tuple(fit.weights.values())
    merge = MergeRecipe(method="linear" if linear else "arithmetic", weights=weights)
    return Relatives(tasks=tuple(fit.weights), merge=merge)


@dataclass
class RelativePacker:
    """Packs tasks beside an archive that holds what they are made of."""

    stack: ExitStack
    sink: Sink
    base: Checkpoint
    archive: SplicedArchive
    options: Options
    progress: Progress | None = None
    home: Home | None = None
    """The group that tasks join, where the archive does not tell by itself."""

    def __post_init__(self) -> None:
        self._reader = Reader(self.archive.store, self.archive.manifest)
        self._lossless = self.options.quality == LOSSLESS
        self._home = self.home or find_home(self._reader, LOSSLESS if self._lossless else self.options.recipe)
        self._seen = self._reader.manifest
        self._pieces = PieceCache()
        self._drawn = 0

    def pack(
        self, tasks: Mapping[str, Checkpoint], relatives: Mapping[str, Relatives], *, said: Collection[str] = ()
    ) -> dict[str, tuple[TaskReport, SplicedArchive]]:
        """An archive of each task alone, to be spliced in. Those that are no such combinations after all are left out.

        Tasks may be made of each other: what others are made of is packed first.

        `said`: tasks that somebody said are: whatever is left of them is coded. All others were found to be.
        """
        made: dict[str, tuple[TaskReport, SplicedArchive]] = {}
        left = dict(relatives) if self._home is not None else {}
        while ready := {n: each for n, each in left.items() if set(each.tasks) <= self._reader.manifest.tasks.keys()}:
            left = {name: each for name, each in left.items() if name not in ready}
            new = self._ready(tasks, ready, said)
            made |= new
            if left and new:
                self._build_on([archive for _, archive in new.values()])
        return made

    def _build_on(self, made: Sequence[SplicedArchive]) -> None:
        """Let tasks be made of these too."""
        self._reader = Reader(*joined_archive(SplicedArchive(self._reader.store, self._reader.manifest), made))

    def _ready(
        self, tasks: Mapping[str, Checkpoint], relatives: Mapping[str, Relatives], said: Collection[str]
    ) -> dict[str, tuple[TaskReport, SplicedArchive]]:
        """Of tasks that are made of what is there."""
        combined = [
            self._combined(name, tasks[name], each, searched=name not in said) for name, each in relatives.items()
        ]
        kept = {} if self._lossless else kept_of(self.base, combined)
        made = {}
        for each in combined:
            if all(plan.start is None for plan in each.plans.values()):
                continue
            if not each.searched or self._lossless:
                made[each.name] = self._packed(each, kept.get(each.name))
            elif self._comes_back(kept[each.name], each):
                made[each.name] = self._packed(each, kept[each.name])
            elif all(self._reader.manifest.tasks[parent].bit_for_bit for parent in each.relatives.tasks):
                # Nothing is lost of what it is made of: what is left of it is coded, as of one that somebody said is.
                said_to_be = self._combined(each.name, each.task, each.relatives, searched=False)
                made[each.name] = self._packed(said_to_be, kept[each.name])
        return made

    def _combined(self, name: str, task: Checkpoint, relatives: Relatives, *, searched: bool) -> Combination:
        start = ArchiveStart(self._reader, self.base, task, relatives, self._pieces)
        plans = self._plans(start, task, relatives, searched=searched)
        start.plan(plans)
        return Combination(name=name, task=task, relatives=relatives, start=start, plans=plans, searched=searched)

    def _comes_back(self, kept: Kept | None, combined: Combination) -> bool:
        """Whether a combination of which nothing is coded keeps as much as what it is made of."""
        told = [self._reader.manifest.tasks[each].number("relative_error") or 0.0 for each in combined.relatives.tasks]
        rounded = any(ITEM_BYTES[info.dtype] <= NARROW_BYTES for info in combined.task.tensors.values())
        most = max((_ROUNDED_AS_WELL if rounded else _AS_WELL) * max(told), _LEAST_ERROR)
        return kept is not None and kept.relative_error <= most

    def _packed(self, each: Combination, kept: Kept | None) -> tuple[TaskReport, SplicedArchive]:
        """Coded by the encoder, but for tensors that stay as they start; `kept`: what was measured of those."""
        options = replace(
            self.options, base_storage="reference", overwrite=False, resume=False, allow_distant=True, exact=()
        )
        # What draws for a task must not have drawn for one that it is made of: the same changes would be dropped again.
        depth = max(depth_of(self._reader.manifest, task) for task in each.relatives.tasks)
        slot, self._drawn = self.slot(), self._drawn + 1
        first = limits.TASKS * (1 + depth) + slot.first + self._drawn
        slot = replace(slot, first=first, settled=frozenset(n for n, plan in each.plans.items() if plan.kept))
        scratch = f"relative-{each.name}"
        report, made = packed_beside(
            self.stack, self.sink, each.start, {each.name: each.task}, options, self.progress, slot, scratch
        )
        made = self._rewritten(each, made, _measured(each, kept, made.manifest.tasks[each.name]))
        told = made.manifest.tasks[each.name].measured
        told_of = replace(
            report.tasks[each.name],
            relative_error=told.get("relative_error"),
            cosine=told.get("cosine"),
            divergence=None,
        )
        return told_of, self.joined(made)

    def slot(self) -> GroupSlot:
        """Where tasks of the archive's own group stand."""
        if self._home is None:
            return GroupSlot(group=str(len(self._reader.manifest.groups)))
        return GroupSlot(group=self._home.group, chunk=self._home.chunk, first=len(self._reader.manifest.tasks))

    def joined(self, made: SplicedArchive) -> SplicedArchive:
        """An archive of tasks in that group, of whose vector it brings only what is not there."""
        if self._home is None:
            return made
        brought = joined(made, self._home, self._seen)
        (group,) = brought.manifest.groups
        new = Reader(brought.store, brought.manifest).places(group.parts, "vector", group.id)
        self._home = replace(self._home, tensors=self._home.tensors | new.keys())
        self._seen = replace(self._seen, parts={**self._seen.parts, **brought.manifest.parts})
        return brought

    # ------------------------------------------------------------------------------------------------------- planning

    def _plans(
        self, start: ArchiveStart, task: Checkpoint, relatives: Relatives, *, searched: bool
    ) -> dict[str, StartPlan]:
        """What each tensor builds on."""
        kept = searched and not self._lossless
        ties = tied_names(task, self.base)
        matches = matched(self.base, task, ties, allow_distant=True)
        sources = {name: ArchiveTask(start.decoder, name, name) for name in relatives.tasks}
        plans: dict[str, StartPlan] = {}
        tried: dict[str, StartPlan] = {}
        for name, info in task.tensors.items():
            if name in ties:
                continue
            match = matches.get(name)
            base = match.base if match is not None and match.rows is None else None
            plain = base is not None and {info.dtype, self.base.tensors[base].dtype} <= set(MASKABLE)
            alike = info.dtype in MASKABLE and all(
                name in each.tensors and each.tensors[name].shape == info.shape and each.tensors[name].dtype in MASKABLE
                for each in sources.values()
            )
            if match is not None:
                plans[name] = StartPlan(base=match.base)
            if alike and info.numel and (plain or not relatives.merge.needs_base):
                tried[name] = StartPlan(base=base if plain else None, start=(), kept=plain and kept)
        start.plan(tried)
        by_cost = searched and relatives.parent is not None
        chosen = {name: self._chosen(start, task, name, each, by_cost=by_cost) for name, each in tried.items()}
        plans |= {name: each for name, each in chosen.items() if each is not None}
        for name, info in task.tensors.items():
            if name in ties or name in plans:
                continue
            at = next((at for at, each in enumerate(sources.values()) if _same(each, task, name)), None)
            if at is not None and info.numel:
                weights = tuple(float(at == other) for other in range(len(sources)))
                plans[name] = StartPlan(base=None, start=weights)
        return {name: plans[name] for name in task.tensors if name in plans}

    def _chosen(
        self, start: ArchiveStart, task: Checkpoint, name: str, plan: StartPlan, *, by_cost: bool
    ) -> StartPlan | None:
        """How a tensor builds on its start; None where it should not.

        `by_cost`: the start is a parent that was chosen by what the task takes: nearly all tensors gain.
        """
        before = None if plan.base is None else plan.base
        dtype = TORCH[task.tensors[name].dtype]
        if before is not None and _alike(task, name, lambda a, b: self.base.read(before, a, b).to(dtype)):
            return None
        if by_cost and self._lossless and start.goes_on(name):
            return replace(plan, kept=_alike(task, name, lambda a, b: start.started(name, a, b)))
        if plan.kept:  # with some loss, all tensors together are held to what the tasks that they are made of lose
            return plan
        if _alike(task, name, lambda a, b: start.started(name, a, b)):
            return replace(plan, kept=True)
        if not self._lossless and before is None:  # nothing is lost of what the base does not have
            return None
        numel = task.tensors[name].numel
        goes_on = self._lossless and start.goes_on(name)
        length = _LONG_SAMPLE if goes_on else _SAMPLE
        runs = [(at, min(at + length, numel)) for at in range(0, numel, max(length, numel // _RUNS))]
        own = torch.cat([task.read(name, a, b) for a, b in runs])
        merged = torch.cat([start.started(name, a, b) for a, b in runs])
        other = torch.zeros_like(own)
        if before is not None:
            other = torch.cat([self.base.read(before, a, b) for a, b in runs]).to(own.dtype)
        if goes_on:
            return plan if _gains(own, merged, other) else None
        return plan if _apart(own, merged) < _CHEAPER * _apart(own, other) else None

    # -------------------------------------------------------------------------------------------------------- writing

    def _rewritten(self, each: Combination, made: SplicedArchive, told: Mapping[str, float | None]) -> SplicedArchive:
        """What the encoder wrote, with every entry on what it really builds on."""
        name, plans, relatives = each.name, each.plans, each.relatives
        manifest, reader = made.manifest, Reader(made.store, made.manifest)
        task = manifest.tasks[name]
        entries = {
            n: _placed(p.entry, plans.get(n)) for n, p in reader.places(task.parts["mask"], "mask", name).items()
        }
        head, exceptions = _headed(each.start, relatives, entries)
        parts = dict(manifest.parts)
        for path in task.parts["mask"]:
            held = reader.header(path).entries
            own = {n: entries[n] for n in held if n in exceptions}
            parts[path] = _replaced(made, path, PartHeader(part="relative", owner=name, entries=own), held)
        (group,) = manifest.groups
        kept = {str(e.base) for e in entries.values() if e.kind in {"binary", "signed"}}
        vectors = {
            str(plans[n].base): p.entry
            for n, p in reader.places(group.parts, "vector", group.id).items()
            if n in plans and plans[n].base in kept
        }
        for path in group.parts:
            del parts[path]
        held_by: tuple[str, ...] = ()
        if vectors:
            data, record = ones_part(group.id, vectors)
            place = made.store.local(group.parts[0])
            assert place is not None
            place.unlink()
            place.write_bytes(data)
            held_by, parts[group.parts[0]] = (group.parts[0],), record
        measured = dict(task.measured)
        if told:
            measured = {
                k: v for k, v in measured.items() if k not in {"bit_for_bit", "divergence", "cheaper_without_loss"}
            }
            measured |= told
        new = Task(
            group=task.group,
            parts=task.parts,
            files=task.files,
            measured=measured,
            source=task.source,
            weights=task.weights,
            relatives=replace(relatives, head=head),
        )
        # Opened anew: a store may know its files as they were. Closed: who holds a folder keeps it from being removed.
        made.store.close()
        return SplicedArchive(
            self.stack.enter_context(open_store(made.store.url)),
            replace(
                manifest,
                base=self._reader.manifest.base,
                tasks={name: new},
                groups=(replace(group, parts=held_by),),
                parts=parts,
            ),
        )


def _measured(each: Combination, kept: Kept | None, task: Task) -> dict[str, float | None]:
    """What is said of a task in place of what the encoder measured, which took what it starts from for the base."""
    if kept is None or (task.bit_for_bit and not each.searched):  # nothing is lost, whatever it starts from
        return {}
    if each.searched:
        return {"relative_error": kept.relative_error, "cosine": kept.cosine}
    error = task.number("relative_error")  # of what the start misses
    return {"relative_error": None if error is None else error * kept.relative_error, "cosine": None}


def _placed(entry: Entry, plan: StartPlan | None) -> Entry:
    """An entry on what it really builds on: the encoder took the start for a base of the task's own names."""
    if entry.kind in {"private", "tied"} or plan is None:
        return entry
    return replace(entry, base=plan.base, start=plan.start)


def _headed(start: ArchiveStart, relatives: Relatives, entries: Mapping[str, Entry]) -> tuple[str | None, set[str]]:
    """The relative whose tensors need fewest words, and those that need some; none where names or order differ."""
    best: tuple[str | None, set[str]] = (None, set(entries))
    for head in relatives.tasks:
        derived = start.decoder.places.headed(replace(relatives, head=head), {}, "-")
        if list(derived) != list(entries):
            continue
        odd = {name for name, entry in entries.items() if not _as_derived(entry, derived[name].entry, relatives)}
        if best[0] is None or len(odd) < len(best[1]):
            best = head, odd
    return best


def _as_derived(entry: Entry, derived: Entry, relatives: Relatives) -> bool:
    """Whether a reader finds an entry out by itself, or one that is the same but for a base that nothing asks for."""
    if entry.start == () == derived.start and not relatives.merge.needs_base:
        entry = replace(entry, base=derived.base)
    if entry.start and entry.start == derived.start:  # another task's as it is
        entry = replace(entry, base=derived.base)
    return entry == derived


def _replaced(made: SplicedArchive, path: str, header: PartHeader, held: Mapping[str, Entry]) -> PartRecord:
    """A part's file with another header before the same coded bytes; its record."""
    place = made.store.local(path)
    assert place is not None
    record = made.manifest.parts[path]
    stored = [name for name, entry in held.items() if entry.coded is not None]
    old = PartHeader.from_bytes(place.read_bytes()[: record.header_size], record.size, path)
    stored.sort(key=lambda name: old.offsets[name])
    first = header.to_bytes(stored)
    data = first + place.read_bytes()[record.header_size :]
    place.unlink()  # what others may hold open, or mapped, stays as it is
    place.write_bytes(data)
    return record_of(header, first, data)


def _same(source: Checkpoint, task: Checkpoint, name: str) -> bool:
    """Whether a task's tensor is another's to the last bit."""
    if source.tensors.get(name) != task.tensors[name]:
        return False
    return _alike(task, name, lambda a, b: source.read(name, a, b))


def _alike(task: Checkpoint, name: str, other: Callable[[int, int], Tensor]) -> bool:
    """Whether a tensor is, to the last bit, what `other` gives of its elements [a, b), up to the first that is not."""
    numel, begin = task.tensors[name].numel, task.read(name, 0, min(_FEW, task.tensors[name].numel))
    if not same_bits(begin, other(0, len(begin))):
        return False
    for at in range(0, numel, _RUN):
        own = task.read(name, at, min(at + _RUN, numel))
        there = other(at, min(at + _RUN, numel))
        if not same_bits(own, there):
            return False
    return True


def _gains(own: Tensor, start: Tensor, base: Tensor) -> bool:
    """Whether a tensor takes fewer bits given a start that has drifted from the base than given the base."""
    row, drift = ((_ordered(each) - _ordered(base)).numpy() for each in (own, start))
    exponents = np.frexp(start.double().abs().nan_to_num(0.0, 0.0, 0.0).numpy())[1].astype(np.int64)
    octaves = np.maximum(exponents - exponents.max() + OCTAVES - 1, 0)
    return step_cost(row, drift, octaves) < _CHEAPER * cost_of(row, octaves)


def _apart(left: Tensor, right: Tensor) -> float:
    """About how many bits a number differs by: the length of the difference of bit patterns that are in order."""
    return float(torch.log2(1 + (_ordered(left) - _ordered(right)).abs()).mean())


def _ordered(values: Tensor) -> Tensor:
    """Bit patterns as numbers that ascend with the value: float64."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    own = values.view(words)
    return torch.where(own < 0, torch.iinfo(words).min - own, own).double()
