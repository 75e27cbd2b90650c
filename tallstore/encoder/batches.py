"""Work cut into batches that any engine can do anywhere: each leaves one result file, from which the driver goes on.

A batch needs its number and a context: the checkpoints, the finished recipe, what batches before it left, and how all
are cut. Threads share it; other workers load it from the working folder, once, and open the checkpoints themselves.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from tallstore._version import WRITER
from tallstore.checkpoints import Checkpoint
from tallstore.encoder.encode_item import do, identify, keep
from tallstore.encoder.items import ColumnsJob, Done, Identity, Item, Outcome, Tools, WholePiece
from tallstore.encoder.measure_item import measure
from tallstore.encoder.plan import EncodePlan
from tallstore.encoder.reasons import Why
from tallstore.encoder.result_files import Place, ResultFile, Span, read_result
from tallstore.encoder.tensor_columns import find
from tallstore.errors import CheckpointError, WorkerError
from tallstore.kernels.native import library
from tallstore.recipes.base import Statistic
from tallstore.stores.staging import translated

_R = TypeVar("_R")
Job = Item | Identity | WholePiece | ColumnsJob
Batch = tuple[Job, ...]
_LATE = (0.01, 0.1, 1.0, 5.0, 25.0)
"""Seconds that are waited for a file."""
_MANY, _MOST = 64, 8
"""A batch has one item in so many of the zoo's, but no more than so many."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the work of one kind needs, whoever does it."""

    tools: Tools
    batches: Sequence[Batch]
    folder: Path
    """Where results go."""
    kind: str
    """What they are called there."""
    job: bytes
    """16 bytes that tell this job from others."""
    target: Path | str
    """How messages name the output."""
    statistic: Statistic | None = None

    def result(self, number: int) -> Path:
        """Where the result of a batch lies."""
        return self.folder / f"{self.kind}-{number:07}"

    def read(self, number: int, *, check: bool = False) -> list[Any] | None:
        """What a finished batch says of each of its jobs; None if it is not finished."""
        return read_result(self.result(number), self.job, check=check)

    def awaited(self, number: int) -> list[Any] | None:
        """The same of a batch that was just finished: a network file system may show its file a little later."""
        for seconds in _LATE:
            with translated(self.target):
                if self.result(number).exists():
                    break
                time.sleep(seconds)
                list(self.folder.iterdir())  # what is known of the folder is asked for anew
        return self.read(number)


def items(base: Checkpoint, plan: EncodePlan, name: str, chunk: int) -> Iterator[Item]:
    """A base tensor's items."""
    info = base.tensors[name]
    users = tuple(user for user in plan.users[name] if user.masked)
    alike = tuple(user for user in plan.users[name] if user.alike)
    for start in range(0, info.numel, chunk):
        yield Item(name, start, min(start + chunk, info.numel), users, alike)


def cut(base: Checkpoint, plan: EncodePlan, chunk: int) -> list[Batch]:
    """Everything that is done to base tensors and what comes from them, in the order in which it is put together."""
    infos = {name: base.tensors[name] for name in plan.read_of(base)}
    total = sum(-(-info.numel // chunk) for info in infos.values())
    most = chunk * min(max(total // _MANY, 1), _MOST)

    def jobs() -> Iterator[tuple[Job, int]]:
        for name, info in infos.items():
            for item in items(base, plan, name, chunk):
                yield item, item.stop - item.start
            if info.numel > chunk:
                yield Identity(name), most

    return list(_batches(jobs(), most))


def cut_columns(jobs: Sequence[ColumnsJob], base: Checkpoint, chunk: int) -> list[Batch]:
    """Tensors whose chunks are to have columns in common, in order."""
    return list(_batches(((job, base.tensors[job.name].numel * len(job.users)) for job in jobs), chunk))


def cut_pieces(pieces: Sequence[WholePiece], chunk: int) -> list[Batch]:
    """What is stored whole, in order."""
    return list(_batches(((piece, piece.stop - piece.start) for piece in pieces), chunk))


def _batches(jobs: Iterator[tuple[Job, int]], most: int) -> Iterator[Batch]:
    batch: list[Job] = []
    size = 0
    for job, cost in jobs:
        if batch and size + cost > most:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(job)
        size += cost
    if batch:
        yield tuple(batch)


# What workers do.


def run(context: Context, number: int) -> None:
    """Do a batch and leave its result."""
    with library.held(), translated(context.target), ResultFile(context.result(number), context.job) as out:
        facts = [_DO[type(job)](job, context.tools, out) for job in context.batches[number]]
        out.end(facts)


def gather(context: Context, number: int) -> tuple[list[Any], int]:
    """What a statistic is to be updated with of a batch's items, and how many bytes they stand for."""
    statistic, size = context.statistic, 0
    assert statistic is not None

    def measured() -> Iterator[Any]:
        nonlocal size
        for item in context.batches[number]:
            assert isinstance(item, Item)
            rows, each = measure(item, context.tools, statistic)
            size += each
            yield from rows

    with library.held():
        return list(statistic.condense(measured())), size


def _item(item: Item, tools: Tools, out: ResultFile) -> list[Any]:
    done: Done = do(item, tools)
    base = None if done.base is None else out.add(*done.base)
    rows = [None if outcome is None else _row(outcome, out) for outcome in done.outcomes]
    return [base, out.add(done.vector), rows, list(done.alike), done.sha256, done.read]


def _row(outcome: Outcome, out: ResultFile) -> list[Any]:
    made = outcome.made
    said = [outcome.moved, *(None if why is None else why.to_json() for why in (outcome.why_whole, outcome.if_moved))]
    if made is None:
        return [*said, "", "", 1.0, [], None, None, None]
    lost = out.add(outcome.lost) if outcome.lost else None
    other = outcome.without_loss
    instead = None if other is None else [other.codec, list(other.sums), out.add(other.data)]
    return [*said, made.kind, made.codec, made.scale, list(made.sums), out.add(made.data), lost, instead]


_DO: Mapping[type, Callable[[Any, Tools, ResultFile], Any]] = {
    Item: _item,
    Identity: lambda job, tools, out: identify(job.name, tools),  # noqa: ARG005 - no bytes of its own
    WholePiece: lambda job, tools, out: out.add(*keep(job, tools)),
    ColumnsJob: find,
}


# What the driver is told.


class LosslessRow(NamedTuple):
    """A chunk coded without loss, to be taken in place of one that loses something and what it lost."""

    codec: str
    sums: tuple[float, ...]
    data: Span


class RowResult(NamedTuple):
    """What became of one user's chunk."""

    moved: bool
    why_whole: Why | None
    if_moved: Why | None
    kind: str
    codec: str
    scale: float
    sums: tuple[float, ...]
    data: Span | None
    lost: Span | None
    instead: LosslessRow | None


class ItemResult(NamedTuple):
    """What became of an item."""

    base: Span | None
    vector: Span
    rows: tuple[RowResult | None, ...]
    alike: tuple[bool, ...]
    sha256: str
    read: int


def parse_item(facts: Any, path: Path) -> ItemResult:
    """What a result says of an item."""
    base, vector, rows, alike, sha256, read = facts
    results = tuple(None if row is None else _parse_row(row, path) for row in rows)
    return ItemResult(_span(base, path), span(vector, path), results, tuple(alike), sha256, read)


def _parse_row(facts: Any, path: Path) -> RowResult:
    moved, why_whole, if_moved, kind, codec, scale, sums, data, lost, instead = facts
    coded, kept = _span(data, path), _span(lost, path)
    other = None if instead is None else LosslessRow(instead[0], tuple(instead[1]), span(instead[2], path))
    whole, then = Why.from_json(why_whole), Why.from_json(if_moved)
    return RowResult(moved, whole, then, kind, codec, scale, tuple(sums), coded, kept, other)


def span(place: Place | Sequence[Any], path: Path) -> Span:
    """Where coded bytes lie, by what their file says."""
    start, length, xxh3 = place
    return Span(path, start, length, xxh3)


def _span(place: Sequence[Any] | None, path: Path) -> Span | None:
    return None if place is None else span(place, path)


# How workers that share no memory with the driver come by a context.


@dataclass(frozen=True)
class Ref:
    """A context in the working folder."""

    path: Path
    sha256: str
    """Of the file: nothing else is ever unpickled."""
    writer: str
    """The driver's version of tallstore."""


def publish(context: Context) -> Ref:
    """Write a context for workers. Raises CheckpointError for a checkpoint that lies in this process's memory."""
    data = pickle.dumps((context, _fingerprints(context.tools)), pickle.HIGHEST_PROTOCOL)
    digest = hashlib.sha256(data).hexdigest()
    path = context.folder / f"context-{digest[:16]}"
    with translated(context.target):
        path.write_bytes(data)
    return Ref(path, digest, WRITER)


def in_worker(ref: Ref, work: Callable[[Context, int], _R], number: int) -> _R:
    """Work on a batch, in a worker that has loaded the context or does so now."""
    return work(_load(ref), number)


_loaded: dict[Ref, Context] = {}


def _load(ref: Ref) -> Context:
    if ref not in _loaded:
        torch.set_num_threads(1)  # items run side by side, not torch's loops within them
        where = f"worker on {platform.node()}"
        if ref.writer != WRITER:
            raise WorkerError(f"{where}: has {WRITER}, and the driver {ref.writer}: install the same version there")
        try:
            data = ref.path.read_bytes()
        except OSError as error:
            raise WorkerError(
                f"{where}: cannot see {ref.path.parent} ({error.strerror}): all workers need the folder of the output "
                "under the same path"
            ) from None
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise WorkerError(f"{where}: {ref.path} is not what the driver wrote there")
        try:
            context, recorded = pickle.loads(data)  # noqa: S301 - the driver's own bytes, by their hash
            actual = _fingerprints(context.tools)
        except CheckpointError as error:
            raise WorkerError(
                f"{where}: cannot see the input: {error}; all workers need it under the same path"
            ) from None
        if odd := next((where for where in recorded if recorded[where] != actual[where]), None):
            raise WorkerError(f"{where}: {odd}: is not the file there that the driver has")
        _loaded.clear()
        _loaded[ref] = context
    return _loaded[ref]


def _fingerprints(tools: Tools) -> dict[str, str]:
    return {checkpoint.where: checkpoint.fingerprint() for checkpoint in (tools.base, *tools.tasks)}
