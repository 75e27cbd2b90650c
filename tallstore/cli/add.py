"""`tallstore add`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tallstore.cli import encoding, output
from tallstore.cli.zoofile import tasks_from_words

if TYPE_CHECKING:
    from tallstore.editing import GrowReport


def add(
    zoo: Annotated[str, typer.Argument(metavar="ZOO", help="The archive: a .tall file or a folder.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK…",
            help="NAME=CHECKPOINT, a checkpoint (named after its folder), or a folder of checkpoints.",
        ),
    ],
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", help="Pack everything anew: the originals of all tasks of the archive must be among those given."
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base: where the archive only references it; for its configuration, where adapters are added."
        ),
    ] = None,
    recipe: encoding.Recipe = None,
    lam: encoding.Lam = None,
    quality: encoding.Quality = None,
    bits: encoding.Bits = None,
    kappa: encoding.Kappa = None,
    groups: encoding.Groups = None,
    vector: encoding.Vector = None,
    mask: encoding.Mask = None,
    base_codec: encoding.BaseCodec = None,
    evaluate: encoding.Evaluate = None,
    max_error: encoding.MaxError = None,
    min_retention: encoding.MinRetention = None,
    exact: encoding.Exact = None,
    weights: encoding.Weights = None,
    device: encoding.Device = None,
    allow_distant: encoding.AllowDistant = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar, no words.")] = False,
) -> None:
    """Add fine-tuned models to an archive. What it holds stays, byte for byte; a push then sends what is new.

    The base is taken from the archive. Options are by default those that the archive was packed with.

    Examples:

      tallstore add zoo.tall cr=new/cr

      tallstore add zoo.tall runs/ new=models/new --refit
    """
    options = encoding.options_of(
        {
            "recipe": recipe,
            "lam": lam,
            "bits": bits,
            "quality": quality,
            "kappa": kappa,
            "groups": groups,
            "vector": vector,
            "mask": mask,
            "base_codec": base_codec,
            "evaluate": evaluate,
            "max_error": max_error,
            "min_retention": min_retention,
            "exact": exact,
            "weights": weights,
            "device": device,
            "allow_distant": allow_distant,
        }
    )
    tasks = tasks_from_words(sources)

    import tallstore

    with output.progress("adding", quiet=quiet or as_json) as progress:
        report = tallstore.add(zoo, tasks, refit=refit, base=base, progress=progress, **options)
    show(report, as_json=as_json, quiet=quiet)


def show(report: GrowReport, *, as_json: bool, quiet: bool) -> None:
    """What became of the archive."""
    if as_json:
        output.print_json(report.to_json())
        return
    for warning in report.warnings:
        typer.echo(f"tallstore: warning: {warning}", err=True)
    for note in report.notes:
        typer.echo(f"tallstore: note: {note}", err=True)
    if quiet:
        return
    console = output.console()
    if report.added:
        columns = [("task", False), ("error ‖τ̂−τ‖/‖τ‖", True), ("own bytes", True)]
        rows = [
            [name, output.number(task.relative_error, 3), output.size(task.bytes)]
            for name, task in report.added.items()
        ]
        console.print(output.table(None, columns, rows))
    if report.removed:
        output.say(console, f"removed: {', '.join(report.removed)}")
    output.say(
        console,
        f"{report.path}: {len(report.tasks)} tasks, {output.size(report.bytes['total'])}; "
        f"{output.size(report.bytes_new)} new, {output.size(report.bytes_gone)} gone; {report.seconds:.1f} s",
    )
