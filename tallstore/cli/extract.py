"""`tallstore extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tallstore.cli import complete, output
from tallstore.errors import OptionError


def extract(
    zoo: Annotated[str, typer.Argument(metavar="ZOO", help="The archive: a .tall file or a folder.")],
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]…", help="Which tasks.", autocompletion=complete.tasks)
    ] = None,
    out: Annotated[
        str,
        typer.Option("-o", "--output", help="The folder to write; with several tasks, one folder in it for each."),
    ] = ".",
    every: Annotated[bool, typer.Option("--all", help="Every task of the archive.")] = False,
    base: Annotated[str | None, typer.Option(help="The base, where the archive only references it.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Bit for bit the original weights, where the zoo was packed with --exact.")
    ] = False,
    component: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="One component alone, such as unet, as a folder of its own.")
    ] = None,
    weights_format: Annotated[
        str, typer.Option(metavar="safetensors|torch", help="torch writes files of torch.save, as they were named.")
    ] = "safetensors",
    merged: Annotated[
        bool, typer.Option("--merged", help="Of an adapter, the whole model: its base with the adapter merged into it.")
    ] = False,
    thin: Annotated[
        bool,
        typer.Option("--thin", help="No weights: a folder that transformers loads from the archive, with tallstore."),
    ] = False,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Larger weights become several files and an index.")
    ] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that is there.")] = False,
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
