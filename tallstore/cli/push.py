"""`tallstore push`."""

from __future__ import annotations

from typing import Annotated

import typer

from tallstore.cli import output
from tallstore.cli.hub import ENDPOINT, TOKEN, quiet_client


def push(
    zoo: Annotated[str, typer.Argument(metavar="ZOO", help="The archive: a .tall file or a folder.")],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; made if it is not there.")],
    message: Annotated[str | None, typer.Option("-m", "--commit-message", help="What the commit says.")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Whether a new repository is private.")
    ] = None,
    branch: Annotated[str | None, typer.Option(help="The branch; made if it is not there. main by default.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Make a pull request.")] = False,
    license: Annotated[str | None, typer.Option(help="For the model card: apache-2.0, mit, …")] = None,
    picture: Annotated[
        bool, typer.Option("--picture/--no-picture", help="Draw the model card's picture (needs tallstore\\[report]).")
    ] = True,
    token: TOKEN = None,
    endpoint: ENDPOINT = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; list what would be sent.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar, no words.")] = False,
) -> None:
    """Push an archive to the Hugging Face Hub, in one commit. What is there already is not sent again.

    A model card is written and kept up to date; one that you wrote yourself is never touched.

    Examples:

      tallstore push zoo.tall user/zoo --private

      tallstore push zoo.tall user/zoo --dry-run
    """
    import tallstore

    quiet_client()
    with output.progress("pushing", quiet=quiet or as_json) as progress:
        report = tallstore.push(
            zoo,
            repo,
            commit_message=message,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
            endpoint=endpoint,
            license=license,
            picture=_picture(zoo) if picture else None,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        output.print_json(report.to_json())
        return
    if quiet:
        return
    console = output.console()
    if dry_run:
        rows = [["send", path, output.size(size)] for path, size in report.add.items()]
        rows += [["delete", path, ""] for path in report.delete]
        if rows:
            console.print(output.table(None, [("", False), ("file", False), ("bytes", True)], rows))
    kept = f", {len(report.keep)} are there already" if report.keep else ""
    gone = f", {len(report.delete)} of an earlier archive {'go' if dry_run else 'are gone'}" if report.delete else ""
    what = "would be sent" if dry_run else "sent"
    new = " (a new repository)" if report.created else ""
    console.print(
        f"{report.repo_id}{new}: {len(report.add)} files, {output.size(report.bytes)} {what}{kept}{gone}", markup=False
    )
    if (url := report.pr_url or report.commit_url) is not None:
        console.print(url, markup=False)


def _picture(zoo: str) -> bytes | None:
    """Bytes and retention at a glance, as a PNG; None where what draws it is not installed."""
    import tallstore
    from tallstore.report import card_picture

    try:
        with tallstore.open(zoo) as opened:
            return card_picture(opened)
    except tallstore.errors.MissingExtraError:
        return None
