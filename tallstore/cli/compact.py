"""`tallstore compact`."""

from __future__ import annotations

from typing import Annotated

import typer

from tallstore.cli import output
from tallstore.cli.add import show


def compact(
    zoo: Annotated[str, typer.Argument(metavar="ZOO", help="The archive: a .tall file or a folder.")],
    base: Annotated[str | None, typer.Option(help="The base, where the archive only references it.")] = None,
    parents: Annotated[
        bool, typer.Option("--parents/--no-parents", help="Look for better parents of tasks without loss.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar, no words.")] = False,
) -> None:
    """Rewrite what no longer pays in an archive that grew and shrank. What it decodes to stays, bit for bit.

    Groups that share nothing become one, vectors lose what no task uses any more, and few tasks that are left with a
    vector do without it. Without loss, tasks that another one explains better are coded against that one. Where nothing
    pays, nothing is written.

    Examples:

      tallstore compact zoo.tall
    """
    import tallstore

    with output.progress("compacting", quiet=quiet or as_json) as progress:
        report = tallstore.compact(zoo, base=base, parents=parents, progress=progress)
    if not as_json and not quiet:
        console = output.console()
        said = {
            "groups that became part of another": report.merged,
            "vectors without what no task uses": report.pruned,
            "groups that do without their vector": report.resolved,
            "files that tasks share now": report.shared,
            "tasks on a better parent": [f"{name} on {other}" for name, other in report.reparented.items()],
        }
        for what, names in said.items():
            if names:
                output.say(console, f"{what}: {', '.join(names)}")
        if not report.changed:
            output.say(console, "nothing to gain: the archive is as it was")
    show(report, as_json=as_json, quiet=quiet)
