"""`tallstore merge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tallstore.cli import output

if TYPE_CHECKING:
    from tallstore.archive.merging.merger import MergeReport

_FROM = {
    "given": "as given",
    "evaluator": "chosen by the evaluator",
    "length": "as long as the task vectors are, on the average",
}
_NAMES = {"tasks": "those of the tasks' checkpoints", "base": "those of the base: the tasks' differ"}


def merge(
    zoo: Annotated[str, typer.Argument(metavar="ZOO", help="The archive: a .tall file or a folder.")],
    out: Annotated[str, typer.Option("-o", "--output", help="The folder to write.")],
    method: Annotated[str, typer.Option(help="consensus, arithmetic or ties.")] = "consensus",
    k: Annotated[
        int | None,
        typer.Option("--k", help="Of consensus: keep what at least so many tasks use. 0 keeps all. 2 by default."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="α, the factor on the merged update. Chosen if it is not given.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Merge these tasks; may be given several times. All by default.")
    ] = None,
    head: Annotated[
        str | None, typer.Option("--head", help="Give the model this task's head, configuration and tokenizer.")
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Choose α by this: (state dict, task name) → score, higher is better."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base, where the archive only references it.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar, no table.")] = False,
) -> None:
    """Merge tasks into one model and write it as a folder that transformers opens.

    Heads are kept apart: with --head the model gets one task's, without it none.

    Examples:

      tallstore merge zoo.tall -o merged/

      tallstore merge zoo.tall -o merged/ --method consensus --k 1 --head trec --evaluate scores:accuracy
    """
    import tallstore

    with tallstore.open(zoo, base=base) as opened, output.progress("merging", quiet=quiet or as_json) as progress:
        report = opened.export_merged(
            out,
            method,
            k=k,
            alpha=alpha,
            tasks=tasks or None,
            heads=head,
            evaluator=evaluate,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        output.print_json(report.to_json())
    elif not quiet:
        show(report, out)


def show(report: MergeReport, out: str) -> None:
    """What was merged, how, and what is not in it."""
    console = output.console()
    threshold = "" if report.k is None else f", k = {report.k}"
    rows = [
        ["method", f"{report.method}{threshold}"],
        ["α", f"{report.alpha:.4g}, {_FROM[report.alpha_from]}{_mean(report)}"],
        ["head", report.head or "none"],
        ["names", _NAMES.get(report.names, f"those of {report.names}'s checkpoint")],
    ]
    if report.approximate is not None:
        rows.append(["approximate", report.approximate])
    rows += [["left out", f"{name}: {why}"] for name, why in report.left_out.items()]
    rows += [["note", note] for note in report.notes]
    console.print(output.table(f"{out}: {len(report.tasks)} tasks merged", [("", False), ("", False)], rows))


def _mean(report: MergeReport) -> str:
    scores = report.scores.get(f"{report.alpha:g}")
    return "" if not scores else f": mean score {sum(scores.values()) / len(scores):.4f}"
