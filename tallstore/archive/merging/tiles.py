"""The task vectors that an archive decodes to, side by side and a tile at a time: what merging computes on.

Chunks are read, checked and decoded by the decoder's own path, several windows at once; of a window the codes of every
task are in memory, and of its task vectors one tile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.archive.decode import Decoder
from tallstore.archive.merging.alignment import DECODED, Lineup, Member
from tallstore.concurrency import ordered
from tallstore.kernels.native.steps import GapSteps
from tallstore.kernels.reference import SYMBOL_BITS, Bytes, wide
from tallstore.kernels.steps import Run
from tallstore.merging import MergeTile
from tallstore.recipes.ordered_sum import RUN, sum_rows
from tallstore.tensors import TORCH

__all__ = ["TILE", "Masked", "Rows", "Stored", "TaskVectorReader", "Work", "ahead"]

Stored = Literal["sum", "mean", "ties"]
"""What the stored v is of the true task vectors."""

TILE = 1 << 15
"""Elements worked on at once: torch runs so short operations in the calling thread."""

_TOGETHER = 8
"""Elements that packed symbols are taken by."""

_NOTHING: Bytes = np.empty(0, np.uint8)
_NUMBER = {torch.float32: np.float32, torch.float64: np.float64}

_R = TypeVar("_R")
Work = Callable[[Lineup, int, int], _R]
Span = tuple[int, int, tuple[Member, ...]]
Rows = tuple[int, int, tuple[Member, ...], Tensor]
"""First element of a tile and the one behind its last, the members there, and a row of each: shape (T', N)."""
Piece = Tensor | None
"""A member's share of a window: symbols (uint8), a delta, or None where it is the base."""


@dataclass(frozen=True)
class DecodedTile(MergeTile):
    """A tile whose task vectors do not all come from one v: they are given as they are."""

    rows: Tensor
    """Shape (T', N), dtype of `vector`."""

    @cached_property
    def tau(self) -> Tensor:
        """The decoded task vectors."""
        return self.rows


@dataclass(frozen=True)
class RowsTile(DecodedTile):
    """One whose v is the sum of its rows."""

    @property
    def total(self) -> Tensor:
        return self.vector


class Masked(NamedTuple):
    """A window of masks over one vector, still packed."""

    vector: npt.NDArray[Any]
    """v: shape (N,), the type that is computed in."""
    packed: Bytes
    """Shape (T', bytes of N symbols)."""
    bits: int
    """Of a symbol."""
    scales: npt.NDArray[Any]
    """s: shape (T',), the type of v."""


class Gaps(NamedTuple):
    """A window of masks over ones, by the gaps between their marks: see `kernels.native.steps`."""

    gaps: Bytes
    gap_at: npt.NDArray[np.int64]
    signs: Bytes
    sign_at: npt.NDArray[np.int64]
    scales: npt.NDArray[Any]


class TaskVectorReader:
    """Of several tasks of one archive."""

    def __init__(self, decoder: Decoder, stored: Stored | None) -> None:
        self._decoder = decoder
        self._stored = stored

    def rows(self, lineup: Lineup, start: int, stop: int, longest: int = TILE) -> Iterator[Rows] | None:
        """A window's task vectors, written straight from their codes; None where that is not to be had for all.

        Yields tiles, each in memory that the next one is written to.
        """
        kind = wide(TORCH[lineup.facts.dtype])
        there = [m for m in lineup.members if m.entry.covered > start]
        spans = list(lineup.spans(start, stop, longest))
        runs = self._runs(there, spans, kind)
        if runs is None:
            return None
        room = torch.empty(len(there) * min(longest, stop - start), dtype=kind)

        def written() -> Iterator[Rows]:
            for a, b, here in spans:
                rows = room[: len(here) * (b - a)].view(len(here), b - a).zero_()
                for member, row in zip(here, rows, strict=True):
                    if (run := runs.get(member.index)) is not None:
                        run(row, row)
                yield a, b, here, rows

        return written()

    def gaps(self, lineup: Lineup, start: int, stop: int) -> Gaps | None:
        """A window's masks, if all are over ones, coded by their gaps, and of chunks of the window's own size."""
        kind = wide(TORCH[lineup.facts.dtype])
        there = [m for m in lineup.members if m.entry.covered > start]
        moved = [m for m in there if m.kind != "base"]
        sizes = {m.entry.coded.chunk if m.masked and m.entry.coded else 0 for m in moved}
        if len(sizes) != 1 or any(m.entry.covered < stop for m in there):
            return None
        (size,) = sizes
        odd = any(wide(TORCH[str(m.entry.dtype)]) != kind for m in moved)
        if odd or not size or start % size or stop - start > size:
            return None
        rows: list[GapSteps | None] = []
        for m in there:
            steps = None if m.kind == "base" else self._decoder.steps(m.task, m.name, start // size)
            if m.kind != "base" and not isinstance(steps, GapSteps):
                return None
            rows.append(steps if isinstance(steps, GapSteps) else None)
        gaps = [_NOTHING if row is None else row.gaps for row in rows]
        signs = [_NOTHING if row is None else row.signs for row in rows]
        scales = np.array([0.0 if row is None else row.scale for row in rows], _NUMBER[kind])
        return Gaps(np.concatenate(gaps), _starts(gaps), np.concatenate(signs), _starts(signs), scales)

    def masked(self, lineup: Lineup, start: int, stop: int) -> Masked | None:
        """A window's masks and their one vector, if that is all that there is, in chunks of the window's own size."""
        kind = wide(TORCH[lineup.facts.dtype])
        there = [m for m in lineup.members if m.kind != "base"]
        # Rows of zeros change a sum of many rows only by where its runs end: see `recipes.ordered_sum`.
        zeros = len(there) < len(lineup.members) and len(lineup.members) >= RUN
        alike = {(m.kind, m.group, m.entry.coded.chunk if m.masked and m.entry.coded else 0) for m in there}
        if zeros or len(alike) != 1 or self._stored == "mean" or any(m.entry.covered < stop for m in there):
            return None
        ((symbols, group, size),) = alike
        if not size or start % size or stop - start > size:
            return None
        vector = self._decoder.vector_range(group, lineup.base, start, stop).to(kind).numpy()
        packed = np.stack([self._decoder.packed_chunk(m.task, m.name, start // size) for m in there])
        scales = np.array([m.scale(start) for m in there], vector.dtype)
        return Masked(vector, packed, SYMBOL_BITS[symbols], scales)

    def tiles(self, lineup: Lineup, start: int, stop: int) -> Iterator[tuple[int, int, MergeTile]]:
        """The tiles of a window, with their first element and the one behind their last."""
        kind = wide(TORCH[lineup.facts.dtype])
        written = self.rows(lineup, start, stop)
        if written is not None:
            for a, b, here, rows in written:
                tasks, scales = tuple(m.index for m in here), tuple(m.scale(a) for m in here)
                kept = rows.clone()
                yield a, b, RowsTile(tasks, sum_rows(kept), (kept != 0).to(torch.uint8), scales, kept)
            return
        there = [m for m in lineup.members if m.entry.covered > start]
        spans = list(lineup.spans(start, stop, TILE))
        pieces = {m.index: self._piece(lineup, m, start, min(stop, m.entry.covered)) for m in there}
        groups = sorted({m.group for m in there if m.masked})
        vectors = {g: self._decoder.vector_range(g, lineup.base, start, stop).to(kind) for g in groups}
        for a, b, here in spans:
            own = [None if (piece := pieces[m.index]) is None else piece[a - start : b - start] for m in here]
            cut = {group: vector[a - start : b - start] for group, vector in vectors.items()}
            yield a, b, self._tile(here, own, cut, a, torch.zeros(b - a, dtype=kind))

    def _runs(self, there: Sequence[Member], spans: Sequence[Span], kind: torch.dtype) -> Mapping[int, Run] | None:
        """What writes each member's task vector straight from its codes; None where that is not to be had for all."""
        runs: dict[int, Run] = {}
        moved = [m for m in there if m.kind != "base"]
        if any(m.kind in DECODED or wide(TORCH[str(m.entry.dtype)]) != kind for m in moved):
            return None
        if any(a % _TOGETHER for a, _, _ in spans):
            return None
        for m in moved:
            run = self._decoder.rows(m.task, m.name, spans[0][0], spans[-1][1])
            if run is None:
                return None
            runs[m.index] = run
        return runs

    def _piece(self, lineup: Lineup, member: Member, start: int, stop: int) -> Piece:
        if member.masked:
            return torch.from_numpy(self._decoder.symbol_range(member.task, member.name, start, stop))
        if member.kind == "delta":
            return self._decoder.delta_range(member.task, member.name, start, stop)
        if member.kind == "base":
            return None
        weights = self._decoder.own_range(member.task, member.source, start, stop)
        before = self._decoder.base_range(lineup.base, start, stop)
        kind = wide(TORCH[lineup.facts.dtype])
        # As the encoder has it: the base is rounded to the task's type first, so what did not move is exactly 0.
        return weights.to(kind) - before.to(weights.dtype).to(kind)

    def _tile(
        self, here: Sequence[Member], own: Sequence[Piece], vectors: Mapping[str, Tensor], at: int, zeros: Tensor
    ) -> MergeTile:
        tasks = tuple(m.index for m in here)
        scales = tuple(m.scale(at) for m in here)
        if len(vectors) < 2 and all(m.masked or piece is None for m, piece in zip(here, own, strict=True)):
            off = torch.zeros(len(zeros), dtype=torch.uint8)
            masks = torch.stack([off if piece is None else piece for piece in own]) if own else off.reshape(0, -1)
            plain = MergeTile(tasks, next(iter(vectors.values()), zeros), masks, scales)
            if self._stored != "mean":
                return plain
            return DecodedTile(tasks, plain.vector * len(here), masks, scales, plain.tau)
        rows = torch.stack(
            [_row(m, piece, vectors.get(m.group, zeros), s) for m, piece, s in zip(here, own, scales, strict=True)]
        )
        return DecodedTile(tasks, sum_rows(rows), (rows != 0).to(torch.uint8), scales, rows)


def _starts(arrays: Sequence[Bytes]) -> npt.NDArray[np.int64]:
    """Where each begins in all of them one behind the other, and where the last one ends."""
    return np.cumsum([0, *map(len, arrays)], dtype=np.int64)


def _row(member: Member, piece: Piece, vector: Tensor, scale: float) -> Tensor:
    if piece is None:
        return torch.zeros_like(vector)
    if not member.masked:
        return piece.to(vector.dtype)
    return MergeTile((member.index,), vector, piece.unsqueeze(0), (scale,)).tau[0]


def ahead(
    threads: int, lineups: Sequence[Lineup], work: Work[_R], progress: Callable[[int, int], None] | None = None
) -> Iterator[_R]:
    """Work on every window of some lineups, so many at a time; results in order. Progress counts elements."""
    total, done = sum(lineup.numel for lineup in lineups), 0
    windows = [(lineup, start, stop) for lineup in lineups for start, stop in lineup.windows()]
    jobs = (partial(work, *window) for window in windows)
    with _ONE_EACH:
        results = ordered(
            jobs, threads, ahead=threads + 1, name="tallstore-merge", initializer=torch.set_num_threads, initargs=(1,)
        )
        for (_, start, stop), result in zip(windows, results, strict=True):
            yield result
            done += stop - start
            if progress is not None:
                progress(done, total)


class _OneThreadEach:
    """Torch with one thread in each of ours while any of them is at work, as many as before afterwards.

    Tiles are too short to share. Torch keeps the number both for the process and for each thread, so it is put back by
    every caller, to what it was before the first of those that overlap.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers = 0
        self._before = 1

    def __enter__(self) -> None:
        with self._lock:
            if not self._callers:
                self._before = torch.get_num_threads()
            self._callers += 1
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._callers -= 1
        torch.set_num_threads(self._before)


_ONE_EACH = _OneThreadEach()
