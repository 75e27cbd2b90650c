"""The numbers behind the figures, as tables: to sort, to search, and to be read aloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tallstore.humanize import number, share, size
from tallstore.report.facts import Facts, TaskFacts

__all__ = ["Cell", "Column", "Table", "by_layer", "by_pair", "by_profile", "by_source", "by_task", "by_whole"]

_MOST_ROWS = 1000
_MOST_CELLS = 4000
_MOST_TASKS_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands in a cell, what it is sorted by, and how long its bar is, in per cent."""

    text: str
    value: float | None = None
    bar: float | None = None
    number: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading."""

    title: str
    number: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page."""

    summary: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    folded: bool = True
    """Whether it is shown only to those who ask for it."""
    search: str = ""
    """The label of its search box; empty for none."""
    sorted: bool = True
    """Whether its headings sort it."""
    more: str = ""
    """What is said of rows that are not there."""


def _text(words: str) -> Cell:
    return Cell(text=words)


def _number(value: float | None, words: str, most: float | None = None) -> Cell:
    if value is None:
        return Cell(text="–", number=True)
    bar = None if not most else round(min(max(100 * value / most, 0), 100), 1)
    return Cell(text=words, value=float(f"{value:.9g}"), bar=bar)


_TASK_COLUMNS: dict[str, tuple[Callable[[TaskFacts], float | None], Callable[[float], str], bool]] = {
    # heading: (value, as text, whether a bar helps)
    "score kept": (lambda t: t.retention, share, False),
    "original": (lambda t: t.original, lambda v: number(v, 4), False),
    "decoded": (lambda t: t.decoded, lambda v: number(v, 4), False),
    "error": (lambda t: t.error, number, True),
    "cosine": (lambda t: t.cosine, number, False),
    "divergence": (lambda t: t.divergence, number, True),
    "changed": (lambda t: t.density, share, True),
    "own bytes": (lambda t: t.own, size, False),
    "of its checkpoint": (lambda t: t.own / t.checkpoint if t.checkpoint else None, share, False),
    "exact layer": (lambda t: t.exact or None, size, False),
}


def by_task(facts: Facts) -> Table:
    """Each task: columns of which no task has anything are left out."""
    columns = {
        title: (value, words, max([0.0, *(value(t) or 0.0 for t in facts.tasks)]) if barred else None)
        for title, (value, words, barred) in _TASK_COLUMNS.items()
        if any(value(task) is not None for task in facts.tasks)
    }

    def cell(task: TaskFacts, title: str) -> Cell:
        value, words, most = columns[title]
        content = value(task)
        if title == "error" and task.bit_for_bit:
            return _number(0.0, "bit for bit", most)
        return _number(content, "" if content is None else words(content), most)

    return Table(
        summary="Each task, what it cost and what it kept",
        columns=[Column(title="task", number=False), *(Column(title=title) for title in columns)],
        rows=[[_text(_named(task)), *(cell(task, title) for title in columns)] for task in facts.tasks],
        folded=False,
        search="Find a task",
    )


def _named(task: TaskFacts) -> str:
    return task.name if task.adapter is None else f"{task.name} (adapter: {task.adapter})"


def by_layer(facts: Facts) -> Table:
    """Density by layer: of every task where that is readable, else the mean and the ends."""
    assert facts.masks is not None
    layers, tasks = facts.masks.layers, facts.masks.tasks
    if len(layers) * len(tasks) <= _MOST_CELLS:
        columns = [Column(title=task) for task in tasks]
        rows = [
            [_text(layer), *(_number(shares.get(task), share(shares.get(task))) for task in tasks)]
            for layer, shares in layers.items()
        ]
    else:
        columns = [Column(title=title) for title in ("mean", "least", "most")]
        rows = [
            [
                _text(layer),
                *(
                    _number(v, share(v))
                    for v in (sum(shares.values()) / max(len(shares), 1), min(shares.values()), max(shares.values()))
                ),
            ]
            for layer, shares in layers.items()
            if shares
        ]
    return _cut(
        Table(
            summary="Density by layer, in numbers", columns=[Column(title="layer", number=False), *columns], rows=rows
        )
    )


def by_profile(facts: Facts) -> Table:
    """The share of parameters that exactly n tasks use."""
    assert facts.masks is not None
    kinds = {0: "catastrophic", 1: "selfish"}
    return Table(
        summary="The agreement profile, in numbers",
        columns=[Column(title="used by"), Column(title="share"), Column(title="kind", number=False)],
        rows=[
            [_text(str(n)), _number(value, share(value)), _text(kinds.get(n, "general"))]
            for n, value in facts.masks.profile.items()
        ],
        sorted=False,
    )


def by_pair(facts: Facts) -> Table:
    """Pairs of tasks, those that overlap most first."""
    assert facts.masks is not None
    tasks, agreement = facts.masks.tasks, facts.masks.agreement
    one, other = np.triu_indices(len(tasks), 1)
    alike = agreement.jaccard[one, other]
    within = agreement.containment
    order = np.argsort(-alike, kind="stable")
    rows = []
    for at in order[:_MOST_ROWS].tolist():
        i, j = int(one[at]), int(other[at])
        shares = (float(alike[at]), float(within[i, j]), float(within[j, i]))
        rows.append([_text(tasks[i]), _text(tasks[j]), *(_number(v, f"{v:.3f}") for v in shares)])
    left = len(order) - len(rows)
    return Table(
        summary="Pairs of tasks, in numbers",
        columns=[
            Column(title="A", number=False),
            Column(title="B", number=False),
            Column(title="|A ∩ B| / |A ∪ B|"),
            Column(title="|A ∩ B| / |A|"),
            Column(title="|A ∩ B| / |B|"),
        ],
        rows=rows,
        search="Find a pair",
        more=f"And {left:,} pairs that overlap less." if left else "",
    )


def by_whole(facts: Facts) -> Table:
    """What is stored whole; tasks that store a tensor for one reason share a row."""
    rows = []
    for row in facts.wholes:
        first = ", ".join(row.tasks[:_MOST_TASKS_NAMED])
        tasks = (
            first if len(row.tasks) <= _MOST_TASKS_NAMED else f"{first} and {len(row.tasks) - _MOST_TASKS_NAMED} more"
        )
        shapes = ", ".join("×".join(map(str, shape)) or "one number" for shape in row.shapes[:_MOST_TASKS_NAMED])
        if len(row.shapes) > _MOST_TASKS_NAMED:
            shapes += ", …"
        rows.append(
            [
                _text(row.name),
                _text(row.why),
                _number(row.bytes, size(row.bytes)),
                _text(f"{shapes} {'/'.join(row.dtypes)}"),
                _text("every task" if len(row.tasks) == len(facts.tasks) else tasks),
            ]
        )
    columns = [
        Column(title="tensor", number=False),
        Column(title="why", number=False),
        Column(title="bytes"),
        Column(title="shape and type", number=False),
        Column(title="of", number=False),
    ]
    return _cut(
        Table(
            summary="Tensors stored whole and exact, and why",
            columns=columns,
            rows=rows,
            folded=len(rows) > 12,
            search="Find a tensor" if len(rows) > 8 else "",
        )
    )


def by_source(facts: Facts) -> Table | None:
    """Where tasks come from, as far as the archive says."""
    known = {name: task.source for name, task in facts.manifest.tasks.items() if task.source}
    if not known:
        return None
    rows = [
        [_text(name), _text(", ".join(f"{key} {value}" for key, value in source.items())[:_MOST_ROWS])]
        for name, source in known.items()
    ]
    columns = [Column(title="task", number=False), Column(title="source", number=False)]
    return Table(summary="Where the tasks come from", columns=columns, rows=rows, folded=len(rows) > 24)


def _cut(table: Table) -> Table:
    if len(table.rows) <= _MOST_ROWS:
        return table
    return Table(
        summary=table.summary,
        columns=table.columns,
        rows=table.rows[:_MOST_ROWS],
        folded=table.folded,
        search=table.search,
        more=f"And {len(table.rows) - _MOST_ROWS:,} rows more.",
    )
