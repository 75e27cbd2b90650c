"""`tallstore info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tallstore.cli import output
from tallstore.stores import Access, open_any

if TYPE_CHECKING:
    from tallstore.format.manifest import Manifest, Task


def info(
    zoo: Annotated[
        str,
        typer.Argument(metavar="ZOO", help="The archive: a .tall file, a folder, or an address such as hf://user/zoo."),
    ],
    masks: Annotated[
        bool, typer.Option("--masks", help="Count which parameters the tasks use, alone and together.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what an archive holds, what it kept of each task, and what it saves.

    Examples:

      tallstore info zoo.tall

      tallstore info zoo.tall --masks
    """
    from tallstore.archive.manifests import read_manifest, summary

    counted = None
    if masks:
        import tallstore

        with (
            tallstore.open(zoo) as opened,
            output.progress("counting", quiet=as_json) as progress,
        ):
            counted = opened.mask_statistics(progress=progress)
    with open_any(zoo, access=Access()) as store:
        manifest = read_manifest(store)
        facts = summary(store, manifest)
    if as_json:
        output.print_json(facts if counted is None else {**facts, "masks": counted.to_json()})
        return
    console = output.console()
    show(console, facts, manifest, zoo)
    if counted is not None:
        from tallstore.cli.masks import show as show_masks

        show_masks(console, counted)


_NONE = output.number(None)
_COLUMNS = {
    "group": ("group", False),
    "density": ("changed", True),
    "relative_error": ("error ‖τ̂−τ‖/‖τ‖", True),
    "cosine": ("cosine", True),
    "divergence": ("divergence", True),
    "lambda": ("λ", True),
    "original": ("score", True),
    "decoded": ("score kept", True),
    "bytes": ("own bytes", True),
    "share": ("of its checkpoint", True),
    "exact_bytes": ("exact layer", True),
}
_ALWAYS = {"density", "relative_error", "cosine", "bytes", "share"}
_EXPENDABLE = tuple(
    _COLUMNS[key][0]
    for key in ("cosine", "share", "lambda", "density", "group", "exact_bytes", "divergence", "original", "bytes")
)
"""What goes first where there is no room."""
_BAR = 24


def _cell(key: str, task: Task) -> str:
    """What a column says of a task; a dash where nothing was measured."""
    if key in {"original", "decoded"}:
        return output.number(task.number("scores", key), 4)
    if key == "group":
        return task.group
    if key == "share":
        own, plain = task.number("bytes"), task.number("checkpoint_bytes")
        return output.share(own / plain if own and plain else None)
    if key == "relative_error" and (task.bit_for_bit or task.adapter is not None):
        return "bit for bit"
    value = task.number(key)
    if key == "density":
        return output.share(value)
    if key in {"bytes", "exact_bytes"}:
        return _NONE if value is None else output.size(value)
    return output.number(value, 1 if key == "lambda" else 3)


def show(console: Console, facts: dict[str, Any], manifest: Manifest, path: str, *, notes: bool = True) -> None:
    """The tables that a person likes to read; and `notes` on tasks."""
    from tallstore.archive.manifests import PARTS

    sizes, tasks = facts["bytes"], manifest.tasks
    several = len(manifest.groups) > 1
    columns = {
        key: _COLUMNS[key]
        for key in _COLUMNS
        if key in _ALWAYS
        or (key == "group" and several)
        or (key != "group" and any(_cell(key, task) != _NONE for task in tasks.values()))
    }
    rows = [[name, *(_cell(key, task) for key in columns)] for name, task in tasks.items()]
    title = f"{path} — {len(rows)} {'task' if len(rows) == 1 else 'tasks'}"
    console.print(output.fitted(console, title, [("task", False), *columns.values()], rows, _EXPENDABLE))
    console.print()
    base = facts["base"]
    where = "in the archive" if base["storage"] == "embed" else "referenced, not in the archive"
    counts = sizes | {"files": sizes["files"] + sizes["manifest"]}
    notes_on = {"base": f"{output.size(base['bytes'])} of weights, {where}"}
    if all(task.bit_for_bit for task in tasks.values()):
        notes_on["masks"] = "what each task changed, bit for bit"
    lines = [
        [name, output.size(counts[part]), output.bar(counts[part], sizes["total"], _BAR), notes_on.get(part, what)]
        for part, (name, what) in PARTS.items()
        if counts[part] or part == "base"
    ]
    lines.append(["archive", output.size(sizes["total"]), "", ""])
    headings = [("part", False), ("bytes", True), ("of all", False), ("what it is", False)]
    console.print(output.fitted(console, None, headings, lines, ("what it is", "of all")))
    output.say(console, _saving(facts))
    if facts["family"]:
        output.say(console, "\n" + "\n".join(facts["family"]))
    for told in (*(f"warning: {warning}" for warning in facts["warnings"]), *facts["notes"]) if notes else ():
        output.say(console, told)
    for name, task in tasks.items():
        left = task.measured.get("left_out")
        if isinstance(left, dict) and left:
            output.say(console, f"not taken along with {name}: {', '.join(map(str, left))}")


def _saving(facts: dict[str, Any]) -> str:
    separate, total = facts["checkpoints_bytes"], facts["bytes"]["total"]
    count, times = len(facts["tasks"]) + 1, output.number(separate / total, 1)
    return (
        f"\n{output.size(total)} instead of {output.size(separate)} as {count} checkpoints: 1/{times}; "
        f"{output.number(facts['bits_per_parameter'], 2)} bits per parameter and task, the base not counted"
    )
