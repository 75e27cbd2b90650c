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


def show(console: Console, facts: dict[str, Any], path: str) -> None:
    """The table that a person likes to read."""
    sizes = facts["bytes"]
    rows = []
    for name, task in facts["tasks"].items():
        own, plain = task.get("bytes") or 0, task.get("checkpoint_bytes") or 0
        rows.append(
            [
                name,
                output.share(task.get("density")),
                output.number(task.get("relative_error")),
                output.number(task.get("cosine")),
                output.size(own),
                output.share(own / plain if plain else None),
            ]
        )
    columns = [
        ("task", False),
        ("mask on", True),
        ("error ‖τ̂−τ‖/‖τ‖", True),
        ("cosine", True),
        ("own bytes", True),
        ("of its checkpoint", True),
    ]
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
