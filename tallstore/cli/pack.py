"""`tallstore pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tallstore.cli import output
from tallstore.cli.zoofile import from_words
from tallstore.errors import OptionError

_ENCODING = "How to encode"


def pack(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE TASK…",
            help="The base, then each task: NAME=CHECKPOINT, a checkpoint (named after its folder), or a folder of "
            "checkpoints. A checkpoint is a folder, a weights file or a Hub id. Or one zoo file (.yaml, .toml).",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option("-o", "--output", help="The archive: one file if it ends in .tall, else a folder."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="How vector and masks are chosen.", rich_help_panel=_ENCODING)
    ] = None,
    lam: Annotated[
        float | None, typer.Option("--lambda", help="λ, for the recipes that have one.", rich_help_panel=_ENCODING)
    ] = None,
    vector: Annotated[
        str | None, typer.Option(help="Codec of the multi-task vector.", rich_help_panel=_ENCODING)
    ] = None,
    mask: Annotated[str | None, typer.Option(help="Codec of the masks.", rich_help_panel=_ENCODING)] = None,
    base_storage: Annotated[
        str | None,
        typer.Option(help="embed keeps the base in the archive; reference identifies it.", rich_help_panel=_ENCODING),
    ] = None,
    base_codec: Annotated[
        str | None, typer.Option(help="Codec of whole tensors, the base's among them.", rich_help_panel=_ENCODING)
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = None,
    allow_distant: Annotated[
        bool, typer.Option("--allow-distant", help="Take a base that looks like an unrelated model.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an archive that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar, no table.")] = False,
) -> None:
    """Pack fine-tuned models of one base into one archive. The originals are only read.

    Examples:

      tallstore pack minilm/ trec=runs/trec mr=runs/mr -o zoo.tall

      tallstore pack minilm/ runs/ -o zoo.tall

      tallstore pack zoo.yaml
    """
    job = from_words(sources)
    given = {
        "recipe": recipe,
        "lam": lam,
        "vector": vector,
        "mask": mask,
        "base_storage": base_storage,
        "base_codec": base_codec,
        "device": device,
        "allow_distant": allow_distant or None,
        "overwrite": overwrite or None,
    }
    options = {**job.options, **{key: value for key, value in given.items() if value is not None}}
    target = out or job.output
    if target is None:
        raise OptionError("no output was given: add -o zoo.tall")

    import tallstore

    with output.progress("packing", quiet=quiet or as_json) as progress:
        report = tallstore.pack(job.base, job.tasks, Path(target), progress=progress, **options)
    if as_json:
        output.print_json(report.to_json())
        return
    console = output.console()
    for warning in report.warnings:
        typer.echo(f"tallstore: warning: {warning}", err=True)
    if not quiet:
        with tallstore.open(report.path, base=job.base if options.get("base_storage") == "reference" else None) as zoo:
            from tallstore.cli.info import show

            show(console, zoo.info(), str(report.path))
        console.print(f"packed in {report.seconds:.1f} s")


