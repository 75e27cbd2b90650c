"""`tallstore demo`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tallstore.cli import output


def demo(
    folder: Annotated[
        str, typer.Option("-o", "--output", help="A new folder for the demo's models and archive.")
    ] = "tallstore-demo",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")] = False,
) -> None:
    """Make a small real zoo, pack it, get every task back, and show what that cost and kept. Takes a minute.

    A small transformer is pre-trained on handwritten digits and fine-tuned on several questions about them. Nothing
    is downloaded.

    Example:

      tallstore demo
    """
    from tallstore.demo import run_demo

    with output.progress("demo", quiet=quiet or as_json) as progress:
        found = run_demo(folder, progress=progress)
    if as_json:
        output.print_json(found.to_json())
        return
    console = output.console()
    rows = [
        [
            task.name,
            task.question,
            output.share(task.accuracy_base),
            output.share(task.accuracy_before),
            output.share(task.accuracy_after),
            output.number(task.relative_error),
            output.size(task.archive_bytes),
        ]
        for task in found.tasks
    ]
    columns = [
        ("task", False),
        ("question", False),
        ("not tuned", True),
        ("original", True),
        ("from the archive", True),
        ("error", True),
        ("own bytes", True),
    ]
    console.print(output.table("accuracy on images that no model has seen", columns, rows))
    _sum_up(console, found.checkpoints_bytes, found.archive_bytes["total"], len(rows), found.retention)
    console.print(
        f"\nAll of it is in {folder}. Try next:\n"
        f"  tallstore info {found.archive}\n"
        f"  tallstore verify {found.archive}\n"
        f"  tallstore extract {found.archive} {found.tasks[0].name} -o {folder}/again",
        markup=False,
    )


def _sum_up(console: Console, separate: int, packed: int, tasks: int, retention: float) -> None:
    console.print(
        f"\n{tasks + 1} checkpoints of {output.size(separate)} became one archive of {output.size(packed)} "
        f"(1/{separate / packed:.1f}); accuracy kept: {output.share(retention)}."
    )
