"""`tallstore pull`."""

from __future__ import annotations

from typing import Annotated

import typer

from tallstore.cli import output
from tallstore.cli.hub import CACHE_DIR, ENDPOINT, LOCAL_FILES_ONLY, REVISION, TOKEN, quiet_client
from tallstore.errors import OptionError


def pull(
    zoo: Annotated[
        str,
        typer.Argument(
            metavar="USER/NAME",
            help="The archive on the Hub: user/zoo, or user/zoo@revision; or its address elsewhere.",
        ),
    ],
    tasks: Annotated[
        list[str] | None, typer.Option("-t", "--task", help="A task to fetch. May be given several times.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every task of the archive.")] = False,
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="Where the model goes: its folder, or with several tasks one that has a folder for each. Without it "
            "only the local cache is filled.",
        ),
    ] = None,
    archive: Annotated[
        bool,
        typer.Option("--archive", help="Write one archive of these tasks in place of models, as -o NAME.tall does."),
    ] = False,
    base: Annotated[str | None, typer.Option(help="The base, where the archive only references it.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Bit for bit the original weights, where the zoo was packed with --exact.")
    ] = False,
    revision: REVISION = None,
    token: TOKEN = None,
    endpoint: ENDPOINT = None,
    cache_dir: CACHE_DIR = None,
    local_files_only: LOCAL_FILES_ONLY = False,
    force_download: Annotated[bool, typer.Option("--force-download", help="Fetch again what the cache holds.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model or archive that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar, no words.")] = False,
) -> None:
    """Fetch tasks of an archive on the Hugging Face Hub, and write them as models that stock loaders open.

    Only what these tasks need of the archive is downloaded.

    Examples:

      tallstore pull user/zoo --task mnist -o mnist/

      tallstore pull user/zoo --all -o models/

      tallstore pull user/zoo --task mnist --task sst2 -o two.tall
    """
    import tallstore

    if bool(tasks) == every:
        raise OptionError("which tasks? Name them with --task, or take --all")
    quiet_client()
    chosen = tasks[0] if tasks and len(tasks) == 1 else tasks
    with output.warned(quiet=quiet), output.progress("pulling", quiet=quiet or as_json) as progress:
        report = tallstore.pull(
            zoo,
            out,
            tasks=None if every else chosen,
            archive=archive,
            base=base,
            exact=exact,
            revision=revision,
            token=token,
            endpoint=endpoint,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        output.print_json(report.to_json())
    elif not quiet:
        for task, path in report.paths.items():
            typer.echo(f"{task}: {path}")
        if report.archive is not None:
            typer.echo(f"{', '.join(report.tasks)}: {report.archive}")
        fetched = output.size(sum(report.fetched.values()))
        typer.echo(f"{report.url}: {fetched} fetched, {output.size(report.bytes)} needed, every file whole")
