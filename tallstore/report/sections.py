"""What a report says, section by section."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tallstore.archive.ancestry import recipe_in_words, tree_of
from tallstore.archive.manifests import notes_of, warnings_of
from tallstore.humanize import number, share, size
from tallstore.report.facts import Facts
from tallstore.report.figures import FIGURES, saving
from tallstore.report.tables import Table, by_layer, by_pair, by_profile, by_source, by_task, by_whole

__all__ = ["Section", "StatTile", "lead", "sections", "tiles"]

_LONG = 300
"""Letters of a value that are shown."""
_MOST_VALUES = 60


@dataclass(frozen=True, kw_only=True)
class StatTile:
    """One number, large."""

    what: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the page."""

    id: str
    title: str
    text: tuple[str, ...] = ()
    figure: str = ""
    caption: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    drawn: Mapping[str, Any] = field(default_factory=dict)
    """The figure for wide and for narrow pages; put in by who makes the page."""


def lead(facts: Facts) -> str:
    """The archive in a sentence."""
    tasks = len(facts.tasks)
    models = "One fine-tuned model and its base" if tasks == 1 else f"{tasks} fine-tuned models and their base"
    return f"{models}: {size(facts.separate)} as checkpoints, {size(facts.total)} in this archive."


def tiles(facts: Facts) -> list[StatTile]:
    """The numbers that people look for first."""
    worst = facts.worst
    shown = [
        StatTile(what="archive", value=size(facts.total), note=f"instead of {size(facts.separate)}"),
        StatTile(what="size", value=saving(facts), note=f"of {len(facts.tasks) + 1} checkpoints"),
        StatTile(what="bits", value=number(facts.bits, 2), note="per parameter and task, the base not counted"),
    ]
    if facts.retention is not None and worst is not None:
        note = f"at worst {share(worst.retention)}: {worst.name}"
        shown.append(StatTile(what="score kept", value=share(facts.retention), note=note))
    elif facts.error is not None and worst is not None:
        note = f"at worst {number(worst.error)}: {worst.name}"
        shown.append(StatTile(what="relative error", value=number(facts.error), note=note))
    return shown


def sections(facts: Facts) -> list[Section]:
    """All of the page, in order."""
    counted = [_LAYERS, _AGREEMENT, _OVERLAP] if facts.masks is not None else [_uncounted]
    told = [_told] if any(_warnings_and_notes(facts)) else []
    left = [_left_out] if any(_left(facts)) else []
    family = [_family] if tree_of(facts.manifest) else []
    return [make(facts) for make in (_bytes, _tasks, *family, *told, *counted, _wholes, *left, _provenance)]


def _family(facts: Facts) -> Section:
    """Which tasks are made of which."""
    made = [
        (name, recipe_in_words(task.relatives))
        for name, task in facts.manifest.tasks.items()
        if task.relatives is not None
    ]
    more = f" {len(made) - _MOST_VALUES} more are not listed." if len(made) > _MOST_VALUES else ""
    text = (
        f"{len(made)} of {len(facts.tasks)} tasks are made of others: merges, kept as weights and a method, and tasks "
        f"that are coded on another one. All others are coded against the base.{more}"
    )
    return Section(id="family", title="Family", text=(text,), facts=tuple(made[:_MOST_VALUES]))


def _bytes(facts: Facts) -> Section:
    words = ["The upper bars have one scale; the lowest is the archive again, enlarged and taken apart."]
    if facts.manifest.base.storage == "reference":
        words.append("The base is not in the archive: it is named, and checked by hash when it is used.")
    return Section(id="bytes", title=FIGURES["bytes"].title, figure="bytes", caption=" ".join(words))


def _tasks(facts: Facts) -> Section:
    text = "The error is ‖τ̂ − τ‖ / ‖τ‖: how far what comes back is from what fine-tuning changed, of all it changed."
    if facts.retention is None:
        text += " No scores were recorded: pack with an evaluator, and the score kept is here too."
    if all(task.error is None for task in facts.tasks):
        return Section(id="tasks", title=FIGURES["tasks"].title, text=(text,), table=by_task(facts))
    return Section(
        id="tasks",
        title=FIGURES["tasks"].title,
        text=(text,),
        figure="tasks",
        caption="Those that kept least come first.",
        table=by_task(facts),
    )


def _masked(name: str, text: str, caption: str, table: Callable[[Facts], Table]) -> Callable[[Facts], Section]:
    def make(facts: Facts) -> Section:
        title = FIGURES[name].title
        return Section(id=name, title=title, text=(text,), figure=name, caption=caption, table=table(facts))

    return make


_LAYERS = _masked(
    "layers",
    "The share of a layer's parameters that a task uses: where its mask is on and adds something to the base.",
    "Per cent of a layer's parameters, by layer and task.",
    by_layer,
)
_AGREEMENT = _masked(
    "agreement",
    "A parameter that no task uses is catastrophic, one that a single task uses selfish, any other general. Consensus "
    "merging drops the first kind at k = 1 and the second at k = 2.",
    "Share of the parameters by how many tasks use them.",
    by_profile,
)
_OVERLAP = _masked(
    "overlap",
    "|A ∩ B| / |A ∪ B| of the parameters that two tasks use. Similar tasks stand side by side; the tree says in which "
    "order they would be joined (average linkage).",
    "Overlap of every two tasks.",
    by_pair,
)


def _uncounted(facts: Facts) -> Section:
    text = (
        f"What moved was not counted, for some of it depends on the base: {facts.uncounted}"
        if facts.uncounted
        else "The masks were not counted: make the report without --no-masks (masks=False) for density by layer, "
        "agreement and overlap."
    )
    return Section(id="masks", title="Masks", text=(text,))


def _wholes(facts: Facts) -> Section:
    if not facts.wholes:
        return Section(id="wholes", title="Stored whole", text=("Nothing is stored whole.",))
    total = sum(row.bytes for row in facts.wholes)
    text = (
        f"{size(total)} of tensors are stored whole and come back bit for bit. Why, the packer says, or the base tells."
    )
    return Section(id="wholes", title="Stored whole", text=(text,), table=by_whole(facts))


def _told(facts: Facts) -> Section:
    rows = list(_warnings_and_notes(facts))
    more = len(rows) - _MOST_VALUES
    return Section(
        id="told",
        title="Warnings and notes",
        text=("What the packer said of the tasks.", *([f"{more} more are in `tallstore info`."] if more > 0 else [])),
        facts=tuple(rows[:_MOST_VALUES]),
    )


def _warnings_and_notes(facts: Facts) -> Iterator[tuple[str, str]]:
    for warning in warnings_of(facts.manifest):
        yield "warning", _shown(warning)
    for name, task in facts.manifest.tasks.items():
        for note in notes_of(name, task):
            yield "note", _shown(note)


def _left_out(facts: Facts) -> Section:
    return Section(
        id="left-out",
        title="Not taken along",
        text=("What lay in the folders and files that were packed, and is not in the archive.",),
        facts=tuple(islice(_left(facts), _MOST_VALUES)),
    )


def _left(facts: Facts) -> Iterator[tuple[str, str]]:
    for task, said in facts.manifest.tasks.items():
        left = said.measured.get("left_out")
        for name, why in left.items() if isinstance(left, dict) else ():
            yield f"{task}: {_shown(name)}", _shown(why)


def _provenance(facts: Facts) -> Section:
    return Section(
        id="provenance",
        title="Provenance",
        text=("What the archive says of its own making. Hashes are checked whenever bytes are read.",),
        facts=tuple(islice(_pairs(facts), _MOST_VALUES)),
        table=by_source(facts),
    )


def _pairs(facts: Facts) -> Iterator[tuple[str, str]]:
    manifest = facts.manifest
    base = manifest.base
    yield "written by", _shown(manifest.writer)
    yield "format", f"tallstore {manifest.version}"
    where = "in the archive" if base.storage == "embed" else "referenced, not in the archive"
    yield "base", f"{len(base.tensors)} tensors, {size(base.bytes)}, {where}"
    for key, value in islice(base.source.items(), _MOST_VALUES):
        yield f"base: {_shown(key)}", _shown(value)
    yield "base: identity", base.identity
    for group in islice(manifest.groups, _MOST_VALUES):
        several = f" of {len(group.tasks)} tasks" if len(manifest.groups) > 1 else ""
        yield f"recipe{several}", _shown(dict(group.recipe))
    for key, value in islice(manifest.options.items(), _MOST_VALUES):
        if value is not None and value != []:
            yield f"option: {_shown(key)}", _shown(value)


def _shown(value: object) -> str:
    """A value of anybody's JSON, as one line of limited length."""
    if isinstance(value, dict):
        words = ", ".join(f"{key} {_shown(inner)}" for key, inner in islice(value.items(), _MOST_VALUES))
    elif isinstance(value, str):
        words = value
    else:
        words = json.dumps(value, ensure_ascii=False)
    return words if len(words) <= _LONG else f"{words[: _LONG - 1]}…"
