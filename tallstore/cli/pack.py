"""`tallstore pack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallstore.cli import encoding, output
from tallstore.cli.zoofile import from_words
from tallstore.errors import OptionError

if TYPE_CHECKING:
    pass

_WORK = "How to work"
# Said here and not read from the tables, so that --help needs no torch; a test compares.
_ENGINES = "threads, processes, dask"
_NO_FOLDERS = {".zip", ".tar", ".gz", ".tgz", ".zst", ".safetensors", ".bin", ".pt", ".pth", ".ckpt"}
"""Endings of a name that nobody gives a folder."""


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
    recipe: encoding.Recipe = None,
    lam: encoding.Lam = None,
    quality: encoding.Quality = None,
    bits: encoding.Bits = None,
    kappa: encoding.Kappa = None,
    groups: encoding.Groups = None,
    vector: encoding.Vector = None,
    mask: encoding.Mask = None,
    base_storage: Annotated[
        str | None,
        typer.Option(
            help="embed (the default) stores the base; bf16 stores it rounded to bfloat16; reference stores only its "
            "hash, and readers must be given the base.",
            rich_help_panel="How to encode",
        ),
    ] = None,
    base_codec: encoding.BaseCodec = None,
    evaluate: encoding.Evaluate = None,
    max_error: encoding.MaxError = None,
    min_retention: encoding.MinRetention = None,
    exact: encoding.Exact = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help=f"What the work runs on: {_ENGINES}; dask:ADDRESS names a cluster's scheduler.", rich_help_panel=_WORK
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="How many threads or processes; by default one for each core, as memory allows.", rich_help_panel=_WORK
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue an earlier, interrupted run of the same job; keep finished work if this run fails.",
            rich_help_panel=_WORK,
        ),
    ] = False,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Largest size of a weights file in the archive: 5GB by default.", rich_help_panel=_WORK
        ),
    ] = None,
    weights: encoding.Weights = None,
    device: encoding.Device = None,
    allow_distant: encoding.AllowDistant = False,
    relatives: encoding.Relatives = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing archive.")] = False,
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
        "bits": bits,
        "quality": quality,
        "kappa": kappa,
        "groups": groups,
        "vector": vector,
        "mask": mask,
        "evaluate": evaluate,
        "max_error": max_error,
        "min_retention": min_retention,
        "exact": exact,
        "base_storage": base_storage,
        "base_codec": base_codec,
        "engine": engine,
        "workers": workers,
        "resume": resume or None,
        "max_shard_size": max_shard_size,
        "weights": weights,
        "device": device,
        "allow_distant": allow_distant,
        "overwrite": overwrite,
    }
    options = {**job.options, **encoding.options_of(given), **({} if relatives else {"relatives": False})}
    target = out or job.output
    if target is None:
        raise OptionError("no output was given: add -o zoo.tall")
    if Path(target).suffix.lower() in _NO_FOLDERS:
        name = Path(target).with_suffix(".tall")
        raise OptionError(f"{target}: an archive is one file if its name ends in .tall, and else a folder: say {name}")

    import tallstore

    with output.progress("packing", quiet=quiet or as_json) as progress:
        report = tallstore.pack(job.base, job.tasks, target, progress=progress, **options)
    if as_json:
        output.print_json(report.to_json())
        return
    console = output.console()
    for warning in report.warnings:
        typer.echo(f"tallstore: warning: {warning}", err=True)
    for note in report.notes:
        typer.echo(f"tallstore: note: {note}", err=True)
    if not quiet:
        with tallstore.open(report.path, base=job.base if options.get("base_storage") == "reference" else None) as zoo:
            from tallstore.cli.info import show

            show(console, zoo.info(), zoo.manifest, str(report.path), notes=False)
        console.print(f"packed in {report.seconds:.1f} s")
