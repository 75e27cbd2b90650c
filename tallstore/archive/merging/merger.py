"""One model for several tasks, made from an archive: θ0 + α·δ, where a merging method makes δ of what is stored.

Only what comes from the base is merged; heads stay apart. Everything is decoded chunk by chunk on the path that
decodes a task: beside the result, a few chunks of every task are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tallstore.archive.decode import Decoder
from tallstore.archive.merging.alignment import DECODED, Lineup, Member, line_up
from tallstore.archive.merging.layout import MergedTensor, Outline, Outlines
from tallstore.archive.merging.method import choose
from tallstore.archive.merging.tiles import TILE, Gaps, Rows, TaskVectorReader, Work, ahead
from tallstore.archive.merging.untied_in_some import with_cut_ties
from tallstore.errors import NoSuchTaskError, OptionError
from tallstore.format.dtypes import MASKABLE
from tallstore.format.manifest import Manifest, names_of
from tallstore.kernels.decoding_backends import merging
from tallstore.kernels.reference import wide
from tallstore.merging import ALPHAS, MergeTile
from tallstore.merging.base import checked_alpha
from tallstore.tensors import TORCH

__all__ = ["Evaluator", "MergeReport", "Merged", "Merger"]

Evaluator = Callable[[dict[str, Tensor], str], float]
"""Scores a state dict on a task; higher is better. It must not write to what it is given."""
Progress = Callable[[str, int, int], None]

_CONFIG = "config.json"
_TOGETHER = 1 << 19
"""Elements of all tasks that are merged in one pass: they stay in a core's second-level cache."""
_FAR = 2.0**100
"""Larger magnitudes are not merged: sums of them could overflow."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """How a merged model was made, and what is not in it."""

    method: str
    k: int | None
    """Of consensus: what fewer tasks use is dropped."""
    alpha: float
    alpha_from: str
    """`given`, chosen by the `evaluator`, or by `length`."""
    tasks: tuple[str, ...]
    head: str | None
    names: str
    """Whose names the tensors have: `tasks` (all agree), `base`, or one task's."""
    approximate: str | None
    """Why this is not what the original checkpoints would give; None if it is."""
    left_out: Mapping[str, str]
    """Tensors that are not in the model: name → why."""
    notes: tuple[str, ...] = ()
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What the evaluator said: α → task → score."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


class Merged(dict[str, Tensor]):
    """The state dict of a merged model; `report` says how it was made."""

    def __init__(self, tensors: Mapping[str, Tensor], report: MergeReport) -> None:
        super().__init__(tensors)
        self.report = report


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How tasks are merged: see `Zoo.merge`."""

    method: str
    tasks: Sequence[str] | None = None
    alpha: float | None = None
    head: str | None = None
    evaluator: Evaluator | str | None = None
    progress: Progress | None = None
    of_method: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method's own."""

    @classmethod
    def of(cls, method: str, given: Mapping[str, Any]) -> Self:
        """From options by name: what is none of these is the method's."""
        own = {each.name for each in fields(cls)} - {"method", "of_method"}
        rest = {name: value for name, value in given.items() if name not in own and (name, value) != ("k", None)}
        return cls(method=method, **{n: v for n, v in given.items() if n in own}, of_method=rest)


class Merger:
    """Merges tasks of one archive. Options are checked at once; coded bytes are read when results are asked for."""

    def __init__(
        self,
        decoder: Decoder,
        manifest: Manifest,
        wanted: MergeOptions,
    ) -> None:
        head, alpha, evaluator = wanted.head, wanted.alpha, wanted.evaluator
        self.tasks = _checked(manifest, tuple(manifest.tasks) if wanted.tasks is None else tuple(wanted.tasks))
        if head is not None and head not in self.tasks:
            raise NoSuchTaskError(f"the head's task {head!r} is not one that is merged: {names_of(self.tasks)}")
        if alpha is not None and evaluator is not None:
            raise OptionError("alpha is given, and an evaluator to choose it: leave one of them out")
        if adapters := [task for task in self.tasks if manifest.tasks[task].adapter is not None]:
            raise OptionError(
                f"task {adapters[0]!r} is an adapter: models are merged, not adapters; name the tasks to merge "
                "(tasks=…, --task), or pack the model that it makes (extract --merged, export(…, merged=True))"
            )
        self._given = None if alpha is None else checked_alpha(alpha)
        self._decoder, self._manifest, self._head, self._progress = decoder, manifest, head, wanted.progress
        for task in self.tasks:
            _refuse_codes(manifest, task)
            decoder.check(task)
        codecs = [p.entry.coded.codec for g in manifest.groups for p in decoder.vectors(g.id).values() if p.entry.coded]
        self._chosen = choose(manifest, self.tasks, codecs, wanted.method, wanted.of_method)
        self._score = None if evaluator is None else _scorer(evaluator)
        lineups = line_up(decoder, manifest, self.tasks)
        for name in lineups:
            decoder.check_base(name)
        lineups, ties = with_cut_ties(decoder, manifest, lineups, self.tasks)
        lineups, odd = _without_odd(decoder, lineups)
        self._notes = (*ties, *odd)
        if (k := self._chosen.k) is not None and k > len(self.tasks):
            note = f"no weight is used by {k} of {len(self.tasks)} tasks: with such a k this is the base"
            self._notes = (*self._notes, note)
        self._lineups = {name: lineup for name, lineup in lineups.items() if lineup.facts.dtype in MASKABLE}
        self._vectors = TaskVectorReader(decoder, self._chosen.stored)
        self._outlines = Outlines(decoder, manifest, lineups, self.tasks)
        self.outline = self._outlines.bare() if head is None else self._outlines.dressed(head)
        self._alpha: tuple[float, str] | None = None
        self._scores: dict[str, dict[str, float]] = {}
        self._gathered = False

    def state_dict(self) -> dict[str, Tensor]:
        """The whole model; tied tensors share memory."""
        return self._dress(self.outline, self._bodies(self.alpha(), _bases(self.outline), "merging"))

    def tensor(self, name: str) -> Tensor:
        """One tensor of the model."""
        slot = self.outline.slots[name]
        slot = slot if slot.tied is None else self.outline.slots[slot.tied]
        return self._filled(name, slot, {} if slot.base is None else self._bodies(self.alpha(), [slot.base]))

    def files(self) -> dict[str, str]:
        """The files that belong beside the model: name in its folder → path in the archive.

        Those of the head's task; without a head those that all tasks share, and the first task's `config.json`.
        """
        own = self._manifest.tasks[self._head or self.tasks[0]].files
        if self._head is not None or len(self.tasks) == 1:
            return dict(own)
        shared = {name: path for name, path in own.items() if path.startswith("common/")}
        if _CONFIG in own and _CONFIG not in shared:
            note = f"{_CONFIG} is that of task {self.tasks[0]}: it may describe a head that is not there"
            self._notes = (*self._notes, note)
        return shared | {name: own[name] for name in (_CONFIG,) if name in own}

    def report(self) -> MergeReport:
        """How it is made; α is chosen, if it has not been."""
        return MergeReport(
            method=self._chosen.id,
            k=self._chosen.k,
            alpha=self.alpha(),
            alpha_from="" if self._alpha is None else self._alpha[1],
            tasks=self.tasks,
            head=self._head,
            names=self.outline.names,
            approximate=self._why(),
            left_out=self.outline.left_out,
            notes=self._notes,
            scores=self._scores,
        )

    def alpha(self) -> float:
        """α: as given, or chosen when it is first needed."""
        if self._alpha is None:
            if self._given is not None:
                self._alpha = self._given, "given"
            elif self._score is not None:
                self._alpha = self._best(self._score), "evaluator"
            else:
                self._alpha = self._of_right_length(), "length"
        return self._alpha[0]

    def _why(self) -> str | None:
        """Why the result is not what the original checkpoints would give."""
        kinds = {member.kind for lineup in self._lineups.values() for member in lineup.members}
        if self._chosen.approximate is None and "delta" in kinds:
            return "of some tensors the archive holds no vector, but decoded task vectors: those are summed"
        if self._chosen.approximate is None and self._chosen.stored == "ties" and kinds & DECODED:
            return "tensors stored whole, without loss or by a share of changes are summed, not merged by TIES"
        return self._chosen.approximate

    def _of_right_length(self) -> float:
        """The α at which α·δ is as long as the task vectors are, on the (quadratic) average."""
        lengths, merged = torch.zeros(len(self.tasks), dtype=torch.float64), 0.0
        self._gather()

        native = merging()

        def squares(lineup: Lineup, start: int, stop: int) -> tuple[Tensor, float]:
            own, of_delta = torch.zeros(len(self.tasks), dtype=torch.float64), 0.0
            by_gaps = self._by_gaps(lineup, start, stop)
            if native is not None and by_gaps is not None:
                least, inner, there, gaps = by_gaps
                some = np.zeros(len(there))
                of_delta = native.measure_gaps(some, stop - start, gaps, least, inner)
                own[there] += torch.from_numpy(some)
                return own, of_delta
            if native is not None and (by_rows := self._by_rows(lineup, start, stop)) is not None:
                least, inner, written = by_rows
                for _, _, here, rows in written:
                    some = np.zeros(len(here))
                    of_delta += native.measure_rows(some, rows.numpy(), least, inner)
                    own[[member.index for member in here]] += torch.from_numpy(some)
                return own, of_delta
            for _, _, tile in self._vectors.tiles(lineup, start, stop):
                own[list(tile.tasks)] += tile.tau.double().square().sum(1)
                of_delta += float(self._chosen.method.delta(tile).double().square().sum())
            return own, of_delta

        for own, of_delta in self._each(squares, self._lineups, "length"):
            lengths += own
            merged += of_delta
        # As many digits as do not depend on the order of these sums.
        return float(f"{math.sqrt(float(lengths.mean()) / merged):.9g}") if merged else 1.0

    def _best(self, score: Evaluator) -> float:
        """The α of the paper's range with the best mean score over the tasks; the smallest of equals."""
        deltas = {name: torch.empty(lineup.numel, dtype=_kind(lineup)) for name, lineup in self._lineups.items()}
        self._gather()

        def fill(lineup: Lineup, start: int, stop: int) -> None:
            for a, b, tile in self._vectors.tiles(lineup, start, stop):
                deltas[lineup.base][a:b] = self._chosen.method.delta(tile)

        for _ in self._each(fill, self._lineups, "merging"):
            pass
        names = dict.fromkeys(name for task in self.tasks for name in _bases(self._outlines.dressed(task)))
        means: dict[float, float] = {}
        for number, alpha in enumerate(ALPHAS):
            bodies = self._decoder.base_tensors(names)
            for name, delta in deltas.items():
                _move(bodies[name].reshape(-1), delta, alpha)
            scores = self._scores[f"{alpha:g}"] = {}
            for task in self.tasks:
                done = number * len(self.tasks) + len(scores)
                self._tell(f"evaluating α = {alpha:g} on {task}", done, len(ALPHAS) * len(self.tasks))
                scores[task] = score(self._dress(self._outlines.dressed(task), bodies), task)
            means[alpha] = sum(scores.values()) / len(scores)
        return max(means, key=lambda alpha: (means[alpha], -alpha))

    def _gather(self) -> None:
        """The method's statistics: a pass each."""
        if self._gathered:
            return

        def tiles(lineup: Lineup, start: int, stop: int) -> list[MergeTile]:
            return [tile for _, _, tile in self._vectors.tiles(lineup, start, stop)]

        for number, statistic in enumerate(self._chosen.method.statistics(len(self.tasks)), 1):
            for ready in self._each(tiles, self._lineups, f"statistics {number}"):
                for tile in ready:
                    statistic.update(tile)
            statistic.finish()
        self._gathered = True

    def _bodies(self, alpha: float, names: Sequence[str], text: str = "") -> dict[str, Tensor]:
        """Merged tensors in the base's shapes and types, by the base's names."""
        self._gather()
        out = self._decoder.base_tensors(names)

        native, sums = merging(), self._chosen.method.of_sums()

        def move(lineup: Lineup, start: int, stop: int) -> None:
            flat = out[lineup.base].reshape(-1)
            by_gaps = self._by_gaps(lineup, start, stop) if flat.dtype == _kind(lineup) else None
            if native is not None and by_gaps is not None:
                least, inner, _, gaps = by_gaps
                native.merge_gaps(flat[start:stop].numpy(), gaps, least, inner, alpha)
                return
            by_rows = self._by_rows(lineup, start, stop) if flat.dtype == _kind(lineup) else None
            if native is not None and by_rows is not None:
                least, inner, written = by_rows
                for a, b, _, rows in written:
                    native.merge_rows(flat[a:b].numpy(), rows.numpy(), least, inner, alpha)
                return
            masked = self._vectors.masked(lineup, start, stop) if flat.dtype == _kind(lineup) else None
            if native is not None and masked is not None and sums is not None:
                kind = masked.vector.dtype.type
                native.merge_masks(
                    flat[start:stop].numpy(), *masked, sums.source == "vector", sums.k, kind(sums.alpha), kind(alpha)
                )
                return
            for a, b, tile in self._vectors.tiles(lineup, start, stop):
                _move(flat[a:b], self._chosen.method.delta(tile), alpha)

        moved = [n for n in names if n in self._lineups and any(m.kind != "base" for m in self._lineups[n].members)]
        for _ in self._each(move, moved, text):
            pass
        return out

    def _by_rows(self, lineup: Lineup, start: int, stop: int) -> tuple[int, Any, Iterator[Rows]] | None:
        """A window's task vectors for kernels that take a tile in one pass; None where method or codes are not for it.

        Returns k, α of the method in the type that is computed in, and the tiles.
        """
        sums = self._chosen.method.of_sums()
        if sums is None or sums.source != "tasks":
            return None
        longest = max(TILE, _TOGETHER // max(1, len(lineup.members)) // TILE * TILE)
        written = self._vectors.rows(lineup, start, stop, longest)
        number = np.float64 if _kind(lineup) == torch.float64 else np.float32
        return None if written is None else (sums.k, number(sums.alpha), written)

    def _by_gaps(self, lineup: Lineup, start: int, stop: int) -> tuple[int, Any, list[int], Gaps] | None:
        """The same where task vectors are marks alone: k, α, which tasks, and their marks."""
        sums = self._chosen.method.of_sums()
        if sums is None or sums.source != "tasks" or merging() is None:
            return None
        gaps = self._vectors.gaps(lineup, start, stop)
        number = np.float64 if _kind(lineup) == torch.float64 else np.float32
        there = [member.index for member in lineup.members if member.entry.covered > start]
        return None if gaps is None else (sums.k, number(sums.alpha), there, gaps)

    def _dress(self, outline: Outline, bodies: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, slot in outline.slots.items():
            out[name] = out[slot.tied] if slot.tied is not None else self._filled(name, slot, bodies)
        return out

    def _filled(self, name: str, slot: MergedTensor, bodies: Mapping[str, Tensor]) -> Tensor:
        body = None if slot.base is None else bodies[slot.base]
        if body is not None and slot.info.shape != tuple(body.shape):
            body = body[: slot.info.shape[0]]
        if slot.task is None and body is not None:
            return body
        own = self._decoder.tensors(str(slot.task), [name])[name]
        return own if body is None else torch.cat([body, own[len(body) :].to(body.dtype)])

    def _each(self, work: Work[Any], names: Iterable[str], text: str) -> Iterable[Any]:
        lineups = [self._lineups[name] for name in names]
        return ahead(self._decoder.threads, lineups, work, lambda done, total: self._tell(text, done, total))

    def _tell(self, text: str, done: int, total: int) -> None:
        if self._progress is not None and text:
            self._progress(text, done, total)


def _checked(manifest: Manifest, tasks: tuple[str, ...]) -> tuple[str, ...]:
    if not tasks or len(set(tasks)) != len(tasks):
        raise OptionError(f"tasks {list(tasks)}: expected at least one task, and each once")
    if odd := [task for task in tasks if task not in manifest.tasks]:
        raise NoSuchTaskError(f"no task {odd[0]!r}; there are {names_of(tuple(manifest.tasks))}")
    return tasks


_MOST_CODES = 0.5
"""Share of a checkpoint's bytes from which on tensors that cannot be summed leave no model to merge."""


def _refuse_codes(manifest: Manifest, task: str) -> None:
    """Raise OptionError for a task most of which are codes or other types that no sum is of."""
    facts = manifest.tasks[task]
    codes, total = facts.number("without_loss", "bytes"), facts.number("checkpoint_bytes")
    if not codes or not total:
        return
    form = facts.measured["without_loss"].get("form")
    if isinstance(form, str) or codes > _MOST_CODES * total:
        what = f"is quantized ({form})" if isinstance(form, str) else "is in a type that cannot be summed"
        raise OptionError(
            f"task {task!r} {what}, and codes cannot be merged: pack the models in a float type "
            "(model.dequantize()), and merge those"
        )


def _scorer(evaluator: Evaluator | str) -> Evaluator:
    from tallstore.evaluator import find_evaluator, score

    function = find_evaluator(evaluator)
    return lambda state, task: score(function, state, task)


def _without_odd(decoder: Decoder, lineups: Mapping[str, Lineup]) -> tuple[dict[str, Lineup], tuple[str, ...]]:
    """Take out tensors, stored whole or without loss, that cannot be computed with: NaN, Inf, or near to it."""
    out, notes = {}, []
    for name, lineup in lineups.items():
        kept: list[Member] = []
        for member in lineup.members:
            if member.kind in DECODED and not _finite(decoder, lineup, member):
                notes.append(f"{member.task}: tensor {member.name!r} is not merged: it or the base's holds NaN or Inf")
            else:
                kept.append(member)
        if kept:
            out[name] = Lineup(lineup.base, lineup.facts, lineup.numel, tuple(kept))
    return out, tuple(notes)


def _finite(decoder: Decoder, lineup: Lineup, member: Member) -> bool:
    for start, stop in lineup.windows():
        for values in (
            decoder.own_range(member.task, member.source, start, min(stop, member.entry.covered)),
            decoder.base_range(lineup.base, start, stop),
        ):
            # A NaN is not below anything.
            if not bool((values.abs() < _FAR).all()):
                return False
    return True


def _kind(lineup: Lineup) -> torch.dtype:
    return wide(TORCH[lineup.facts.dtype])


def _bases(outline: Outline) -> list[str]:
    return list(dict.fromkeys(slot.base for slot in outline.slots.values() if slot.base is not None))


def _move(out: Tensor, delta: Tensor, alpha: float) -> None:
    """θ0 + α·δ into `out`, which holds θ0; elements with δ = 0 keep every bit."""
    step = delta * alpha
    out.copy_(torch.where(step == 0, out, (out.to(step.dtype) + step).to(out.dtype)))
