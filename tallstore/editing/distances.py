"""How far a run's checkpoints moved: from the base, and from the step before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from tallstore.archive.checkpoint import ArchiveTask
from tallstore.archive.decode import Decoder
from tallstore.checkpoints import Checkpoint, Source, opened_checkpoint
from tallstore.editing.change import Change
from tallstore.format.dtypes import MASKABLE

__all__ = ["with_distances"]

_RUN = 1 << 18
_DIGITS = 4


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
    for name, run in steps.items():
        of_run = {o: r["step"] for o, r in {**known, **steps}.items() if _is_of(r, run["name"])}
        earlier = {other: step for other, step in of_run.items() if step < run["step"]}
        with opened_checkpoint(tasks[name], f"{name} (in memory)") as task:
            moved = {"moved_from_base": _apart(base, base, task)}
            if earlier:
                last = max(earlier, key=lambda other: earlier[other])
                if last in tasks:
                    with opened_checkpoint(tasks[last], f"{last} (in memory)") as there:
                        moved["moved"] = _apart(base, there, task)
                else:
                    given = None if change.manifest.base.storage == "embed" else base
                    moved["moved"] = _apart(base, ArchiveTask(Decoder(change.reader, given, 1), last, last), task)
        finite = {key: float(f"{value:.{_DIGITS}g}") for key, value in moved.items() if math.isfinite(value)}
        out[name]["run"] = {**run, **finite}
    return out


def _is_of(run: object, name: object) -> bool:
    """Whether a task's record says that it is a step of a run."""
    return isinstance(run, Mapping) and run.get("name") == name and type(run.get("step")) is int


def _apart(base: Checkpoint, first: Checkpoint, second: Checkpoint) -> float:
    """Norm of the difference of two checkpoints over that of the base; NaN where nothing can be compared."""
    square = of_base = 0.0
    for name, info in base.tensors.items():
        others = [each.tensors[name] for each in (first, second) if name in each.tensors]
        alike = all(other.shape == info.shape and other.dtype in MASKABLE for other in others)
        if len(others) < 2 or not alike or info.dtype not in MASKABLE or name in base.ties:
            continue
        for at in range(0, info.numel, _RUN):
            stop = min(at + _RUN, info.numel)
            start = base.read(name, at, stop).double()
            lost = second.read(name, at, stop).to(torch.float64) - first.read(name, at, stop).to(torch.float64)
            square, of_base = square + float(lost @ lost), of_base + float(start @ start)
    return math.sqrt(square / of_base) if of_base else math.nan
