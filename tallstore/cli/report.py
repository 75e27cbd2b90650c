"""`tallstore report`."""

from __future__ import annotations

from typing import Annotated

import typer

from tallstore.cli import output


def report(
    zoo: Annotated[str, typer.Argument(metavar="ZOO", help="The archive: a .tall file or a folder.")],
    out: Annotated[str, typer.Option("-o", "--output", help="The page to write.")] = "report.html",
    plots: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write the figures into this folder too, as SVG and PNG.")
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks/--no-masks", help="Count the masks: every one is read. Without, it is quick.")
    ] = True,
    base: Annotated[
        str | None, typer.Option(help="The base, where the archive only references it: to count what moved.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report or plots that are there.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar, no path.")] = False,
) -> None:
    """Write what an archive holds, costs and kept as one HTML page: no network, nothing else needed.

    Examples:

      tallstore report zoo.tall -o report.html

      tallstore report zoo.tall --plots plots/
    """
    import tallstore

    with tallstore.open(zoo, base=base) as opened, output.progress("drawing", quiet=quiet) as progress:
        page = opened.report(out, plots=plots, masks=masks, overwrite=overwrite, progress=progress)
    if not quiet:
        typer.echo(f"report: {page}")
        if plots is not None:
            typer.echo(f"plots: {plots}")
