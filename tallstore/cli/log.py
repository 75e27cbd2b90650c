"""`tallstore log`."""

from __future__ import annotations

from typing import Annotated

import typer

from tallstore.cli import output
from tallstore.errors import NoSuchTaskError
from tallstore.stores import Access, open_any


def log(
    zoo: Annotated[
        str,
        typer.Argument(metavar="ZOO", help="The archive: a .tall file, a folder, or an address such as hf://user/zoo."),
    ],
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or a task.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the steps as JSON.")] = False,
) -> None:
    """Show a run's checkpoints: step, what each is coded against, its size, how far it moved, and its score if known.

    Distances are from the step before and from the base: norms of differences over that of the base's weights. A score
    is the trainer's, if it recorded one.

    For a task that belongs to no run: which tasks it is made of, generation by generation.

    Examples:

      tallstore log zoo.tall trec

      tallstore extract zoo.tall trec@600 -o trec-600/
    """
    from tallstore.archive.ancestry import ancestry, runs_of
    from tallstore.archive.manifests import read_manifest

    with open_any(zoo, access=Access()) as store:
        manifest = read_manifest(store)
    steps = runs_of(manifest).get(run)
    if steps is None and run not in manifest.tasks:
        known = ", ".join([*runs_of(manifest), *manifest.tasks])
        raise NoSuchTaskError(f"{zoo}: no run and no task {run!r}; there are {known}")
    rows = steps if steps is not None else ancestry(manifest, run)
    if as_json:
        output.print_json({"run": run, "steps": rows})
        return
    console = output.console()
    scored = any(row.get("score") is not None for row in rows)
    columns = [("step" if steps is not None else "generation", True), ("task", False), ("made of", False)]
    moved = [("moved", "moved"), ("from the base", "moved_from_base")] if steps is not None else []
    columns += [("own bytes", True), *((title, True) for title, _ in moved), *([("score", True)] if scored else [])]
    cells = [
        [
            str(row["step"] if steps is not None else row["generation"]),
            str(row["task"]),
            str(row["made_of"] or "the base"),
            output.size(row["bytes"]) if row["bytes"] is not None else output.number(None),
            *(output.number(row.get(key), 3) for _, key in moved),
            *([output.number(row.get("score"), 4)] if scored else []),
        ]
        for row in rows
    ]
    console.print(output.table(f"{zoo} — {run}", columns, cells))
