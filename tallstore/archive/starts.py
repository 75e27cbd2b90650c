"""Tensors that build on other tasks' in place of the base's: merges of them, and what is coded against one.

The one place that knows of relatives where tensors are decoded. A tensor is worked on in spans that hold whole
chunks of everything it is made of, so that no chunk is decoded twice for it, whatever sizes the others chose.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from torch import Tensor

from tallstore.archive.base_tensors import BaseElements
from tallstore.archive.chunk_reader import ChunkReader
from tallstore.archive.locations import Places, StartOf, coded
from tallstore.kernels.reference import SYMBOL_BITS, wide
from tallstore.merging.recipes import merged
from tallstore.tensors import empty

__all__ = ["DecodedPiece", "HeldPieces", "Starts"]

_LOSSY = frozenset({*SYMBOL_BITS, "delta"})
"""Kinds that an exact part, if there is one, has a word on."""
_SPAN = 1 << 18
"""Elements that are merged at once where nothing asks for more."""


class DecodedPiece(NamedTuple):
    """Elements of a tensor that are decoded together."""

    start: int
    stop: int
    fill: Callable[[Tensor], object]
    """Writes them into a flat tensor of theirs."""


Read = Callable[[str, str, int, int], Tensor]
"""Decodes elements of a tensor of a task."""


class HeldPieces:
    """The last pieces of tasks that were decoded to build on, for several archives of the same tasks. Thread-safe."""

    def __init__(self, most: int = 1 << 27) -> None:
        """`most`: bytes that are held."""
        self._most, self._bytes = most, 0
        self._held: OrderedDict[tuple[str, str, int, int], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def reading(self, read: Read) -> Read:
        """The same, from what is held where it is; what it gives is the caller's own."""

        def reads(task: str, name: str, start: int, stop: int) -> Tensor:
            key = task, name, start, stop
            with self._lock:
                piece = self._held.pop(key, None)
                if piece is not None:
                    self._held[key] = piece
                    return piece.clone()
            piece = read(task, name, start, stop)
            with self._lock:
                if key not in self._held:
                    self._held[key] = piece
                    self._bytes += piece.nbytes
                while self._bytes > self._most:
                    self._bytes -= self._held.popitem(last=False)[1].nbytes
            return piece.clone()

        return reads


class Starts:
    """Of one archive. Safe to use from several threads."""

    def __init__(self, places: Places, chunks: ChunkReader, base: BaseElements, read: Read) -> None:
        self._places, self._chunks, self._base, self._read = places, chunks, base, read

    def pieces(self, task: str, name: str, start: int, stop: int, *, exact: bool) -> Iterator[DecodedPiece]:
        """The pieces of a tensor that has a start, as far as that covers it, that elements [start, stop) lie in."""
        place, ground = self._places.task(task)[name], self._places.start_of(task, name)
        span, total = self._span(task, name), place.entry.covered
        for at in range(start // span * span, stop, span):
            end = min(at + span, total)
            yield DecodedPiece(at, end, partial(self._fill, task, name, ground, at, exact=exact))

    def _span(self, task: str, name: str) -> int:
        """Elements of a span: a power of two, and a whole number of chunks of each tensor that it is made of."""
        place = self._places.task(task)[name]
        sizes = [_SPAN if place.entry.coded is None else coded(place).chunk]
        if place.entry.kind == "private":
            sizes.append(coded(self._places.private(task, name)).chunk)
        if place.entry.start is None:
            return max(sizes)
        return max(
            sizes + [self._span(other, source) for _, other, source in self._places.start_of(task, name).members]
        )

    def _fill(self, task: str, name: str, ground: StartOf, at: int, out: Tensor, *, exact: bool) -> None:
        """One span: what it builds on, and what is coded of it."""
        place = self._places.task(task)[name]
        entry = place.entry
        self._start(ground, entry.base, at, out)
        if entry.coded is not None:
            size, vector = entry.coded.chunk, self._places.vector_of(task, name)
            for index in range(at // size, -(-(at + len(out)) // size)):
                part = out[index * size - at : (index + 1) * size - at]
                if entry.kind == "lossless":
                    self._chunks.lossless(place, index, name, part)
                else:
                    self._chunks.steps(place, vector, index, name).begin()(part, part)
        if exact and (entry.kind in _LOSSY or name in self._places.task(task, "exact")):
            lost = self._places.exact(task, name)
            size = coded(lost).chunk
            for index in range(at // size, -(-(at + len(out)) // size)):
                self._chunks.restore(lost, index, name, out[index * size - at : (index + 1) * size - at])

    def _start(self, ground: StartOf, base: str | None, at: int, out: Tensor) -> None:
        stop = at + len(out)
        if ground.copied:
            _, task, source = ground.members[0]
            out.copy_(self._read(task, source, at, stop))
            return
        kind = wide(out.dtype)
        rows = [self._read(task, source, at, stop).to(kind) for _, task, source in ground.members]
        before = None
        if ground.merge.needs_base:
            assert base is not None
            given = empty(self._base.facts(base).dtype, len(out))
            self._base.fill(base, at, stop, given)
            before = given.to(kind)
        out.copy_(merged(ground.merge, [place for place, _, _ in ground.members], rows, before))
