"""The one pass over all checkpoints: chunk by chunk, base and tasks side by side, reading ahead of the arithmetic.

Memory is bounded by a few chunks of every task, whatever the size of the model.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from tallstore import codecs
from tallstore.checkpoints import Checkpoint
from tallstore.codecs.base import WholeCodec
from tallstore.encoder.options import Options
from tallstore.encoder.parts import PartWriter
from tallstore.encoder.plan import Plan, User, Whole
from tallstore.encoder.quality import Quality
from tallstore.encoder.report import Progress
from tallstore.encoder.work import BUDGET, WORDS, Done, Item, Tools, do, measure, same_bits
from tallstore.format.dtypes import ITEM_BYTES, MASKABLE
from tallstore.format.manifest import BaseTensor
from tallstore.format.part import Entry
from tallstore.recipes.base import Recipe, ZooFacts
from tallstore.stores import Sink
from tallstore.tensors import as_bytes

_R = TypeVar("_R")
_CHUNK = 1 << 20
_MEMORY = 1 << 29
"""Bytes that the items in work may take together, roughly."""
_BYTES_AN_ELEMENT = 16
"""What an item takes for each of its elements and tasks: as read, as float32, as task vector, and as symbols."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where in a larger archive the tasks will stand that are packed."""

    group: str = "0"
    """The id of their group."""
    chunk: int | None = None
    """Elements a chunk, where a vector that is there already has settled that."""
    first: int = 0
    """How many tasks are there before them."""


def chunk_elements(n_tasks: int) -> int:
    """Elements a chunk: large enough to code well, small enough that a chunk of every task fits in memory."""
    chunk = _CHUNK
    while chunk > 1 << 16 and 2 * chunk * n_tasks * _BYTES_AN_ELEMENT > 2 * _MEMORY:
        chunk //= 2
    return chunk


class Writers:
    """The parts that grow during the pass."""

    def __init__(self, sink: Sink, tasks: Sequence[str], group: str, *, embed: bool) -> None:
        self.base = PartWriter(sink, "base/base.safetensors", "base", "") if embed else None
        self.vector = PartWriter(sink, f"vector/{group}.safetensors", "vector", group)
        self.masks = [PartWriter(sink, f"tasks/{t}/mask.safetensors", "mask", t) for t in tasks]
        self.exacts = [PartWriter(sink, f"tasks/{t}/exact.safetensors", "exact", t) for t in tasks]
        self.privates = [PartWriter(sink, f"tasks/{t}/private.safetensors", "private", t) for t in tasks]


@dataclass
class _Growing:
    """One user's tensor while its chunks go by."""

    user: User
    quality: Quality = field(default_factory=Quality)
    scales: list[float] = field(default_factory=list)
    moved: bool = False
    kind: str = ""
    why_whole: str = ""
    if_moved: str = ""
    codec: str = ""
    """Of a delta."""


@dataclass(frozen=True)
class TensorCost:
    """What one task's tensor loses, and in which form it is stored."""

    error: float
    """‖τ̂ − τ‖²."""
    norm: float
    """‖τ‖²."""
    parameters: int
    form: str
    """A kind of mask, the codec of a delta, or UNMOVED."""


UNMOVED = "base"
"""The form of a tensor that is the base's, where the base that is stored misses it."""


class Stream:
    """Reads every checkpoint once (once more for each statistic of the recipe), and feeds the parts."""

    def __init__(
        self,
        base: Checkpoint,
        tasks: Sequence[Checkpoint],
        plan: Plan,
        recipe: Recipe,
        options: Options,
        progress: Progress | None,
        forms: Mapping[tuple[int, str], str],
        exact: frozenset[int],
        slot: Slot,
    ) -> None:
        self.base, self.tasks, self.plan, self.recipe = base, tasks, plan, recipe
        self.identity: dict[str, BaseTensor] = {}
        self.quality = [Quality() for _ in tasks]
        self.by_tensor: dict[tuple[int, str], TensorCost] = {}
        """(task, base tensor) → what it costs and keeps."""
        self.warnings: list[str] = []
        self.exact = exact
        self.chunk = slot.chunk or chunk_elements(len(tasks))
        self._first = slot.first
        self._options = options
        self._whole: WholeCodec = codecs.WHOLE[options.base_codec]
        self._tools = Tools(
            base=base,
            tasks=tasks,
            recipe=recipe,
            vector=codecs.VECTOR[options.vector or recipe.vector_codec],
            mask=codecs.MASK[options.mask],
            whole=self._whole if options.base_storage != "reference" else None,
            device=options.torch_device(),
            lossless=codecs.WHOLE["planes+zstd"],
            forms=forms,
            exact=exact,
        )
        self._progress = progress
        self._done, self._total = 0, self._bytes_to_read()

    def run(self, writers: Writers) -> None:
        """Gather the recipe's statistics, then code every tensor."""
        self.recipe.prepare(self._facts())
        with _workers(self._in_flight()) as pool:
            for number, statistic in enumerate(self.recipe.statistics(len(self.tasks)), 1):
                self._done = 0
                for found, size in self._ahead(pool, partial(measure, tools=self._tools, statistic=statistic)):
                    for each in found:
                        statistic.update(each)
                    self._step(f"statistics {number}", size)
                statistic.finish()
            self._done = 0
            done = self._ahead(pool, partial(do, tools=self._tools))
            for name in self.base.tensors:
                self._tensor(name, done, writers)
        for index, checkpoint in enumerate(self.tasks):
            self._private(index, checkpoint, writers)

    def _items(self, name: str) -> Iterator[Item]:
        numel = self.base.tensors[name].numel
        users = tuple(user for user in self.plan.users[name] if user.masked)
        for start in range(0, numel, self.chunk):
            yield Item(name, start, min(start + self.chunk, numel), users)

    def _in_flight(self) -> int:
        cost = max(1, self.chunk * len(self.tasks) * _BYTES_AN_ELEMENT)
        return max(1, min(os.cpu_count() or 1, 2 * _MEMORY // cost))

    def _facts(self) -> ZooFacts:
        infos = [task.tensors for task in self.tasks]
        whole = [
            infos[index][name].numel * ITEM_BYTES[infos[index][name].dtype] * 8
            for index, private in enumerate(self.plan.private)
            for name in private
        ]
        return ZooFacts(
            parameters=sum(info.numel for tensors in infos for info in tensors.values()),
            fixed_bits=float(sum(whole)),
            first=self._first,
        )

    def _ahead(self, pool: ThreadPoolExecutor, work: Callable[[Item], _R]) -> Iterator[_R]:
        """Results in order, later items in work meanwhile."""
        waiting: deque[Future[_R]] = deque()
        for name in self.base.tensors:
            for item in self._items(name):
                waiting.append(pool.submit(work, item))
                if len(waiting) > self._in_flight():
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _tensor(self, name: str, items: Iterator[Done], writers: Writers) -> None:
        info = self.base.tensors[name]
        growing = [_Growing(user) for user in self.plan.users[name] if user.masked]
        open_writers = [writers.vector]
        for each in growing:
            open_writers += [writers.masks[each.user.task], writers.exacts[each.user.task]]
        if writers.base is not None:
            open_writers.append(writers.base)
        for writer in open_writers:
            writer.begin()
        digest = hashlib.sha256()
        for _ in range(0, info.numel, self.chunk):
            done = next(items)
            digest.update(done.raw.data)
            writers.vector.add(done.vector)
            if writers.base is not None and done.base is not None:
                writers.base.add(done.base)
            for each, outcome in zip(growing, done.outcomes, strict=True):
                if outcome is None:
                    continue
                each.moved |= outcome.moved
                each.why_whole = each.why_whole or outcome.why_whole
                each.if_moved = each.if_moved or outcome.if_moved
                if outcome.made is not None and not each.why_whole:
                    each.kind, each.codec = outcome.made.kind, outcome.made.codec
                    if outcome.lost:
                        writers.exacts[each.user.task].add(outcome.lost)
                    writers.masks[each.user.task].add(outcome.made.data)
                    each.scales.append(outcome.made.scale)
                    each.quality.add(outcome.made.sums, min(self.chunk, each.user.covered - done.item.start))
            self._step(name, done.read)
        self.identity[name] = BaseTensor(dtype=info.dtype, shape=info.shape, sha256=digest.hexdigest())
        used = [self._end(name, each, writers) for each in growing]
        if any(used):
            writers.vector.end(name, self._tools.vector.id, self.chunk, Entry(kind="vector", shape=info.shape))
        else:
            writers.vector.drop()
        if writers.base is not None and name in self.base.ties:
            writers.base.drop()
            writers.base.note(name, Entry(kind="tied", to=self.base.ties[name]))
        elif writers.base is not None:
            entry = Entry(kind="whole", dtype=info.dtype, shape=info.shape)
            writers.base.end(name, self._options.base_codec, self.chunk, entry)
        self._compare(name)

    def _end(self, name: str, each: _Growing, writers: Writers) -> bool:
        """End a user's tensor as masked, as the base's, or as one to store whole. Whether it needs the vector."""
        user, task = each.user, self.tasks[each.user.task]
        info = task.tensors[user.name]
        writer, exact = writers.masks[user.task], writers.exacts[user.task]
        why = each.why_whole or (each.if_moved if each.moved else "")
        if why or not each.moved or user.task not in self.exact:
            exact.drop()
        else:
            shape = info.shape if user.match.rows is None else (user.match.rows, *info.shape[1:])
            words = Entry(kind="difference", dtype=WORDS[ITEM_BYTES[info.dtype]], shape=shape)
            exact.end(user.name, "planes+zstd", self.chunk, words)
        if why:
            writer.drop()
            self.plan.private[user.task][user.name] = Whole(why)
            if why != BUDGET:
                self.warnings.append(f"{task.where}: tensor {user.name!r} is stored whole and exact: {why}")
            return False
        if user.covered < info.numel:
            self.plan.private[user.task][user.name] = Whole("rows beyond the base's", user.covered)
        facts: dict[str, Any] = {"dtype": info.dtype, "shape": info.shape, "base": name, "rows": user.match.rows}
        if not each.moved:
            writer.drop()
            writer.note(user.name, Entry(kind="base", **facts))
            gap = each.quality.error
            self.quality[user.task].add_unmoved(user.covered, gap)
            if gap:
                self.by_tensor[user.task, name] = TensorCost(gap, gap, user.covered, UNMOVED)
            return False
        scales = tuple(each.scales) if any(s != 1.0 for s in each.scales) else None
        codec = each.codec or self._options.mask
        error, norm = each.quality.error, each.quality.norm
        self.by_tensor[user.task, name] = TensorCost(error, norm, user.covered, each.codec or each.kind)
        writer.end(user.name, codec, self.chunk, Entry(kind=each.kind, scales=scales, **facts))
        self.quality[user.task].merge(each.quality)
        return each.kind != "delta"

    def _compare(self, name: str) -> None:
        """Tensors that are not masked: the base's if they are equal to the last bit, else whole."""
        for user in self.plan.users[name]:
            if user.masked:
                continue
            task = self.tasks[user.task]
            info = task.tensors[user.name]
            if info == self.base.tensors[name] and self._equal(name, task, user.name):
                self.plan.unmoved[user.task][user.name] = name
            else:
                why = "small" if info.dtype in MASKABLE else f"of type {info.dtype}"
                self.plan.private[user.task][user.name] = Whole(why)

    def _equal(self, name: str, task: Checkpoint, task_name: str) -> bool:
        numel = self.base.tensors[name].numel
        spans = [(s, min(s + self.chunk, numel)) for s in range(0, numel, self.chunk)]
        return all(same_bits(self.base.read(name, a, b), task.read(task_name, a, b)) for a, b in spans)

    def _private(self, index: int, checkpoint: Checkpoint, writers: Writers) -> None:
        mask, private = writers.masks[index], writers.privates[index]
        for name, base_name in self.plan.unmoved[index].items():
            info = checkpoint.tensors[name]
            mask.note(name, Entry(kind="base", dtype=info.dtype, shape=info.shape, base=base_name))
            self.quality[index].add_unmoved(info.numel)
        for name, to in checkpoint.ties.items():
            mask.note(name, Entry(kind="tied", to=to))
        for name, whole in self.plan.private[index].items():
            info = checkpoint.tensors[name]
            shape = info.shape
            if whole.start:
                shape = ((info.numel - whole.start) // math.prod(shape[1:]), *shape[1:])
            else:
                mask.note(name, Entry(kind="private", dtype=info.dtype, shape=shape))
            private.begin()
            for s in range(whole.start, info.numel, self.chunk):
                weights = checkpoint.read(name, s, min(s + self.chunk, info.numel))
                private.add(self._whole.encode(as_bytes(weights), info.dtype))
            entry = Entry(kind="whole", dtype=info.dtype, shape=shape)
            private.end(name, self._options.base_codec, self.chunk, entry)

    def _step(self, text: str, read_bytes: int) -> None:
        self._done += read_bytes
        if self._progress is not None:
            self._progress(text, self._done, self._total)

    def _bytes_to_read(self) -> int:
        own = sum(info.numel * ITEM_BYTES[info.dtype] for info in self.base.tensors.values())
        users: Iterable[User] = (user for users in self.plan.users.values() for user in users if user.masked)
        return own + sum(u.covered * ITEM_BYTES[self.tasks[u.task].tensors[u.name].dtype] for u in users)


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads each compute on one core: items run side by side, not torch's loops within them.

    (Loops over a cache-sized tile are too short to share; waiting for each other costs them many times their work.)
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "tallstore-pack", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=True)
        torch.set_num_threads(before)
