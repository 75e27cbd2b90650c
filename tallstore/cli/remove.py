"""`tallstore remove`."""

from __future__ import annotations

from typing import Annotated

import typer

from tallstore.cli import complete, output
from tallstore.cli.add import show


def remove(
    zoo: Annotated[str, typer.Argument(metavar="ZOO", help="The archive: a .tall file or a folder.")],
    tasks: Annotated[list[str], typer.Argument(metavar="TASK…", help="Which tasks.", autocompletion=complete.tasks)],
    recode: Annotated[
        bool,
        typer.Option("--re-code", help="Code tasks that are made of these against the base; every bit of them stays."),
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="With --re-code, the base, where the archive only references it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar, no words.")] = False,
) -> None:
    """Remove tasks from an archive, without a trace: parts, files, names, what was measured.

    A task that others are made of (merges, tasks tuned from it) is refused, unless they go too or are coded anew.
    A vector that other tasks share stays as it was made; `compact` takes out of it what nobody else uses. A push then
    deletes on the Hub what is no longer there; its history keeps it until that is squashed.

    Examples:

      tallstore remove zoo.tall mr

      tallstore remove zoo.tall mr && tallstore compact zoo.tall

      tallstore remove zoo.tall trec --re-code
    """
    import tallstore

    with output.progress("removing", quiet=quiet or as_json) as progress:
        report = tallstore.remove(zoo, tasks, recode=recode, base=base, progress=progress)
    show(report, as_json=as_json, quiet=quiet)
