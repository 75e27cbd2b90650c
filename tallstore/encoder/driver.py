"""The one pass over all checkpoints: workers read and code chunk by chunk, base and tasks side by side; the driver here
decides by tensor, in order, what becomes of what they left.

Memory is bounded by a few chunks of every task, whatever the size of the model, and by some rows where these are long.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tallstore import codecs
from tallstore.checkpoints import Checkpoint
from tallstore.encoder.assembly import UNMOVED, GrowingTensor, TensorCost, Writers
from tallstore.encoder.batches import (
    Batch,
    Context,
    ItemResult,
    cut,
    cut_columns,
    cut_pieces,
    gather,
    items,
    parse_item,
    run,
    span,
)
from tallstore.encoder.engine import Engine
from tallstore.encoder.items import LOSSLESS, WORDS, ColumnsPlace, Tools, WholePiece
from tallstore.encoder.lossless_warnings import WithoutLoss, count_without_loss, warnings_of
from tallstore.encoder.metrics import Cheaper, Quality, significant
from tallstore.encoder.options import Options
from tallstore.encoder.part_writer import PartWriter
from tallstore.encoder.plan import EncodePlan, User, Whole
from tallstore.encoder.reasons import Reason, Why
from tallstore.encoder.report import Progress, sentence
from tallstore.encoder.resume import JOB_BYTES, Journal
from tallstore.encoder.tensor_columns import columns_jobs, parse
from tallstore.encoder.zoo_facts import zoo_facts
from tallstore.errors import OutputError
from tallstore.format.dtypes import ITEM_BYTES, MASKABLE
from tallstore.format.manifest import BaseTensor
from tallstore.format.part import Entry
from tallstore.kernels.reference import SYMBOL_BITS
from tallstore.recipes.base import Recipe
from tallstore.stores import Sink

CHUNK_ELEMENTS = 1 << 20
"""Elements of a chunk; fewer where many tasks would not fit into memory."""
_MEMORY = 1 << 29
"""Bytes that the items in work may take together, roughly."""
_BYTES_AN_ELEMENT = 16
"""What an item takes for each of its elements and tasks: as read, as float32, as task vector, and as symbols."""


@dataclass(frozen=True, kw_only=True)
class GroupSlot:
    """Where in a larger archive the tasks will stand that are packed."""

    group: str = "0"
    """The id of their group."""
    chunk: int | None = None
    """Elements a chunk, where a vector that is there already has settled that."""
    first: int = 0
    """How many tasks are there before them."""
    settled: frozenset[str] = frozenset()
    """Tensors of theirs that are the base's of the same name, as the caller knows: no one reads them."""
    work: Sink | None = None
    """The larger archive's sink, beside which what is done stays where the job fails and may be resumed."""


def chunk_elements(n_tasks: int) -> int:
    """Elements a chunk: large enough to code well, small enough that a chunk of every task fits in memory."""
    chunk = CHUNK_ELEMENTS
    while chunk > 1 << 16 and 2 * chunk * n_tasks * _BYTES_AN_ELEMENT > 2 * _MEMORY:
        chunk //= 2
    return chunk


def in_memory(n_tasks: int) -> int:
    """How many items may be in work at a time."""
    return max(1, 2 * _MEMORY // max(1, chunk_elements(n_tasks) * n_tasks * _BYTES_AN_ELEMENT))


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """One archive to be written: what is known before the pass begins."""

    base: Checkpoint
    tasks: Sequence[Checkpoint]
    plan: EncodePlan
    recipe: Recipe
    options: Options
    journal: Journal
    slot: GroupSlot = GroupSlot()
    forms: Mapping[tuple[int, str], str] = field(default_factory=dict)
    """(task, base tensor) → a stronger form than the recipe's."""
    exact: frozenset[int] = frozenset()
    """Tasks with an exact part."""
    lossless: frozenset[int] = frozenset()
    """Tasks of which every tensor is stored without loss."""
    progress: Progress | None = None


class Stream:
    """Reads every checkpoint once (once more for each statistic of the recipe), and feeds the parts."""

    def __init__(self, job: PackJob) -> None:
        tasks, options, lossless = job.tasks, job.options, job.lossless
        self.base, self.tasks, self.plan, self.recipe = job.base, tasks, job.plan, job.recipe
        self.identity: dict[str, BaseTensor] = {}
        self.quality = [Quality() for _ in tasks]
        self.by_tensor: dict[tuple[int, str], TensorCost] = {}
        """(task, base tensor) → what it costs and keeps."""
        self.without_loss: list[WithoutLoss | None] = []
        """Of each task, once the pass is done."""
        self._coded: list[dict[str, int]] = [{} for _ in tasks]
        """Coded bytes of tensors that are coded without loss for what they are, by the task's name; 0 of the base's."""
        self.exact = job.exact - lossless
        self.cheaper = [Cheaper() for _ in tasks]
        """Of each task, how many tensors are coded without loss since that is cheaper."""
        self.lossless = lossless
        """Tasks of which every tensor is stored without loss: those that are to be, and those that the recipe names."""
        self.chunk = job.slot.chunk or chunk_elements(len(tasks))
        self._first = job.slot.first
        self.taken_up = 0
        """Batches that an earlier run had finished."""
        self._options, self._journal = options, job.journal
        self._job = job.journal.job
        self._tools = Tools(
            base=job.base,
            tasks=tasks,
            recipe=job.recipe,
            vector=codecs.VECTOR[options.vector or job.recipe.vector_codec],
            mask=codecs.MASK[options.mask],
            whole=codecs.WHOLE[options.base_codec],
            embed=options.base_storage != "reference",
            chunk=self.chunk,
            device=options.torch_device(),
            lossless=codecs.WHOLE["planes+zstd"],
            forms=job.forms,
            exact=job.exact,
            exactly=lossless,
        )
        self._progress = job.progress
        self._done, self._total = 0, self._bytes_to_read()

    def run(self, writers: Writers, engine: Engine) -> None:
        """Gather the recipe's statistics, then code every tensor."""
        self.recipe.prepare(zoo_facts(self.base, self.tasks, self.plan, self._first))
        self.gather_statistics(engine)
        self._find_columns(engine)
        self._done = 0
        done = self._results(engine, "coded", cut(self.base, self.plan, self.chunk))
        for name in self.plan.read_of(self.base):
            self._tensor(name, done, writers)
        self._wholes(engine, writers)
        for index in range(len(self.tasks)):
            self._sum_up(index, writers)
        for index, warnings in enumerate(self.plan.warnings):
            if warning := self._warning(index):
                warnings.append(warning)

    def divergence(self, index: int) -> float | None:
        """What the recipe foretells of a task, to as many digits as are recorded; nothing is lost, nothing diverges."""
        predicted_divergence = self.recipe.predicted_divergence(index)
        if predicted_divergence is None:
            return None
        return 0.0 if self.bit_for_bit(index) else significant(predicted_divergence)

    def bit_for_bit(self, index: int) -> bool:
        """Whether a task comes back bit for bit, no exact part needed."""
        return index in self.lossless or self.cheaper[index].all

    def says_divergence(self, index: int) -> bool:
        """Whether the archive says it: where it was asked for, or where it is too much."""
        asked = self._options.bits is None and self.recipe.predicted_divergence(index) is not None
        return asked or bool(self._warning(index))

    def _warning(self, index: int) -> str:
        return "" if self.bit_for_bit(index) else self.recipe.warning(index)

    def gather_statistics(self, engine: Engine) -> None:
        tensors = [tuple(items(self.base, self.plan, name, self.chunk)) for name in self.plan.read_of(self.base)]
        for number, statistic in enumerate(self.recipe.statistics(len(self.tasks)), 1):
            self._done = 0
            # Else one item a batch: what a statistic measures may be as large as what it reads.
            batches = tensors if statistic.by_tensor else [(item,) for tensor_items in tensors for item in tensor_items]
            context = self._context(f"statistic-{number}", batches, statistic)
            for measured, size in engine.run(gather, context, range(len(batches)), ahead=2):
                for each in measured:
                    statistic.update(each)
                self._step(f"statistics {number}", size)
            statistic.finish()
        forms = dict.fromkeys(self.recipe.lossless(), LOSSLESS) | dict(self._tools.forms)
        drop = {key: rates for key, rates in self.recipe.dropped().items() if key not in forms}
        self.lossless |= frozenset(self.recipe.lossless_tasks())
        self.exact -= self.lossless
        self._tools = replace(self._tools, forms=forms, drop=drop, exactly=self.lossless)

    def _find_columns(self, engine: Engine) -> None:
        """What chunks of a tensor have in common, of those of which that is told first."""
        names = self.plan.read_of(self.base)
        jobs = columns_jobs(self._tools, {name: self.plan.users[name] for name in names})
        found: dict[tuple[int, str], ColumnsPlace] = {}
        digest = hashlib.sha256(self._job)
        results = self._results(engine, "columns", cut_columns(jobs, self.base, self.chunk))
        for number, (job, (said, path)) in enumerate(zip(jobs, results, strict=True), 1):
            for user, facts in zip(job.users, said, strict=True):
                if facts is not None:
                    found[user.task, job.name] = parse(facts, span(facts[0], path))
            digest.update(json.dumps(said).encode())
            if self._progress is not None:
                self._progress("columns in common", number, len(jobs))
        if found:
            # What is coded is of these columns, and of no other ones that an earlier run may have found.
            self._job = digest.digest()[:JOB_BYTES]
            self._tools = replace(self._tools, columns=found)

    def _context(self, kind: str, batches: Sequence[Batch], statistic: Any = None) -> Context:
        return Context(
            tools=self._tools,
            batches=batches,
            folder=self._journal.folder,
            kind=kind,
            job=self._job,
            target=self._journal.target,
            statistic=statistic,
        )

    def _results(self, engine: Engine, kind: str, batches: Sequence[Batch]) -> Iterator[tuple[Any, Path]]:
        """What is said of every job, in order, and of which file: as an earlier run left it, or done now."""
        context = self._context(kind, batches)
        numbers = range(len(batches))
        finished = {n for n in numbers if self._journal.resumed and context.read(n, check=True) is not None}
        self.taken_up += len(finished)
        working = engine.run(run, context, [n for n in numbers if n not in finished])
        for number in numbers:
            if number not in finished:
                next(working)
            said = context.read(number) if number in finished else context.awaited(number)
            if said is None or len(said) != len(batches[number]):
                raise OutputError(f"{context.result(number)}: what was just made is damaged on its disk, or not there")
            for facts in said:
                yield facts, context.result(number)

    def _sum_up(self, index: int, writers: Writers) -> None:
        """What there is to say of a task's tensors that are coded without loss for what they are."""
        task = self.tasks[index]
        at_home = {
            user.name
            for name, users in self.plan.users.items()
            for user in users
            if user.task == index and task.tensors[user.name].dtype == self.base.tensors[name].dtype
        }
        whole = {name: writers.privates[index].size_of(name) for name in self.plan.private[index]}
        counts = count_without_loss(task, self.plan.quantized[index], whole, self._coded[index], at_home)
        self.without_loss.append(counts)
        if counts is not None:
            self.plan.warnings[index] += warnings_of(counts)

    def _tensor(self, name: str, done: Iterator[tuple[Any, Path]], writers: Writers) -> None:
        info = self.base.tensors[name]
        growing = [GrowingTensor(user) for user in self.plan.users[name] if user.masked]
        self._begin(growing, writers)
        alike = [True for user in self.plan.users[name] if user.alike]
        sha256 = hashlib.sha256(b"").hexdigest()
        for start in range(0, info.numel, self.chunk):
            said = parse_item(*next(done))
            sha256 = said.sha256
            self._add(said, start, growing, writers)
            alike = [left and right for left, right in zip(alike, said.alike, strict=True)]
            self._step(name, said.read)
        if info.numel > self.chunk:
            sha256, _ = next(done)
        self.identity[name] = BaseTensor(dtype=info.dtype, shape=info.shape, sha256=sha256)
        if any([self._end(name, each, writers) for each in growing]):  # noqa: C419 - every one is to be ended
            writers.vector.end(name, self._tools.vector.id, self.chunk, Entry(kind="vector", shape=info.shape))
        if writers.base is not None and name in self.plan.base_ties:
            writers.base.note(name, Entry(kind="tied", to=self.plan.base_ties[name]))
        elif writers.base is not None:
            entry = Entry(kind="whole", dtype=info.dtype, shape=info.shape)
            writers.base.end(name, self._options.base_codec, self.chunk, entry)
        self._unmasked(name, alike)

    @staticmethod
    def _begin(growing: Sequence[GrowingTensor], writers: Writers) -> None:
        writers.vector.begin()
        if writers.base is not None:
            writers.base.begin()
        for each in growing:
            writers.masks[each.user.task].begin()
            writers.exacts[each.user.task].begin()

    def _add(self, said: ItemResult, start: int, growing: Sequence[GrowingTensor], writers: Writers) -> None:
        writers.vector.add(said.vector)
        if writers.base is not None and said.base is not None:
            writers.base.add(said.base)
        for each, row in zip(growing, said.rows, strict=True):
            if row is not None:
                each.add(row, min(self.chunk, each.user.covered - start), writers)

    def _end(self, name: str, each: GrowingTensor, writers: Writers) -> bool:
        """End a user's tensor as masked, as the base's, or as one to store whole. Whether it needs the vector."""
        user, task = each.user, self.tasks[each.user.task]
        info = task.tensors[user.name]
        writer = writers.masks[user.task]
        why = each.why_whole or (each.if_moved if each.moved else None)
        if why is not None:
            self.plan.private[user.task][user.name] = Whole(why)
            self.plan.warnings[user.task].append(f"tensor {user.name!r} is stored whole and exact: {sentence(why)}")
            return False
        if each.moved and each.smaller_without_loss:
            each.take_without_loss(writer)
        if each.moved and user.task in self.exact and each.kind != "lossless":
            shape = info.shape if user.match.rows is None else (user.match.rows, *info.shape[1:])
            words = Entry(kind="difference", dtype=WORDS[ITEM_BYTES[info.dtype]], shape=shape)
            writers.exacts[user.task].end(user.name, "planes+zstd", self.chunk, words)
        if user.covered < info.numel:
            self.plan.private[user.task][user.name] = Whole(Why(Reason.ROWS), start=user.covered)
        facts: dict[str, Any] = {"dtype": info.dtype, "shape": info.shape, "base": name, "rows": user.match.rows}
        if user.lossless:
            return self._end_lossless(each, facts, writer)
        if not each.moved:
            writer.note(user.name, Entry(kind="base", **facts))
            gap = each.quality.error
            self.quality[user.task].add_unmoved(user.covered, gap)
            if gap:
                self.by_tensor[user.task, name] = TensorCost(gap, gap, user.covered, UNMOVED)
            return False
        scales = tuple(each.scales) if any(s != 1.0 for s in each.scales) else None
        error, norm = each.quality.error, each.quality.norm
        form = each.kind if each.kind in SYMBOL_BITS else each.codec
        self.by_tensor[user.task, name] = TensorCost(error, norm, user.covered, form)
        writer.end(user.name, each.codec, self.chunk, Entry(kind=each.kind, scales=scales, **facts))
        self.quality[user.task].merge(each.quality)
        if user.task not in self.lossless:
            self.cheaper[user.task].count(lossless=each.kind == "lossless")
        return each.kind in SYMBOL_BITS

    def _end_lossless(self, each: GrowingTensor, facts: Mapping[str, Any], writer: PartWriter) -> bool:
        """End one that is coded without loss for what it is. Of it no error is measured: that is of masked tensors."""
        user = each.user
        if each.moved:
            writer.end(user.name, each.codec, self.chunk, Entry(kind=each.kind, **facts))
        else:
            writer.note(user.name, Entry(kind="base", **facts))
        self._coded[user.task][user.name] = writer.size_of(user.name)
        if user.task in self.lossless:
            self.quality[user.task].merge(each.quality)
        return False

    def _unmasked(self, name: str, alike: Sequence[bool]) -> None:
        """Tensors that are not masked: the base's if they are equal to the last bit, else whole."""
        equal = iter(alike)
        for user in self.plan.users[name]:
            if user.masked:
                continue
            info = self.tasks[user.task].tensors[user.name]
            if user.alike and next(equal):
                self.plan.unmoved[user.task][user.name] = name
            else:
                self.plan.private[user.task][user.name] = _why_unmasked(info.dtype, self.base.tensors[name].dtype)

    def _wholes(self, engine: Engine, writers: Writers) -> None:
        """What is stored whole, and what takes no bytes."""
        pieces = [
            WholePiece(index, name, start, min(start + self.chunk, numel))
            for index, task in enumerate(self.tasks)
            for name, whole in self.plan.private[index].items()
            for numel in [task.tensors[name].numel]
            for start in range(whole.start, numel, self.chunk)
        ]
        done = self._results(engine, "whole", cut_pieces(pieces, self.chunk))
        for index, checkpoint in enumerate(self.tasks):
            self._notes(index, checkpoint, writers.masks[index])
            for name, whole in self.plan.private[index].items():
                self._whole(checkpoint, name, whole, writers.privates[index], done)

    def _notes(self, index: int, checkpoint: Checkpoint, mask: PartWriter) -> None:
        for name, base_name in self.plan.unmoved[index].items():
            info = checkpoint.tensors[name]
            mask.note(name, Entry(kind="base", dtype=info.dtype, shape=info.shape, base=base_name))
            self.quality[index].add_unmoved(info.numel)
        for name, to in self.plan.ties[index].items():
            mask.note(name, Entry(kind="tied", to=to))
        for name, whole in self.plan.private[index].items():
            if not whole.start:
                info = checkpoint.tensors[name]
                mask.note(name, Entry(kind="private", dtype=info.dtype, shape=info.shape, why=whole.why.reason.word))

    def _whole(
        self, checkpoint: Checkpoint, name: str, whole: Whole, private: PartWriter, done: Iterator[tuple[Any, Path]]
    ) -> None:
        info = checkpoint.tensors[name]
        shape = info.shape
        if whole.start:
            shape = ((info.numel - whole.start) // math.prod(shape[1:]), *shape[1:])
        private.begin()
        for _ in range(whole.start, info.numel, self.chunk):
            private.add(span(*next(done)))
        private.end(name, self._options.base_codec, self.chunk, Entry(kind="whole", dtype=info.dtype, shape=shape))

    def _step(self, text: str, read_bytes: int) -> None:
        self._done += read_bytes
        if self._progress is not None:
            self._progress(text, self._done, self._total)

    def _bytes_to_read(self) -> int:
        infos = [self.base.tensors[name] for name in self.plan.read_of(self.base)]
        own = sum(info.numel * ITEM_BYTES[info.dtype] for info in infos)
        users: Iterable[User] = (user for users in self.plan.users.values() for user in users if user.masked)
        return own + sum(u.covered * ITEM_BYTES[self.tasks[u.task].tensors[u.name].dtype] for u in users)


def _why_unmasked(dtype: str, base: str) -> Whole:
    """Why a tensor that has a place in the base is not masked, by both types."""
    odd = next((each for each in (dtype, base) if each not in MASKABLE), None)
    return Whole(Why(Reason.SMALL) if odd is None else Why(Reason.TYPE, odd))
