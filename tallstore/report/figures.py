"""The figures of a report. Each is drawn for the width it is given, on a desk as on a phone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tallstore.archive.manifests import PARTS
from tallstore.humanize import number, share, size
from tallstore.report.canvas import Canvas, shorten
from tallstore.report.facts import Facts, TaskFacts
from tallstore.report.heatmap import draw_heat_map
from tallstore.report.overlap import cluster

__all__ = ["FIGURES", "Drawn", "checkpoints", "saving"]

_BAR = 26
_ROW = 24
_MOST_ROWS = 60
_MOST_LAYERS = 120
_MOST_TASKS = 400
"""Beyond so many tasks a matrix has more cells than a screen has dots."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure: what it is called, who draws it, and whether it needs the masks to be counted."""

    title: str
    draw: Callable[[Facts, float], Canvas]
    masks: bool = False


def saving(facts: Facts) -> str:
    """The archive's size against that of the checkpoints."""
    return f"1/{facts.ratio:.3g}" if facts.ratio >= 1 else f"{1 / facts.ratio:.3g} times" if facts.ratio else "–"


def checkpoints(facts: Facts, width: float) -> list[tuple[str, int]]:
    """Base and tasks with their bytes; tasks in one where a bar of that width has no room for all."""
    base = facts.manifest.base.bytes
    if len(facts.tasks) > width / 2:
        return [("base", base), (f"{len(facts.tasks)} tasks", facts.separate - base)]
    return [("base", base), *((task.name, task.checkpoint or 0) for task in facts.tasks)]


def _bytes(facts: Facts, width: float) -> Canvas:
    """Two bars of one scale, and the shorter one again, enlarged and taken apart."""
    parts = facts.packed
    about = (
        f"Separate checkpoints: {size(facts.separate)}. Archive: {size(facts.total)}. "
        + ", ".join(f"{PARTS[part][0]} {size(count)}" for part, count in parts.items())
        + "."
    )
    canvas = Canvas(width, 190 + 22 * len(parts), about=about)
    whole = max(facts.separate, facts.total, 1)
    canvas.text(0, 9, f"{len(facts.tasks) + 1} separate checkpoints", "muted")
    canvas.text(width, 9, size(facts.separate), bold=True, align="right")
    pieces = checkpoints(facts, width)
    at, gap = 0.0, 1.5 if len(pieces) < width / 8 else 0.0
    for name, count in pieces:
        wide = width * count / whole
        tip = f"{name}: {size(count)}"
        canvas.box(at, 22, max(wide - gap, 0.3), _BAR, "base" if name == "base" else "some", tip=tip)
        at += wide
    canvas.text(0, 75, "packed into one archive", "muted")
    canvas.text(width, 75, f"{size(facts.total)}, {saving(facts)}", bold=True, align="right")
    short = width * facts.total / whole
    _stack(canvas, parts, 0, 88, short, tips=False)
    canvas.shape([(0, 118), (short, 118), (width, 142), (0, 142)], "rule", alpha=0.45)
    _stack(canvas, parts, 0, 146, width, tips=True)
    for row, (part, count) in enumerate(parts.items()):
        y = 196 + 22 * row
        canvas.box(0, y - 6, 12, 12, part)
        words, what = PARTS[part]
        canvas.text(20, y, words)
        canvas.text(width, y, f"{share(count / max(facts.total, 1))}", "muted", align="right")
        canvas.text(width - 64, y, size(count), align="right")
        if width > 560:
            canvas.text(150, y, what, "muted")
    return canvas


def _stack(canvas: Canvas, parts: Mapping[str, int], x: float, y: float, width: float, *, tips: bool) -> None:
    total = max(sum(parts.values()), 1)
    for part, count in parts.items():
        wide = width * count / total
        tip = f"{PARTS[part][0]}: {size(count)}, {share(count / total)}"
        canvas.box(x, y, wide, _BAR, part, tip=tip if tips else "")
        x += wide


def _tasks(facts: Facts, width: float) -> Canvas:
    """A row a task, those that kept least first: the score before and after, and the error."""
    scored = any(task.retention is not None for task in facts.tasks)
    rows = facts.ranked()[:_MOST_ROWS]
    label = min(170.0, width * 0.3)
    most = max([task.error or 0.0 for task in rows] + [1e-9])
    canvas = Canvas(width, 40 + _ROW * len(rows), about=_about_tasks(facts, rows, scored=scored))
    middle = label + (width - label) * (0.56 if scored else 0.0)
    if scored:
        shares = [task.retention for task in rows if task.retention is not None]
        low, high = min([*shares, 1.0]), max([*shares, 1.0])
        pad = max(0.1 * (high - low), 0.002)
        low, high = low - pad, high + pad
        left, right = label + 10, middle - 66
        canvas.text(left, 9, "score kept", "muted")

        def place(value: float) -> float:
            return left + (right - left) * (value - low) / (high - low)

        canvas.line([(place(1.0), 24), (place(1.0), canvas.height - 6)], "muted", dashed=True)
    canvas.text(middle + 8, 9, "error ‖τ̂ − τ‖ / ‖τ‖" if width > 560 else "error", "muted")
    for row, task in enumerate(rows):
        y = 36 + _ROW * row
        canvas.text(0, y, shorten(task.name, label))
        if scored and task.retention is not None:
            tip = f"{task.name}: {number(task.original, 4)} → {number(task.decoded, 4)}"
            canvas.line([(place(1.0), y), (place(task.retention), y)], "some", width=3)
            canvas.dot(place(task.retention), y, 5, "one" if task.retention < 0.99 else "some", tip=tip)
            canvas.text(middle - 10, y, share(task.retention), align="right")
        if task.error is not None:
            room = width - middle - 8 - 52
            tip = f"{task.name}: error {number(task.error)}"
            canvas.box(middle + 8, y - 7, max(room * task.error / most, 1), 14, "masks", tip=tip)
            canvas.text(middle + 14 + room * task.error / most, y, number(task.error), "muted")
    return canvas


def _about_tasks(facts: Facts, rows: Sequence[TaskFacts], *, scored: bool) -> str:
    words = [f"{len(rows)} of {len(facts.tasks)} tasks, those that kept least first."]
    if scored:
        words.append(f"Mean score kept {share(facts.retention)}.")
    if facts.error is not None:
        words.append(f"Mean relative error {number(facts.error)}.")
    if facts.worst is not None:
        words.append(f"{facts.worst.name} kept least.")
    return " ".join(words)


def _agreement(facts: Facts, width: float) -> Canvas:
    """How many tasks use a parameter: nobody, one, more."""
    assert facts.masks is not None
    profile = [float(value) for value in facts.masks.agreement.profile]
    tasks = len(facts.tasks)
    none, one, some = profile[0], sum(profile[1:2]), sum(profile[2:])
    kinds = {
        "none": (f"catastrophic, no task: {share(none)}", none),
        "one": (f"selfish, one task: {share(one)}", one),
        "some": (f"general, two and more: {share(some)}", some),
    }
    about = (
        f"Of {facts.masks.agreement.parameters:,} parameters: " + ", ".join(text for text, _ in kinds.values()) + "."
    )
    narrow = width < 560
    canvas = Canvas(width, 268 + (44 if narrow else 0), about=about)
    at = 0.0
    for row, (role, (text, _)) in enumerate(kinds.items()):
        x, y = (0, 10 + 22 * row) if narrow else (at, 10)
        canvas.box(x, y - 6, 12, 12, role)
        canvas.text(x + 18, y, text)
        at += width / 3
    top, bottom = (88 if narrow else 44), canvas.height - 38
    slot = width / (tasks + 1)
    most = max([*profile, 1e-9])
    every = max(1, round(30 / slot))
    for n, value in enumerate(profile):
        role = ("none", "one")[n] if n < 2 else "some"
        tall = (bottom - top - 16) * value / most
        gap = 4 if slot > 16 else 0.5
        tip = f"used by {n} of {tasks} tasks: {share(value)}"
        canvas.box(n * slot + gap / 2, bottom - tall, slot - gap, tall, role, tip=tip)
        if slot > 42:
            canvas.text((n + 0.5) * slot, bottom - tall - 9, share(value), "muted", size=11, align="center")
        if n % every == 0 and (n + 0.5) * slot < width - 8:
            canvas.text((n + 0.5) * slot, bottom + 13, str(n), align="center")
    canvas.line([(0, bottom), (width, bottom)], "muted")
    canvas.text(width / 2, canvas.height - 8, "tasks that use the parameter", "muted", align="center")
    return canvas


def _layers(facts: Facts, width: float) -> Canvas:
    """The share of each layer that each task uses."""
    assert facts.masks is not None
    layers, tasks = facts.masks.layers, facts.masks.tasks[:_MOST_TASKS]
    if not layers:
        return _words("no tensor has a mask", width)
    names, values = _fewer([[shares.get(task, np.nan) for task in tasks] for shares in layers.values()], list(layers))
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    of = "each task" if len(tasks) == len(facts.tasks) else f"each of the first {len(tasks)} tasks"
    about = f"Share of each of {len(layers)} layers that {of} uses, from {share(low)} to {share(high)}."
    return draw_heat_map(values, names, tasks, width, about=about, scale=(low, high), square=False)


def _fewer(rows: list[list[float]], names: list[str]) -> tuple[list[str], np.ndarray]:
    """At most so many rows: neighbours are put together, and their mean is shown."""
    run = -(-len(rows) // _MOST_LAYERS)
    cut = [slice(at, at + run) for at in range(0, len(rows), run)]
    table = np.array(rows, float).reshape(len(rows), -1)
    if run == 1:
        return names, table
    joined = []
    for each in cut:
        known = np.isfinite(table[each])
        total = np.where(known, table[each], 0).sum(0)
        joined.append(np.divide(total, known.sum(0), out=np.full(table.shape[1], np.nan), where=known.any(0)))
    return [f"{names[each][0]} … {names[each][-1]}" for each in cut], np.array(joined)


def _overlap(facts: Facts, width: float) -> Canvas:
    """Which tasks use the same parameters, similar tasks side by side."""
    assert facts.masks is not None
    both = facts.masks.agreement.jaccard
    tasks = facts.masks.tasks
    if not 2 <= len(tasks) <= _MOST_TASKS:
        few = len(tasks) < 2
        return _words(
            "one task overlaps with nothing" if few else f"{len(tasks)} tasks are too many for a matrix", width
        )
    clusters = cluster(both)
    values = both[np.ix_(clusters.order, clusters.order)].astype(float)
    np.fill_diagonal(values, np.nan)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    i, j = np.unravel_index(np.nanargmax(values), values.shape)
    names = [tasks[n] for n in clusters.order]
    about = (
        f"Overlap of the parameters that two tasks use, {low:.2f} to {high:.2f}; "
        f"most alike are {names[i]} and {names[j]}."
    )
    return draw_heat_map(
        values, names, names, width, about=about, scale=(low, high), square=True, joins=clusters.joins, shares=False
    )


def _words(words: str, width: float) -> Canvas:
    """What is said where there is nothing to draw."""
    canvas = Canvas(width, 40, about=words)
    canvas.text(0, 20, words, "muted")
    return canvas


FIGURES: Mapping[str, Drawn] = {
    "bytes": Drawn(title="Bytes", draw=_bytes),
    "tasks": Drawn(title="What each task kept", draw=_tasks),
    "layers": Drawn(title="Where tasks differ from the base", draw=_layers, masks=True),
    "agreement": Drawn(title="Who uses a parameter", draw=_agreement, masks=True),
    "overlap": Drawn(title="Which tasks use the same parameters", draw=_overlap, masks=True),
}
"""By the name of its file."""
