"""`tallstore verify`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from tallstore.cli import output
from tallstore.errors import InputError, OptionError
from tallstore.stores import Access, is_address, open_any

if TYPE_CHECKING:
    from tallstore.archive.verify import Against, VerifyReport
    from tallstore.format.manifest import Task


def verify(
    zoo: Annotated[str, typer.Argument(metavar="ZOO", help="The archive: a .tall file or a folder.")],
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=CHECKPOINT", help="Compare a task with its original. May be given several times."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base, where the archive only references it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing unless something is wrong.")] = False,
) -> None:
    """Check every byte of an archive against every hash, and perhaps its tasks against their originals.

    Ends with status 1 where something is damaged, or a task is not what a checkpoint was packed to.

    Examples:

      tallstore verify zoo.tall

      tallstore verify zoo.tall --against trec=runs/trec
    """
    pairs = {}
    for word in against or ():
        name, equals, path = word.partition("=")
        if not equals:
            raise OptionError(f"--against {word!r}: expected TASK=CHECKPOINT")
        pairs[name] = path
    light = None if pairs or base is not None else _without_torch(zoo, quiet=quiet or as_json)
    report, tasks = light or _with_torch(zoo, pairs, base, quiet=quiet or as_json)
    if as_json:
        output.print_json(report.to_json())
    elif not quiet:
        _show(zoo, report, tasks)
    whys = {name: _unlike(found, tasks[name]) for name, found in report.against.items()}
    if unlike := [f"{name}: {pairs[name]} is not what was packed{why}" for name, why in whys.items() if why]:
        raise InputError("; ".join(unlike))


def _unlike(found: Against, recorded: Task) -> str:
    """Why a checkpoint cannot be what a task was packed from; nothing if it may be."""
    error = recorded.number("relative_error")
    if not found.whole_tensors_exact:
        return ": tensors that are stored whole differ"
    if recorded.bit_for_bit and not found.exact:
        return ", which comes back bit for bit"
    if found.relative_error is not None and error is not None and found.relative_error > _MORE * error + _ROUNDED:
        return f": the error is {found.relative_error:.4f} and was {error:.4f}"
    return ""


_MORE, _ROUNDED = 1.01, 1e-4
"""By which an error may differ from what was recorded, which is rounded, and was added up in another order."""


def _show(zoo: str, report: VerifyReport, tasks: Mapping[str, Task]) -> None:
    """Tables for people."""
    recorded = {name: tasks[name] for name in report.against}
    exact = sum(task.bit_for_bit for task in tasks.values())
    console = output.console()
    for path in report.unlisted:
        output.say(console, f"not part of the archive: {path}")
    if report.against:
        rows = [
            [
                name,
                output.number(a.relative_error, 4),
                output.number(recorded[name].number("relative_error"), 4),
                output.number(a.cosine, 4),
                output.number(recorded[name].number("cosine"), 4),
                "yes" if a.exact else "no",
                "yes" if a.whole_tensors_exact else "NO",
            ]
            for name, a in report.against.items()
        ]
        columns = [
            ("task", False),
            ("error", True),
            ("recorded", True),
            ("cosine", True),
            ("recorded", True),
            ("bit for bit", False),
            ("whole tensors exact", False),
        ]
        console.print(output.table(None, columns, rows))
    if exact:
        output.say(console, f"bit for bit as they were packed: {exact} of {len(report.tasks)} tasks")
    output.say(console, f"{zoo}: whole: {report.files} files, {output.size(report.bytes)}, {len(report.tasks)} tasks")


_Found = tuple["VerifyReport", Mapping[str, "Task"]]


def _without_torch(zoo: str, *, quiet: bool) -> _Found | None:
    """Check an archive that needs no checkpoint for that; None for one whose base its address leads to."""
    from tallstore.archive.manifests import read_manifest
    from tallstore.archive.reader import Reader
    from tallstore.archive.verify import verify_archive

    with open_any(zoo, access=Access()) as store:
        manifest = read_manifest(store)
        if manifest.base.storage == "reference" and is_address(zoo):
            return None
        reader = Reader(store, manifest)
        with output.progress("verifying", quiet=quiet) as progress:
            return verify_archive(reader, progress=progress), manifest.tasks


def _with_torch(zoo: str, pairs: Mapping[str, str], base: str | None, *, quiet: bool) -> _Found:
    """Check an archive together with checkpoints."""
    import tallstore

    with tallstore.open(zoo, base=base) as opened, output.progress("verifying", quiet=quiet) as progress:
        return opened.verify(pairs, progress=progress), opened.manifest.tasks
