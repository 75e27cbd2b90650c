"""Which tensors a merged model has, under which names, and what is kept out of it.

Tensors that come from the base are merged. What a task has of its own (its head, rows beyond the base's) belongs to no
other task: it is in the model with that task's head (`dressed`), and not in the plain one (`bare`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tallstore.archive.decode import Decoder
from tallstore.archive.merging.alignment import Lineup
from tallstore.checkpoints import TensorInfo
from tallstore.format.manifest import Manifest, names_of

__all__ = ["MergedTensor", "Outline", "Outlines"]


@dataclass(frozen=True, kw_only=True)
class MergedTensor:
    """One tensor of a merged model, and where its elements come from."""

    info: TensorInfo
    base: str | None = None
    """Merged: the base's tensor."""
    task: str | None = None
    """Taken from this task: the whole tensor; its rows beyond the base's where it is merged too."""
    tied: str | None = None
    """The tensor of the model that this one shares its memory with."""


@dataclass
class Outline:
    """The tensors of a merged model, in order."""

    names: str
    """Whose names they have: `tasks` (all agree), `base`, or one task's."""
    slots: dict[str, MergedTensor] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """What is not in it: name → why."""


class Outlines:
    """Those of one choice of tasks."""

    def __init__(
        self, decoder: Decoder, manifest: Manifest, lineups: Mapping[str, Lineup], tasks: Sequence[str]
    ) -> None:
        self._base = manifest.base.tensors
        self._tasks = tasks
        self._entries = {t: {n: place.entry for n, place in decoder.task(t).items()} for t in tasks}
        self._private = {t: {n: p.entry.coded for n, p in decoder.task(t, "private").items()} for t in tasks}
        self._unused = [name for name in self._base if name not in lineups]
        self._merged = {(m.task, m.name): base for base, each in lineups.items() for m in each.members}
        names = {m.name: base for base, each in lineups.items() for m in each.members}
        one_each = all(len({m.name for m in each.members}) == 1 for each in lineups.values())
        self._agreed = names if one_each and len(names) == len(lineups) else None

    def bare(self) -> Outline:
        """Without a head: under the names of the tasks' checkpoints if all agree, else under the base's."""
        outline = Outline("base" if self._agreed is None else "tasks")
        if self._agreed is None:
            tied = self._tied_in_base()
            outline.slots = {name: self._of_base(name) for name in self._base if name not in tied} | tied
        else:
            outline.left_out = dict.fromkeys(self._unused, "no task has this tensor of the base")
        for name in self._all_names():
            slot = self._common(name, outline) if self._agreed is not None else None
            if slot is not None:
                outline.slots[name] = slot
            if (slot is None or slot.base is not None) and (why := self._why_own(name)):
                outline.left_out[name] = why
        return outline

    def dressed(self, head: str) -> Outline:
        """Everything that one task's checkpoint has, so that its model takes it."""
        outline = Outline(head)
        for name, entry in self._entries[head].items():
            base = self._merged.get((head, name))
            info = TensorInfo(str(entry.dtype), entry.shape or ())
            if entry.kind == "tied":
                target = str(entry.to)
                outline.slots[name] = MergedTensor(info=outline.slots[target].info, tied=target)
            elif base is None:
                outline.slots[name] = MergedTensor(info=info, task=head)
            else:
                rest = head if entry.covered < entry.numel else None
                outline.slots[name] = MergedTensor(
                    info=TensorInfo(self._base[base].dtype, info.shape), base=base, task=rest
                )
        used = {slot.base for slot in outline.slots.values()}
        lost = {base: task for (task, _), base in self._merged.items() if base not in used and task != head}
        tied = {base for (task, _), base in self._merged.items() if task == head}
        outline.left_out = {
            base: f"{head} has it tied to another, {task} apart"
            if base in tied
            else f"{head} has no such tensor, {task} has"
            for base, task in lost.items()
        }
        for name in self._all_names():
            if why := self._why_own(name, but=head):
                outline.left_out[name] = why
        return outline

    def _all_names(self) -> list[str]:
        return list(dict.fromkeys(name for task in self._tasks for name in self._entries[task]))

    def _of_base(self, name: str) -> MergedTensor:
        facts = self._base[name]
        return MergedTensor(info=TensorInfo(facts.dtype, facts.shape), base=name)

    def _tied_in_base(self) -> dict[str, MergedTensor]:
        """Tensors of the base that no task has by themselves, and that are the same as a merged one."""
        firsts: dict[tuple[str, tuple[int, ...], str], str] = {}
        merged = set(self._merged.values())
        for name, facts in self._base.items():
            if name in merged:
                firsts.setdefault((facts.dtype, facts.shape, facts.sha256), name)
        tied = {}
        for name in self._unused:
            facts = self._base[name]
            first = firsts.get((facts.dtype, facts.shape, facts.sha256))
            if first is not None and len(facts.shape) > 1:
                tied[name] = MergedTensor(info=TensorInfo(facts.dtype, facts.shape), tied=first)
        return tied

    def _common(self, name: str, outline: Outline) -> MergedTensor | None:
        """A tensor that belongs to all tasks alike: merged, tied to such a one, or the same whole tensor in each."""
        if self._agreed is not None and name in self._agreed:
            return self._of_base(self._agreed[name])
        having = [task for task in self._tasks if name in self._entries[task]]
        first = self._entries[having[0]][name]
        if first.kind == "tied":
            target = outline.slots.get(str(first.to))
            same = all(self._entries[task][name].to == first.to for task in having)
            return MergedTensor(info=target.info, tied=first.to) if same and target is not None else None
        coded = [(self._entries[task][name].shape, self._private[task].get(name)) for task in having]
        if len(having) < len(self._tasks) or any(each != coded[0] or each[1] is None for each in coded):
            return None
        return MergedTensor(info=TensorInfo(str(first.dtype), first.shape or ()), task=having[0])

    def _why_own(self, name: str, but: str | None = None) -> str:
        """Why tasks' tensors of a name are kept apart, wholly or from some row on; empty if none is."""
        own, longer = [], []
        for task in self._tasks:
            entry = self._entries[task].get(name)
            if entry is None or task == but:
                continue
            if (task, name) not in self._merged and entry.kind != "tied":
                own.append(f"{task} {list(entry.shape or ())}")
            elif entry.kind != "tied" and entry.covered < entry.numel:
                longer.append(task)
        if own:
            return f"each task's own: {names_of(own)}"
        return f"rows beyond the base's are each task's own: {names_of(longer)}" if longer else ""
