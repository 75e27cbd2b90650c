"""What tasks are made of, in words: for tables, reports and cards. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallstore.format.manifest import Manifest, Task
from tallstore.format.relatives import MergeRecipe, Relatives

__all__ = ["ancestry", "recipe_in_words", "runs_of", "step_of", "tree_of"]

_MOST = 8
"""Terms that are shown; more of them say nothing to a person."""


def recipe_in_words(relatives: Relatives) -> str:
    """`0.6·trec + 0.4·mr (linear)`; of a task with a parent, `on trec`."""
    if relatives.parent is not None:
        return f"on {relatives.parent}"
    if relatives.shares:
        more = f" and {len(relatives.tasks) - _MOST} more" if len(relatives.tasks) > _MOST else ""
        return f"with tensors of {', '.join(relatives.tasks[:_MOST])}{more}"
    terms = ""
    for task, weight in list(zip(relatives.tasks, relatives.merge.weights, strict=True))[:_MOST]:
        sign = ("−" if weight < 0 else "") if not terms else (" − " if weight < 0 else " + ")
        terms += f"{sign}{abs(weight):.4g}·{task}"
    more = f" + {len(relatives.tasks) - _MOST} more" if len(relatives.tasks) > _MOST else ""
    return f"{terms}{more} ({_how(relatives.merge)})"


def _how(merge: MergeRecipe) -> str:
    return f"consensus of {merge.k}" if merge.method == "consensus" else merge.method


def runs_of(manifest: Manifest) -> dict[str, list[dict[str, Any]]]:
    """By the name of a training run, its checkpoints in order of their steps, as far as tasks' records tell."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, task in manifest.tasks.items():
        run, step = task.measured.get("run"), task.number("run", "step")
        if isinstance(run, Mapping) and isinstance(run.get("name"), str) and step is not None:
            distances = {key: task.number("run", key) for key in ("moved", "moved_from_base")}
            row = {"step": int(step), **_row(name, task), **distances, "score": task.number("run", "score")}
            runs.setdefault(run["name"], []).append(row)
    return {name: sorted(rows, key=lambda row: int(row["step"])) for name, rows in runs.items()}


def step_of(manifest: Manifest, word: str) -> str | None:
    """The task that `run@step` means; None where there is none such."""
    run, at, step = word.rpartition("@")
    rows = runs_of(manifest).get(run, []) if at and step.isdecimal() else []
    return next((str(row["task"]) for row in rows if str(row["step"]) == step), None)


def ancestry(manifest: Manifest, task: str) -> list[dict[str, Any]]:
    """A task and all that it is made of, with how many generations lie between."""
    generations: dict[str, int] = {}
    waiting = [(task, 0)]
    while waiting:
        name, generation = waiting.pop(0)
        if name in generations:
            continue
        generations[name] = generation
        relatives = manifest.tasks[name].relatives
        waiting += [(other, generation + 1) for other in (relatives.tasks if relatives is not None else ())]
    return [{"generation": generation, **_row(name, manifest.tasks[name])} for name, generation in generations.items()]


def tree_of(manifest: Manifest) -> list[str]:
    """The family as lines: children under their parents, merges with what they are made of. Empty without any."""
    if all(task.relatives is None for task in manifest.tasks.values()):
        return []
    children: dict[str | None, list[str]] = {}
    for name, task in manifest.tasks.items():
        relatives = task.relatives
        apart = relatives is None or relatives.shares
        children.setdefault(None if apart or relatives is None else relatives.parent or "", []).append(name)
    merges = list(children.pop("", []))
    lines = ["base"]

    def put(names: list[str], indent: str) -> None:
        for number, name in enumerate(names):
            last = number + 1 == len(names)
            related = manifest.tasks[name].relatives
            shared = f" ({recipe_in_words(related)})" if related is not None and related.shares else ""
            lines.append(f"{indent}{'└─' if last else '├─'} {name}{shared}")
            put(children.get(name, []), indent + ("   " if last else "│  "))

    put(children.get(None, []), "")
    if merges:
        lines.append("merges")
        for number, name in enumerate(merges):
            relatives = manifest.tasks[name].relatives
            assert relatives is not None
            last = number + 1 == len(merges)
            lines.append(f"{'└─' if last else '├─'} {name} = {recipe_in_words(relatives)}")
            put(children.get(name, []), "   " if last else "│  ")
    return lines


def _row(name: str, task: Task) -> dict[str, Any]:
    size = task.number("bytes")
    return {
        "task": name,
        "made_of": None if task.relatives is None else recipe_in_words(task.relatives),
        "bytes": None if size is None else int(size),
    }
