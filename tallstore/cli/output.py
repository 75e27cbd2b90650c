"""How results look: tables, sizes, progress bars. Plain where the output is no terminal."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

Report = Callable[[str, int, int], None]


def console() -> Console:
    """Where results go. In a pipe: no colours, and lines as long as they are."""
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def print_json(value: Any) -> None:
    """For scripts: JSON on stdout, nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def size(count: float) -> str:
    """Bytes for people: powers of 1024, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def number(value: float | None, digits: int = 3) -> str:
    """A measured number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share as per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def table(title: str | None, columns: list[tuple[str, bool]], rows: list[list[str]]) -> Table:
    """A table; columns are (heading, numeric)."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for heading, numeric in columns:
        made.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        made.add_row(*row)
    return made


@contextmanager
def warned(*, quiet: bool = False) -> Iterator[None]:
    """Say warnings that arise while the block runs in one line each, on stderr, when it ends."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for each in found if not quiet else ():
                if issubclass(each.category, UserWarning):
                    print(f"tallstore: warning: {' '.join(str(each.message).split())}", file=sys.stderr)


@contextmanager
def progress(what: str, *, quiet: bool) -> Iterator[Report | None]:
    """A progress bar on stderr while the block runs; none in a pipe or where quiet is asked for."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[now]}"),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        line = bar.add_task(what, total=None, now="")

        def report(text: str, done: int, total: int) -> None:
            bar.update(line, completed=done, total=total, now=text[-48:])

        yield report
