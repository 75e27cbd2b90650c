"""`tallstore extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tallstore.cli import complete, output
from tallstore.errors import OptionError


def extract(
    zoo: Annotated[
        str,
        typer.Argument(metavar="ZOO", help="The archive: a .tall file, a folder, or an address such as hf://user/zoo."),
    ],
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]…", help="The tasks to extract.", autocompletion=complete.tasks)
    ] = None,
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            help="The folder to write. With several tasks, or without -o, each gets a folder of its name.",
        ),
    ] = ".",
    every: Annotated[bool, typer.Option("--all", help="Every task of the archive.")] = False,
    base: Annotated[str | None, typer.Option(help="The base, where the archive only references it.")] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="The original weights, bit for bit. The task must have been packed with --exact."),
    ] = False,
    component: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Extract only this component of a pipeline, such as unet.")
    ] = None,
    weights_format: Annotated[
        str,
        typer.Option(
            metavar="safetensors|torch",
            help="The format of weights files; torch: as torch.save writes them, under their original names.",
        ),
    ] = "safetensors",
    merged: Annotated[
        bool,
        typer.Option("--merged", help="For an adapter: write the whole model, the base with the adapter merged in."),
    ] = False,
    thin: Annotated[
        bool,
        typer.Option(
            "--thin",
            help="Write a folder without weights, which transformers loads from the archive through tallstore.",
        ),
    ] = False,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Split larger weights into several files with an index.")
    ] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model folder.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")] = False,
) -> None:
    """Write a task's model as a folder that transformers and other stock loaders open.

    Examples:

      tallstore extract zoo.tall trec -o trec/

      tallstore extract zoo.tall --all -o models/

      tallstore extract zoo.tall lora --merged -o model/

      tallstore extract zoo.tall trec --thin -o thin/     then, after import tallstore, from_pretrained("thin/")
    """
    import tallstore

    if thin and (component is not None or weights_format != "safetensors"):
        raise OptionError("--thin has no weights: leave --component and --weights-format out")
    with tallstore.open(zoo, base=base) as opened:
        wanted = list(opened.tasks) if every else list(tasks or [])
        if not wanted:
            raise OptionError(f"which task? There are {', '.join(opened.tasks)}; or --all")
        several = len(wanted) > 1 or every
        for name in wanted:
            target = Path(out) / name if several or out == "." else Path(out)
            if thin:
                opened.export_thin(name, target, exact=exact, base=base, overwrite=overwrite)
                _said(name, target, quiet=quiet)
                continue
            with output.progress(f"extracting {name}", quiet=quiet) as progress:
                opened.export(
                    name,
                    target,
                    exact=exact,
                    component=component,
                    weights_format=weights_format,
                    merged=merged,
                    overwrite=overwrite,
                    max_shard_size=max_shard_size,
                    progress=progress,
                )
            _said(name, target, quiet=quiet)


def _said(name: str, target: Path, *, quiet: bool) -> None:
    if not quiet:
        typer.echo(f"{name}: {target}")
