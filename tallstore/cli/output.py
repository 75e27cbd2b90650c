"""How results look: tables, bars, progress. Plain where the output is no terminal, narrow where that is narrow."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tallstore.cli.plain import is_unicode
from tallstore.humanize import harmless, number, share, size
from tallstore.kernels.native.library import why_not

__all__ = ["bar", "console", "fitted", "number", "print_json", "progress", "say", "share", "size", "table"]

Report = Callable[[str, int, int], None]

_PIPE = 140
"""Columns of what is no terminal."""
_BAR = 32
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def console() -> Console:
    """Where results go. In a pipe: no colours, and lines as long as they are."""
    return Console(width=None if sys.stdout.isatty() else _PIPE, highlight=False)


def print_json(value: Any) -> None:
    """For scripts: JSON on stdout, nothing else; what stdout has no letters for is escaped, as JSON knows how."""
    print(json.dumps(value, indent=2, ensure_ascii=not is_unicode(sys.stdout)))


def bar(part: float, most: float, width: int = _BAR) -> str:
    """A bar, as long as `part` is of `most`."""
    eighths = round(8 * width * min(max(part / most, 0.0), 1.0)) if most > 0 else 0
    return _EIGHTHS[-1] * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def table(title: str | None, columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> Table:
    """A table; columns are (heading, numeric). Cells are text: no markup, no control characters."""
    made = Table(
        title=None if title is None else _text(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
        caption_justify="left",
        caption_style="dim",
    )
    for heading, numeric in columns:
        made.add_column(_text(heading), justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        made.add_row(*map(_text, row))
    return made


def fitted(
    to: Console,
    title: str | None,
    columns: Sequence[tuple[str, bool]],
    rows: Sequence[Sequence[str]],
    expendable: Sequence[str],
) -> Table:
    """A table as wide as there is room: headings that are `expendable` go, in that order, until the rest fits."""
    gone: list[str] = []
    made = _without(gone, title, columns, rows)
    for heading in expendable:
        if Measurement.get(to, to.options.update(width=10_000), made).maximum <= to.width:
            break
        if heading in [name for name, _ in columns]:
            gone.append(heading)
            made = _without(gone, title, columns, rows)
    if gone:
        made.caption = _text(f"no room for: {', '.join(gone)}")
    return made


def _without(
    gone: Collection[str], title: str | None, columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]
) -> Table:
    kept = [at for at, (heading, _) in enumerate(columns) if heading not in gone]
    return table(title, [columns[at] for at in kept], [[row[at] for at in kept] for row in rows])


def say(to: Console, words: str, *, whole: bool = False) -> None:
    """A line of text, or several; whatever names are in it. `whole`: lines are not broken, to be copied."""
    to.print(Text("\n").join(map(_text, words.split("\n"))), soft_wrap=whole)


def _text(words: str) -> Text:
    return Text(harmless(words))


@contextmanager
def warned(*, quiet: bool = False) -> Iterator[None]:
    """Say warnings that arise while the block runs in one line each, on stderr, when it ends."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for each in caught if not quiet else ():
                if issubclass(each.category, UserWarning):
                    print(harmless(f"tallstore: warning: {' '.join(str(each.message).split())}"), file=sys.stderr)


@contextmanager
def progress(what: str, *, quiet: bool, long: float = 10.0) -> Iterator[Report | None]:
    """A progress bar on stderr while the block runs; none in a pipe or where quiet is asked for.

    After work of more than `long` seconds that native kernels would have shortened, a line says why they were not used.
    """
    begun = time.monotonic()
    with _bar(what, quiet=quiet) as report:
        yield report
    why = "" if quiet or time.monotonic() - begun < long else why_not()
    if why:
        print(harmless(f"tallstore: note: the same result comes faster with native kernels: {why}"), file=sys.stderr)


@contextmanager
def _bar(what: str, *, quiet: bool) -> Iterator[Report | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}", style="dim", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        line = bars.add_task(what, total=None, now="")

        def report(text: str, done: int, total: int) -> None:
            bars.update(line, completed=done, total=total, now=harmless(text)[-48:])

        yield report
