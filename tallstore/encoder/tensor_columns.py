"""Columns that a tensor's chunks have in common: found once, left in the working folder, and read again for each chunk.

Whoever codes a chunk, wherever, has the same ones: they are not found again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tallstore.codecs.dare import Added
from tallstore.encoder.chunk import task_vector
from tallstore.encoder.items import ColumnsJob, ColumnsPlace, Item, Tools, read_rows
from tallstore.encoder.plan import User
from tallstore.encoder.result_files import ResultFile, Span, Taker
from tallstore.recipes.common_columns import CommonColumns, find_columns, times_told
from tallstore.recipes.exact_products import Singles
from tallstore.recipes.low_rank import matrix_of

__all__ = ["SAMPLE", "added_first", "columns_jobs", "find", "parse", "read_columns"]

SAMPLE = 1 << 24
"""Elements that are looked at: all of most matrices, and as many rows as columns up to 4096 of these."""
_LONG, _FIRST = 8, 4
"""Of a table with so many times more rows than columns, so many times as many are looked at: the first words of a
vocabulary are used the most, and columns that suit them matter more than those that suit most words."""
_RUN, _BLOCK = 1 << 14, 1 << 20
"""Elements of them that lie side by side, at least, and that are turned over at a time."""


def columns_jobs(tools: Tools, users: Mapping[str, Sequence[User]]) -> list[ColumnsJob]:
    """Base tensors, and those that come from them, of which a product is wanted."""
    jobs = []
    for name, each in users.items():
        wanted = tuple(user for user in each if user.masked and _step(user, name, tools))
        if wanted and not _own_columns(tools, name):
            jobs.append(ColumnsJob(name, wanted))
    return jobs


def find(job: ColumnsJob, tools: Tools, out: ResultFile) -> list[Any]:
    """What is said of each user's columns: None where there are none."""
    said: list[Any] = []
    for user in job.users:
        _, columns = matrix_of(tools.tasks[user.task].tensors[user.name].shape)
        step, rows = _step(user, job.name, tools), user.covered // columns if columns else 0
        found = None
        if rows > 1:
            first = min(tools.chunk, user.covered)
            found = find_columns(_sample(job.name, user, (rows, columns), tools), step, rows, first)
        facts = None
        if found is not None:
            place = out.add(np.ascontiguousarray(found.numbers).data)
            facts = [place, found.step, float(found.scale), found.shifts.tolist()]
        said.append(facts)
    return said


def parse(facts: Any, span: Span) -> ColumnsPlace:
    """What `find` said of one user's."""
    _, step, scale, shifts = facts
    return ColumnsPlace(span, step, scale, tuple(shifts))


def added_first(item: Item, user: User, tools: Tools) -> Added | None:
    """What is told first of an item's changes to a user's tensor, if anything; of the first item at least columns.

    Rows of which the item has a part are looked at to their ends. Raises OutputError for columns that are damaged.
    """
    place, step = tools.columns.get((user.task, item.name)), _step(user, item.name, tools)
    own = bool(step) and _own_columns(tools, item.name)
    if place is None and not own:
        return None
    _, width = _shape(tools, item.name)
    stop = min(item.stop, user.covered)
    begin, end = item.start // width * width, -(-stop // width) * width
    before, after = tools.base.read(item.name, begin, end), tools.tasks[user.task].read(user.name, begin, end)
    changes: Singles = task_vector(before, after).numpy().reshape(-1, width)
    n = stop - item.start
    columns = find_columns([_finite(changes)], step, len(changes), n) if place is None else read_columns(place)
    added = None if columns is None else columns.rows_of(changes, item.start - begin, n)
    if added is None or ((own or item.start) and not added.rows.any()):
        return None
    return Added(added, columns_told=own or not item.start)


def _own_columns(tools: Tools, name: str) -> bool:
    return times_told(_shape(tools, name), tools.chunk) > 1


def _shape(tools: Tools, name: str) -> tuple[int, int]:
    """Rows of a base tensor, and elements of each."""
    return matrix_of(tools.base.tensors[name].shape)


def read_columns(place: ColumnsPlace) -> CommonColumns:
    """Those of a place. Raises OutputError if they are not what was written."""
    numbers = np.empty(place.span.length, np.int8)
    with Taker(keep=True) as taker:
        taker.take(place.span, numbers.data.cast("B"))
    shifts = np.array(place.shifts, np.uint8)
    return CommonColumns(place.step, np.float32(place.scale), shifts, numbers.reshape(len(shifts), -1))


def _step(user: User, name: str, tools: Tools) -> float:
    drop = tools.dropped(user, name)
    return 0.0 if drop is None else drop.step


def _sample(name: str, user: User, shape: tuple[int, int], tools: Tools) -> Iterator[Singles]:
    """The changes of all rows, or of evenly spaced runs of them, block by block; 0 of a row that is not finite.

    Of a long table those of the first ones.
    """
    rows, columns = shape
    for runs in _blocks(min(rows, _FIRST * columns) if rows > _LONG * columns else rows, columns):
        before, after = read_rows(tools.base, name, runs), read_rows(tools.tasks[user.task], user.name, runs)
        yield _finite(task_vector(before, after).numpy().reshape(-1, columns))


def _finite(changes: Singles) -> Singles:
    """The same, 0 in rows that are not finite."""
    found: Singles = np.where(np.isfinite(changes).all(1, keepdims=True), changes, np.float32(0))
    return found


def _blocks(rows: int, columns: int) -> Iterator[list[tuple[int, int]]]:
    """Elements that are looked at: runs of whole rows, some of them together."""
    several = max(1, _RUN // columns)
    count = min(-(-rows // several), max(2, SAMPLE // (several * columns)))
    starts = [i * rows // count for i in range(count + 1)]
    together = max(1, _BLOCK // (several * columns))
    for at in range(0, count, together):
        yield [
            (start * columns, min(start + several, after) * columns)
            for start, after in pairwise(starts[at : min(at + together, count) + 1])
        ]
