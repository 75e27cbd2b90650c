"""How far a run's checkpoints moved: from the base, and from the step before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tallstore.archive.checkpoint import ArchiveTask
from tallstore.archive.decode import Decoder
from tallstore.checkpoints import Checkpoint, Source, TensorInfo, opened_checkpoint
from tallstore.editing.change import Change
from tallstore.format.dtypes import MASKABLE

__all__ = ["with_distances"]

_RUN = 1 << 20
_BLOCK = 1 << 15
"""Elements that are computed with at a time: few enough to stay in the cache."""
_DIGITS = 4


class _Pair(NamedTuple):
    """Two checkpoints whose distance is asked for: for whom, as what, and of which two; the base is named ''."""

    task: str
    key: str
    first: str
    second: str


def with_distances(
    change: Change, base: Checkpoint, tasks: Mapping[str, Source], told: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, object]]:
    """What is known of a run's steps, and how far each lies from the base and from the step before.

    Distances are norms of differences over the norm of the base's weights, of floats that both have by name and shape.

    Args:
        change: the archive, where earlier steps may be already.
        base: of the run.
        tasks: the new steps.
        told: of each, with its place in the run (`run`: `name`, `step`).
    """
    out = {name: dict(facts) for name, facts in told.items()}
    steps: dict[str, Any] = {name: facts["run"] for name, facts in told.items()}
    known: dict[str, Any] = {name: task.measured.get("run") for name, task in change.manifest.tasks.items()}
    pairs: list[_Pair] = []
    for name, run in steps.items():
        pairs.append(_Pair(name, "moved_from_base", "", name))
        of_run = {o: r["step"] for o, r in {**known, **steps}.items() if _is_of(r, run["name"])}
        if earlier := {other: step for other, step in of_run.items() if step < run["step"]}:
            pairs.append(_Pair(name, "moved", max(earlier, key=lambda other: earlier[other]), name))
    moved: dict[str, dict[str, float]] = {name: dict(run) for name, run in steps.items()}
    with ExitStack() as stack:
        given = None if change.manifest.base.storage == "embed" else base
        there: dict[str, Checkpoint] = {"": base}
        for name in {name for pair in pairs for name in (pair.first, pair.second)} - {""}:
            if name in tasks:
                there[name] = stack.enter_context(opened_checkpoint(tasks[name], f"{name} (in memory)"))
            else:
                there[name] = ArchiveTask(Decoder(change.reader, given, 1), name, name)
        for pair, apart in zip(pairs, _apart(base, there, pairs), strict=True):
            if math.isfinite(apart):
                moved[pair.task][pair.key] = float(f"{apart:.{_DIGITS}g}")
    return {name: {**facts, "run": moved[name]} for name, facts in out.items()}


def _is_of(run: object, name: object) -> bool:
    """Whether a task's record says that it is a step of a run."""
    return isinstance(run, Mapping) and run.get("name") == name and type(run.get("step")) is int


def _apart(base: Checkpoint, there: Mapping[str, Checkpoint], pairs: Sequence[_Pair]) -> list[float]:
    """Norm of the difference of each pair over that of the base; NaN where nothing can be compared.

    All pairs at once: every checkpoint is read, and what is in the archive decoded, once.
    """
    squares, of_base = [0.0] * len(pairs), [0.0] * len(pairs)
    for name, info in base.tensors.items():
        if info.dtype not in MASKABLE or name in base.ties:
            continue
        alike = {each for each, opened in there.items() if _is_alike(opened.tensors.get(name), info)}
        users = [at for at, pair in enumerate(pairs) if {pair.first, pair.second} <= alike]
        needed = {"", *(each for at in users for each in pairs[at][2:])} if users else set()
        for start in range(0, info.numel, _RUN):
            stop = min(start + _RUN, info.numel)
            rows = {each: _wide(there[each].read(name, start, stop)) for each in needed}
            for at in users:
                squares[at] += _square(rows[pairs[at].second], rows[pairs[at].first])
            size = _square(rows[""]) if users else 0.0
            for at in users:
                of_base[at] += size
    return [math.sqrt(square / size) if size else math.nan for square, size in zip(squares, of_base, strict=True)]


def _is_alike(info: TensorInfo | None, other: TensorInfo) -> bool:
    return info is not None and info.shape == other.shape and info.dtype in MASKABLE


def _wide(row: Tensor) -> Tensor:
    return row if row.dtype == torch.float64 else row.float()


def _square(row: Tensor, other: Tensor | None = None) -> float:
    """The square of a row, or of its difference from another one."""
    total = 0.0
    for at in range(0, len(row), _BLOCK):
        block = row[at : at + _BLOCK]
        if other is not None:
            block = block - other[at : at + _BLOCK]
        total += float(block @ block)
    return total
