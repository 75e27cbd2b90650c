"""A task's weights tensor by tensor and slice by slice, as `safetensors.safe_open` gives those of a file.

A rank of a serving engine takes the rows or columns that are its own. Of the archive, the chunks are read that these
lie in and no others, but for a tensor's first one where that tells what all of them need: rows of a matrix are a few
consecutive chunks, columns are a piece of every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from tallstore.archive.base_tensors import BaseElements, Job
from tallstore.archive.chunk_reader import ChunkReader
from tallstore.archive.indexing import select
from tallstore.archive.locations import Places
from tallstore.archive.memory_guard import room_for
from tallstore.archive.piece_cache import PieceCache
from tallstore.archive.read_plan import LOSSY, How, Origin, ReadPlan, Segment, TensorPlan
from tallstore.archive.segments import SegmentWriter
from tallstore.errors import NoSuchTensorError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.manifest import names_of
from tallstore.tensors import TORCH, empty, shape_of, usual_device

__all__ = ["DecodedPiece", "Pieces", "TaskWeights", "TensorSlice"]


class DecodedPiece(NamedTuple):
    """Elements of a tensor that are decoded together."""

    start: int
    stop: int
    fill: Callable[[Tensor], object]
    """Writes them into a flat tensor of theirs."""


class Pieces:
    """How the tensors of an archive fall into pieces. Safe to use from several threads."""

    def __init__(
        self, places: Places, chunks: ChunkReader, base: BaseElements, run: Callable[[list[Job]], None]
    ) -> None:
        self.places, self._base = places, base
        self.plan = ReadPlan(places, embedded=base.embedded)
        self.writer = SegmentWriter(chunks, base, self.elements, self.into)
        self.run = run
        """Runs jobs side by side."""

    def hold(self, held: PieceCache) -> None:
        """Keep what tensors that build on others' decode of those, for whoever builds on the same."""
        self.writer.read, self.writer.into = held.reading(self.elements), None

    def of(self, task: str, name: str, start: int, stop: int, *, exact: bool) -> Iterator[DecodedPiece]:
        """The pieces of a tensor of its own that elements [start, stop) lie in."""
        plan = self.plan.of(task, name, exact=exact)
        given = self._given(plan)
        for segment in plan.segments(start, stop):
            yield DecodedPiece(segment.start, segment.stop, partial(self._fill, plan, segment, given))

    def _given(self, plan: TensorPlan) -> Callable[[], Tensor | None]:
        """A base that was given is read a tensor at a time: once for all pieces."""
        late = plan.on_base and not self._base.embedded
        return lru_cache(1)(partial(self._base.tensor, str(plan.base))) if late else _nothing

    def _fill(
        self,
        plan: TensorPlan,
        segment: Segment,
        given: Callable[[], Tensor | None],
        out: Tensor,
        origin: Origin | None = None,
    ) -> bool:
        whole = segment.how is How.WHOLE
        return self.writer.write(plan, segment, out, given=None if whole else given(), origin=origin)

    def into(self, task: str, name: str, start: int, out: Tensor, origin: Origin | None) -> bool:
        """Elements from `start` on of a tensor of its own, as many as `out` has, decoded in this thread.

        `origin`: where to put those of the base that are met. Returns whether all of them were.
        """
        plan, stop = self.plan.of(task, name), start + len(out)
        if out.dtype != TORCH[str(plan.entry.dtype)]:
            out.copy_(self.elements(task, name, start, stop))
            return False
        given, met = self._given(plan), origin is not None
        for segment in plan.segments(start, stop):
            a, b = segment.start, segment.stop
            if start <= a and b <= stop:
                where = None if origin is None else origin.part(a - start, b - start)
                met &= self._fill(plan, segment, given, out[a - start : b - start], where)
                continue
            self._fill(plan, segment, given, whole := torch.empty(b - a, dtype=out.dtype))
            low, high, met = max(a, start), min(b, stop), False
            out[low - start : high - start] = whole[low - a : high - a]
        return met

    def elements(self, task: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor of its own, decoded in this thread, one piece after the other."""
        out = empty(str(self.places.task(task)[name].entry.dtype), stop - start)
        self.into(task, name, start, out, None)
        return out


def _nothing() -> None:
    """No base was given."""


class TensorSlice:
    """A tensor that is not read yet: `[a:b]`, `[:, c:d]` and so on read and decode what they need of it."""

    def __init__(self, pieces: Pieces, task: str, name: str, *, exact: bool, device: torch.device) -> None:
        self._pieces, self._task, self._device = pieces, task, device
        self._name = pieces.places.source(task, name)
        self._entry = pieces.places.task(task)[self._name].entry
        self._shape = shape_of(self.get_dtype(), self._entry.shape or ())
        lossy = self._entry.kind in LOSSY or self._entry.start is not None
        self._exact = exact and lossy

    def get_shape(self) -> list[int]:
        """The whole tensor's shape, as a file gives it."""
        return list(self._entry.shape or ())

    def get_dtype(self) -> str:
        """Its type, as safetensors calls it."""
        return str(self._entry.dtype)

    def __getitem__(self, index: Any) -> Tensor:
        """Read a slice: whatever index torch takes of a tensor: integers, slices, lists, masks, tensors, None, `...`.

        Read are the ranges and runs of rows that it touches.

        Raises OptionError for what is no index (IndexError, ValueError or TypeError, too, as torch and safetensors
        have it), ArchiveError for what is damaged.
        """
        what = f"tensor {self._name!r} of shape {list(self._shape)}"
        selection = select(index, self._shape, what)
        with usual_device():
            parts = [self._box([rows, *selection.ranges]) for rows in selection.rows] or [self._box([])]
        read = parts[0] if len(parts) == 1 else torch.cat(parts)
        return selection.of(read).contiguous().to(self._device)

    def _box(self, ranges: list[tuple[int, int]]) -> Tensor:
        """A range of every dimension."""
        out = self._read(ranges)
        for dimension in range(2, len(ranges)):
            start, stop = ranges[dimension]
            out = out.narrow(dimension, start, stop - start)
        return out

    def _read(self, ranges: list[tuple[int, int]]) -> Tensor:
        """Rows and columns; of further dimensions everything."""
        rows, columns = [*ranges, (0, 1), (0, 1)][:2]
        inner = math.prod(self._shape[2:])
        width = (self._shape[1] if len(self._shape) > 1 else 1) * inner
        grid = _Grid.of(rows, (columns[0] * inner, columns[1] * inner), width)
        pieces: list[DecodedPiece] = []
        if grid.numel:  # the entry is checked before memory is taken for it
            pieces += self._pieces.of(self._task, self._name, grid.start, grid.stop, exact=self._exact)
        with room_for(grid.numel * ITEM_BYTES[self.get_dtype()], f"task {self._task!r}: tensor {self._name!r}"):
            out = empty(self.get_dtype(), grid.numel)
        self._pieces.run([partial(grid.put, piece, out) for piece in pieces if grid.needs(piece)])
        shape = [stop - start for start, stop in ranges[:2]]
        return out.reshape([*shape, *self._shape[2:]])


@dataclass(frozen=True)
class _Grid:
    """Rows and columns of a tensor that is seen as a matrix."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    width: int
    """Of the whole matrix."""

    @classmethod
    def of(cls, rows: tuple[int, int], columns: tuple[int, int], width: int) -> _Grid:
        """Rows with all of their columns are one row of a matrix that has no others."""
        if columns == (0, width):
            return cls((0, 1), (rows[0] * width, rows[1] * width), 1 << 62)
        return cls(rows, columns, width)

    @property
    def wide(self) -> int:
        """Columns that are wanted."""
        return self.columns[1] - self.columns[0]

    @property
    def numel(self) -> int:
        """Elements that are wanted."""
        return (self.rows[1] - self.rows[0]) * self.wide

    @property
    def start(self) -> int:
        """The first one."""
        return self.rows[0] * self.width + self.columns[0]

    @property
    def stop(self) -> int:
        """The one behind the last."""
        return (self.rows[1] - 1) * self.width + self.columns[1]

    def needs(self, piece: DecodedPiece) -> bool:
        """Whether anything of a piece is wanted: it may lie between the wanted columns of two rows."""
        return any(True for _ in self._blocks(piece.start, piece.stop))

    def put(self, piece: DecodedPiece, out: Tensor) -> None:
        """Decode a piece, and put what is wanted of it where it belongs in `out`, flat."""
        if self.rows == (0, 1) and self.start <= piece.start and piece.stop <= self.stop:
            piece.fill(out[piece.start - self.start : piece.stop - self.start])
            return
        part = torch.empty(piece.stop - piece.start, dtype=out.dtype)
        piece.fill(part)
        target = out.view(-1, self.wide)
        for first, last, low, high in self._blocks(piece.start, piece.stop):
            at = first * self.width + low - piece.start
            # Rows of the whole matrix, as far as they are wanted: the last one may end with the piece.
            block = part.as_strided((last - first, high - low), (min(self.width, len(part)), 1), at)
            target[first - self.rows[0] : last - self.rows[0], low - self.columns[0] : high - self.columns[0]] = block

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """What is wanted of elements [start, stop): rows [a, b) and columns [c, d), the piece's ends by themselves."""
        first, last = start // self.width, (stop - 1) // self.width
        runs = [(first, last + 1)]
        if first < last:
            head, tail = first + (start % self.width > 0), last + (stop % self.width == 0)
            runs = [(first, head), (head, tail), (tail, last + 1)]
        for a, b in runs:
            a, b = max(a, self.rows[0]), min(b, self.rows[1])  # noqa: PLW2901 - cut to what is wanted
            low = max(self.columns[0], start - a * self.width)
            high = min(self.columns[1], stop - (b - 1) * self.width)
            if a < b and low < high:
                yield a, b, low, high


class TaskWeights:
    """What `Zoo.weights` gives. Reads when it is asked; holds nothing."""

    def __init__(self, pieces: Pieces, task: str, url: str, *, exact: bool, device: torch.device) -> None:
        self._pieces, self._task, self._url = pieces, task, url
        self._exact, self._device = exact, device

    def keys(self) -> list[str]:
        """Names of the task's tensors, in the checkpoint's order."""
        return list(self._pieces.places.task(self._task))

    def metadata(self) -> dict[str, str]:
        """What a checkpoint of the task would say of itself."""
        return {"format": "pt"}

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor of which parts are read by indexing it. Raises NoSuchTensorError."""
        if name not in self._pieces.places.task(self._task):
            raise NoSuchTensorError(
                f"{self._url}: task {self._task!r} has no tensor {name!r}; it has {names_of(self.keys())}"
            )
        return TensorSlice(self._pieces, self._task, name, exact=self._exact, device=self._device)

    def get_tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        return self.get_slice(name)[...]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held: the archive stays open."""
