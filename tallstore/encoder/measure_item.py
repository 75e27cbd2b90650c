"""An item's share of a recipe's statistic: tiles, few rows of a matrix, or runs straight from their files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.checkpoints import Checkpoint
from tallstore.encoder.chunk import STATISTIC_TILE, task_vector, tiles
from tallstore.encoder.fused_rows import (
    Fallback,
    Start,
    coherent,
    counted,
    row_in_file,
    row_in_memory,
    start_of,
)
from tallstore.encoder.inspect_rows import looks_of, usable_rows
from tallstore.encoder.items import Item, Read, Tools, gather_runs, read, read_rows, row_by_row
from tallstore.encoder.lossless_rows import lossless_bits, may_be_lossless
from tallstore.encoder.plan import User
from tallstore.encoder.row_bits import largest_of
from tallstore.encoder.sampled_rows import level_costs, may_be_sampled
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.recipes.base import Statistic
from tallstore.recipes.coherence import COLUMNS, gain, picked
from tallstore.recipes.low_rank import matrix_of


def measure(item: Item, tools: Tools, statistic: Statistic) -> tuple[list[Any], int]:
    """What a statistic measures on an item's tiles, and how many bytes it stands for."""
    item = replace(item, users=tuple(user for user in item.users if not user.lossless))
    if not item.users:
        return [], 0
    runs = sample_runs(item, tools.base.tensors[item.name].numel, statistic.one_in)
    weight = (item.stop - item.start) / sum(run.stop - run.start for run in runs)
    rows = _few_rows(item, tools, statistic) if statistic.by_row and not item.start else []
    if row_by_row(item, tools):
        measured, size = _rows_measured(item, runs, tools, statistic, weight)
        return rows + measured, round(size * weight)
    measured, size = rows, 0
    for run in runs:
        chunk = read(run, tools)
        size += chunk.bytes
        measured += _tiles_measured(item, run.users, chunk, run.start, statistic, weight)
    return measured, round(size * weight)


def _few_rows(item: Item, tools: Tools, statistic: Statistic) -> list[Any]:
    """What a statistic measures on a few rows of a matrix: all of the tensor's, not the item's alone."""
    shape = tools.base.tensors[item.name].shape
    width = math.prod(shape[1:])
    results = []
    _, length = matrix_of(shape) if len(shape) > 1 else (1, width)
    columns = min(width, COLUMNS)
    columns -= columns % length if length < columns else 0
    sample: _SampledRows | None = None  # mostly there are as many rows to pick from for all tasks
    for user in item.users if len(shape) > 1 and width else ():
        count = user.covered // width
        if sample is None or sample.count != count:
            runs = tuple((row * width, row * width + columns) for row in picked(count, width))
            before = read_rows(tools.origin, item.name, runs)
            sample = _SampledRows(count, runs, before, start_of(before, 0.0))
        checkpoint, own = tools.tasks[user.task], None
        dtype = checkpoint.tensors[user.name].dtype
        if tools.origin is tools.base and (may_be_sampled(dtype) or may_be_lossless(dtype)):  # read once for all
            own = read_rows(checkpoint, user.name, sample.runs)
        results.append(statistic.measure_rows(user.task, item.name, partial(_gain, checkpoint, user.name, sample, own)))
        if own is not None:
            bits = lossless_bits(own, sample.base, user.covered, columns)
            matrix = (count * width // length, length)
            levels = level_costs(own, sample.base, matrix, min(columns, length), tools.chunk)
            if bits is not None or levels:
                results.append(statistic.measure_changes(user.task, item.name, bits, levels))
    return results


@dataclass(frozen=True)
class _SampledRows:
    """A few rows of a base tensor, or what they begin with."""

    count: int
    """Rows that they are of."""
    runs: tuple[tuple[int, int], ...]
    base: Tensor
    start: Start | None


def _gain(checkpoint: Checkpoint, name: str, sample: _SampledRows, own: Tensor | None) -> float:
    """How coherent a task's rows are. `own`: its elements, if they are at hand."""
    if not sample.runs:
        return 1.0
    start, (first, stop) = sample.start, sample.runs[0]
    columns = stop - first
    row, firsts = None, [first for first, _ in sample.runs]
    if start is not None and own is not None:
        row, firsts = row_in_memory(own, start), [i * columns for i in range(len(sample.runs))]
    elif start is not None:
        row = row_in_file(checkpoint, name, start)
    if row is not None and start is not None:
        coherence = coherent(row, firsts, start, columns)
        if coherence is not None:
            return coherence
    own = read_rows(checkpoint, name, sample.runs) if own is None else own
    return gain(task_vector(sample.base, own).to(torch.float32).view(len(sample.runs), columns).numpy())


def _tiles_measured(
    item: Item, users: Sequence[User], chunk: Read, start: int, statistic: Statistic, weight: float
) -> list[Any]:
    rows = usable_rows(users, chunk, looks_of(chunk))
    cut = tiles(chunk.base, rows, item.name, STATISTIC_TILE, start)
    return [statistic.measure(replace(tile, weight=weight)) for tile in cut if tile.tasks]


def _rows_measured(
    item: Item, runs: Sequence[Item], tools: Tools, statistic: Statistic, weight: float
) -> tuple[list[Any], int]:
    """The same row by row, each with all its runs one behind the other; and the bytes that were read."""
    base = gather_runs(tools.origin, item.name, runs, "base")
    largest = largest_of(base)
    plain = start_of(base, largest)
    cut = cut_tiles(runs)
    measured: list[Any] = []
    size = base.numel() * base.element_size()
    for user in item.users:
        checkpoint = tools.tasks[user.task]
        size += base.numel() * ITEM_BYTES[checkpoint.tensors[user.name].dtype]
        row = row_in_file(checkpoint, user.name, plain) if statistic.by_magnitude and plain is not None else None
        if row is not None and plain is not None:
            straight = counted(row, cut, plain)
            if not isinstance(straight, Fallback):
                measured += [statistic.measure_counted(user.task, item.name, each, weight) for each in straight]
                continue
        chunk = Read(base, (gather_runs(checkpoint, user.name, runs, "row"),), largest)
        if all(look is not None and look.usable for look in looks_of(chunk)):
            measured += _tiles_measured(item, (user,), chunk, item.start, statistic, weight)
            continue
        for run in runs:  # those that are usable by themselves
            chunk = read(replace(run, users=(user,)), tools)
            measured += _tiles_measured(item, (user,), chunk, run.start, statistic, weight)
    return measured, size


def cut_tiles(runs: Sequence[Item]) -> list[npt.NDArray[np.int64]]:
    """The runs of each tile, their elements one behind the other: from which element to which, shape (R, 2)."""
    groups: list[list[tuple[int, int]]] = []
    room = 0
    for run in runs:
        start = run.start
        while start < run.stop:
            if not room:
                groups.append([])
                room = STATISTIC_TILE
            stop = min(start + room, run.stop)
            groups[-1].append((start, stop))
            start, room = stop, room - (stop - start)
    return [np.array(each, np.int64) for each in groups]


def sample_runs(item: Item, numel: int, one_in: int) -> list[Item]:
    """Runs of one element in so many; of an item of a small tensor, all of it."""
    if one_in == 1 or numel < SAMPLED:
        return [item]
    starts = range(item.start, item.stop, SAMPLE_RUN * one_in)
    return [replace(item, start=start, stop=min(start + SAMPLE_RUN, item.stop)) for start in starts]


SAMPLED = 1 << 19
"""Elements from which on a tensor is sampled."""
SAMPLE_RUN = 1 << 13
"""Elements of a run: several rows of an embedding, read at once."""
