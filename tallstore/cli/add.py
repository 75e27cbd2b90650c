"""`tallstore add`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
    merge: Annotated[
        str | None,
        typer.Option(
            "--merge",
            metavar="TASKS",
            help="Add a merge of tasks of the archive, stored as a recipe. TASK is its name; give here what is "
            'merged, such as "0.6*trec + 0.4*mr".',
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="With --merge: linear, arithmetic, consensus, ties or slerp. "
            "By default linear if the weights sum to 1, else arithmetic."
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option("--head", help="With --merge: the task whose head, configuration and tokenizer the merge takes."),
    ] = None,
    topk: Annotated[
        float | None, typer.Option(help="With --method ties: percentage of each update that is kept (20 by default).")
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("--k", help="With --method consensus: how many tasks must use a weight (2 by default)."),
    ] = None,
    run: Annotated[
        bool,
        typer.Option(
            "--run",
            help="TASK is the folder of a run: its checkpoint-100, checkpoint-200 … are added with their steps.",
        ),
    ] = False,
    parent: Annotated[
        str | None,
        typer.Option("--parent", metavar="TASK", help="Code new tasks against this one of the archive, not the base."),
    ] = None,
    relatives: encoding.Relatives = True,
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Pack all tasks again, together: give the originals of the archive's tasks too."),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base, if the archive only references it, or to read its configuration when adapters are added."
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
    """Add fine-tuned models to an archive. What it holds stays, byte for byte; a later push sends only what is new.

    The base is taken from the archive. Options default to those that the archive was packed with.

    Examples:

      tallstore add zoo.tall cr=new/cr

      tallstore add zoo.tall runs/ new=models/new --refit

      tallstore add zoo.tall --run runs/trec/

      tallstore add zoo.tall trec-v2=new/trec --parent trec

      tallstore add zoo.tall mix --merge "0.6*trec + 0.4*mr" --head trec
    """
    asked: dict[str, Any] = {"method": method, "head": head, "topk": topk, "k": k}
    mixing = {key: value for key, value in asked.items() if value is not None}
    if mixing and merge is None:
        raise typer.BadParameter(f"--{next(iter(mixing))} says how --merge merges, which is not given")
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
    import tallstore

    if merge is not None:
        if len(sources) != 1 or options or refit:
            raise typer.BadParameter("--merge adds one task, of a name, and takes no option of packing")
        with output.progress("adding", quiet=quiet or as_json) as progress:
            made = tallstore.add_merge(zoo, sources[0], merge, base=base, progress=progress, **mixing)
        show(made, as_json=as_json, quiet=quiet)
        return
    if not relatives:
        options = {**options, "relatives": False}
    if run:
        name, equals, folder = sources[0].partition("=")
        if len(sources) != 1 or refit or parent is not None:
            raise typer.BadParameter("--run takes one folder of a run, and neither --refit nor --parent")
        where, called = (folder, name) if equals else (sources[0], None)
        with output.progress("adding", quiet=quiet or as_json) as progress:
            made = tallstore.add_run(zoo, where, name=called, base=base, progress=progress, **options)
        show(made, as_json=as_json, quiet=quiet)
        return
    tasks = tasks_from_words(sources)
    with output.progress("adding", quiet=quiet or as_json) as progress:
        report = tallstore.add(zoo, tasks, refit=refit, parent=parent, base=base, progress=progress, **options)
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
    if report.recoded:
        output.say(console, f"coded anew against the base: {', '.join(report.recoded)}")
    if report.removed:
        output.say(console, f"removed: {', '.join(report.removed)}")
    output.say(
        console,
        f"{report.path}: {len(report.tasks)} tasks, {output.size(report.bytes['total'])}; "
        f"{output.size(report.bytes_new)} new, {output.size(report.bytes_gone)} gone; {report.seconds:.1f} s",
    )
