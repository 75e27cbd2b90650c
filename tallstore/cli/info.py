"""`tallstore info`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from tallstore.cli import output


def info(
    zoo: Annotated[str, typer.Argument(metavar="ZOO", help="The archive: a .tall file or a folder.")],
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
    import tallstore

    counted = None
    with tallstore.open(zoo) as opened:
        facts = opened.info()
        if masks:
            with output.progress("counting", quiet=as_json) as progress:
                counted = opened.mask_statistics(progress=progress)
    if as_json:
        output.print_json(facts if counted is None else {**facts, "masks": counted.to_json()})
        return
    console = output.console()
    show(console, facts, zoo)
    if counted is not None:
        from tallstore.cli.masks import show as show_masks

        show_masks(console, counted)


_NONE = output.number(None)
_COLUMNS = {
    "density": ("mask on", True),
    "relative_error": ("error ‖τ̂−τ‖/‖τ‖", True),
    "cosine": ("cosine", True),
    "lambda": ("λ", True),
    "original": ("score", True),
    "decoded": ("score kept", True),
    "bytes": ("own bytes", True),
    "share": ("of its checkpoint", True),
    "exact_bytes": ("to be exact", True),
}
_ALWAYS = {"density", "relative_error", "cosine", "bytes", "share"}


def _cell(key: str, task: dict[str, Any]) -> str:
    """What a column says of a task; a dash where nothing was measured."""
    scores, own, plain = task.get("scores") or {}, task.get("bytes") or 0, task.get("checkpoint_bytes") or 0
    if key in {"original", "decoded"}:
        return output.number(scores.get(key), 4)
    if key == "share":
        return output.share(own / plain if plain else None)
    if key == "density":
        return output.share(task.get(key))
    if key in {"bytes", "exact_bytes"}:
        return output.size(task[key]) if key in task else _NONE
    return output.number(task.get(key), 1 if key == "lambda" else 3)


def show(console: Console, facts: dict[str, Any], path: str) -> None:
    """The table that a person likes to read."""
    sizes = facts["bytes"]
    tasks = facts["tasks"]
    columns = [
        _COLUMNS[key] for key in _COLUMNS if key in _ALWAYS or any(_cell(key, t) != _NONE for t in tasks.values())
    ]
    rows = [
        [name, *(_cell(key, task) for key, column in _COLUMNS.items() if column in columns)]
        for name, task in tasks.items()
    ]
    columns.insert(0, ("task", False))
    console.print(output.table(f"{path} — {len(rows)} tasks", columns, rows))
    console.print()
    base = facts["base"]
    where = "in the archive" if base["storage"] == "embed" else "referenced, not in the archive"
    console.print(
        output.table(
            None,
            [("part", False), ("bytes", True), ("", False)],
            [
                ["base", output.size(sizes["base"]), f"{output.size(base['bytes'])} of weights, {where}"],
                ["multi-task vector", output.size(sizes["vector"]), ""],
                ["masks", output.size(sizes["masks"]), ""],
                ["whole tensors", output.size(sizes["private"]), "heads and the like, exact"],
                ["files", output.size(sizes["files"] + sizes["manifest"]), "configurations, tokenizers, manifest"],
                ["archive", output.size(sizes["total"]), _saving(facts)],
            ],
        )
    )


def _saving(facts: dict[str, Any]) -> str:
    separate, total = facts["checkpoints_bytes"], facts["bytes"]["total"]
    count = len(facts["tasks"]) + 1
    return (
        f"instead of {output.size(separate)} as {count} checkpoints: 1/{separate / total:.1f}; "
        f"{facts['bits_per_parameter']:.2f} bits a parameter and task beside the base"
    )
