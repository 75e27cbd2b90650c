"""A training run: its checkpoints as tasks of one archive, each with its step, near ones coded against each other."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tallstore.checkpoints import Source
from tallstore.editing.adding import add_known
from tallstore.editing.report import GrowReport
from tallstore.encoder import Progress
from tallstore.errors import InputError

__all__ = ["add_run", "checkpoints_of"]

_FOLDER = re.compile(r"(?:checkpoint|step|global_step|ckpt)[-_]?([0-9]{1,12})", re.ASCII | re.IGNORECASE)
_STATE = "trainer_state.json"
_MOST_STATE = 1 << 26
"""Bytes of a trainer's state that are read."""


def add_run(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    base: Source | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> GrowReport:
    """Add the checkpoints of a run to an archive on this machine, each as a task with its step.

    In archives without loss, checkpoints that are near to another one are coded against it; no chain is longer than
    others make it (see `tallstore.add`). Of a run that was added before, the new checkpoints are added.

    Args:
        path: the archive, a folder or a `.tall` file. It is replaced in one step, or stays as it was.
        folder: of the run, with `checkpoint-100`, `checkpoint-200` and so on, as trainers write them.
        name: of the run; by default the folder's. Tasks are called `<name>-<step>`, and found as `<name>@<step>` too.
        base: where the archive only references it.
        progress: called now and then with a text, how much is done, and of how much.
        **options: see `tallstore.Options`; by default those that the archive was packed with.

    Raises:
        InputError: there is no checkpoint, or what `tallstore.add` says.
    """
    from tallstore.archive.manifests import read_manifest
    from tallstore.stores import open_store

    called = name or Path(folder).resolve().name
    checkpoints = checkpoints_of(Path(folder))
    with open_store(path) as store:
        there = read_manifest(store).tasks
    new = {step: each for step, each in checkpoints.items() if f"{called}-{step}" not in there}
    if not new:
        raise InputError(f"{folder}: every checkpoint of it is in the archive already: there is nothing to add")
    tasks: dict[str, Source] = {f"{called}-{step}": each for step, each in new.items()}
    told = {
        f"{called}-{step}": {"run": {"name": called, "step": step, **_score(each, step)}} for step, each in new.items()
    }
    return add_known(path, tasks, told, base=base, progress=progress, **options)


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """The checkpoints below a run's folder, by step, in order. Raises InputError where there is none."""
    try:
        below = [each for each in folder.iterdir() if each.is_dir()]
    except OSError as error:
        raise InputError(f"{folder}: no such folder of a run, or one that cannot be read ({error.strerror})") from error
    by_step: dict[int, Path] = {}
    for each in sorted(below):
        match = _FOLDER.fullmatch(each.name)
        if match is None:
            continue
        step = int(match[1])
        if step in by_step:
            raise InputError(f"{folder}: {by_step[step].name} and {each.name} are of one step: take one of them away")
        by_step[step] = each
    if not by_step:
        raise InputError(f"{folder}: holds no checkpoint-<step>: name the folder that the trainer wrote to")
    return dict(sorted(by_step.items()))


def _score(folder: Path, step: int) -> dict[str, Any]:
    """What the trainer says of a checkpoint, if it does: its state is anybody's JSON."""
    state = folder / _STATE
    try:
        if not state.is_file() or state.stat().st_size > _MOST_STATE:
            return {}
        facts: Any = json.loads(state.read_text(encoding="utf-8"))
        rows = facts["log_history"]
        told = [row for row in rows if isinstance(row, Mapping) and row.get("step") == step]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    scores = {
        key: float(value)
        for row in told
        for key, value in row.items()
        if isinstance(key, str) and key.startswith("eval_") and not isinstance(value, bool)
        if isinstance(value, int | float) and math.isfinite(value)
    }
    scored = [key for key in scores if not key.endswith(("loss", "runtime", "per_second"))]
    key = next(iter(scored), "eval_loss" if "eval_loss" in scores else None)
    return {} if key is None else {"score": scores[key], "metric": key.removeprefix("eval_")}
