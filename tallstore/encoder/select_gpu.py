"""The choice of v and the masks on a GPU: a chunk goes there as it was read, and comes back as v and packed bits.

What is chosen is bit for bit what the CPU chooses. Nothing of size tasks × elements is made there beside the tensors
themselves. They are copied piece by piece through pinned memory on a stream of its own, while kernels work on the
pieces before; threads have streams of their own, so that one chunk is copied while another is worked on.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from tallstore.codecs.base import Bytes, VectorCodec
from tallstore.encoder.metrics import BLOCK, N_SUMS, add_blocks
from tallstore.encoder.tile import TILE, ChunkChoice, TaskRow, spans, tile_type
from tallstore.kernels import reference
from tallstore.kernels.rules import Rule
from tallstore.recipes.base import Recipe

__all__ = ["choose", "has_kernels"]

PIECE = 8 * TILE
"""Elements of each tensor that are copied at once."""
_AT_ONCE = {"f32": torch.float32, "bf16": torch.bfloat16, "ones": None}
"""Vector codecs that round as a kernel can, so that the masks are made in the same pass: the type that v is made in."""


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def has_kernels(device: torch.device) -> bool:
    """Whether there are kernels for a device."""
    return device.type == "cuda" and _has_triton()


@dataclass(frozen=True)
class _Piece:
    """Elements [start, stop) of a chunk, which the same tasks have."""

    start: int
    stop: int
    rows: tuple[int, ...]
    """Which rows have them."""
    rule: Rule


def choose(
    base: Tensor,
    rows: Sequence[TaskRow],
    recipe: Recipe,
    codec: VectorCodec,
    device: torch.device,
    tensor: str,
    start: int,
) -> ChunkChoice:
    """What `chunk.choose` does, of rows whose backend is the GPU."""
    from tallstore.kernels.gpu.encode import encode, packed_stride
    from tallstore.kernels.gpu.measure import measure

    n = len(base)
    pieces = _pieces(n, rows, recipe, tensor)
    lane = lane_of(device)
    with lane.computing():
        sources = [base, *(row.weights for row in rows)]
        there = lane.room(sources)
        at_once = codec.id in _AT_ONCE
        made_in = _AT_ONCE.get(codec.id, torch.float32)
        vector = None if made_in is None else torch.zeros(n, dtype=made_in, device=device)
        packed = [
            torch.empty(len(p.rows), packed_stride(recipe.kind, p.stop - p.start), dtype=torch.uint8, device=device)
            for p in pieces
        ]

        def cut(piece: _Piece) -> tuple[Tensor, list[Tensor]]:
            part = slice(piece.start, piece.stop)
            return there[0][part], [there[1 + row][part] for row in piece.rows]

        def v_of(piece: _Piece) -> Tensor | None:
            return None if vector is None else vector[piece.start : piece.stop]

        for number in lane.feed([(p.start, p.stop) for p in pieces], sources, there):
            piece = pieces[number]
            if piece.rows:
                masks = packed[number] if at_once else None
                encode(*cut(piece), piece.rule, packed=masks, vector=v_of(piece), start=start + piece.start)
        made = torch.zeros(n) if vector is None else vector.cpu().float()
        data = codec.encode(made.numpy())
        stored = torch.from_numpy(np.array(codec.decode(data, n)))
        if not at_once:
            vector = stored.to(device)
            for piece, masks in zip(pieces, packed, strict=True):
                if piece.rows:
                    encode(*cut(piece), piece.rule, packed=masks, vector=v_of(piece), given=True)
        elif vector is not None:
            vector = vector.float()
        joined: list[list[tuple[Bytes, int]]] = [[] for _ in rows]
        totals = torch.zeros(len(rows), N_SUMS, dtype=torch.float64)
        signed = recipe.kind == "signed"
        sums_of = []
        for piece, masks in zip(pieces, packed, strict=True):
            kind = tile_type([rows[row] for row in piece.rows])
            origin, weights = cut(piece)
            parts = [
                measure(origin, own, v_of(piece), marks, kind, signed=signed)
                for own, marks in zip(weights, masks, strict=True)
            ]
            sums_of.append(torch.stack(parts) if parts else torch.zeros(0, N_SUMS, 0))
        for piece, masks, parts_of in zip(pieces, packed, sums_of, strict=True):
            size = piece.stop - piece.start
            for row, marks in zip(piece.rows, masks.cpu().numpy(), strict=True):
                joined[row].append((marks[: reference.packed_size(recipe.kind, size)], size))
            for blocks in torch.split(parts_of.cpu(), TILE // BLOCK, dim=-1):
                totals[list(piece.rows)] += add_blocks(blocks)
    return ChunkChoice(data, stored, [_join(parts, recipe.kind) for parts in joined], totals)


def _join(parts: Sequence[tuple[Bytes, int]], kind: str) -> Bytes:
    """One run of packed symbols from several, each with its number of symbols."""
    if all(size % 8 == 0 for _, size in parts[:-1]):
        return np.concatenate([np.zeros(0, np.uint8), *(packed for packed, _ in parts)])
    # Where another row ends, a piece may end within a byte.
    return reference.pack(np.concatenate([reference.unpack(packed, kind, size) for packed, size in parts]), kind)


def _pieces(n: int, rows: Sequence[TaskRow], recipe: Recipe, tensor: str) -> list[_Piece]:
    pieces = []
    for start, stop in spans(n, rows, PIECE):
        here = tuple(i for i, row in enumerate(rows) if len(row.weights) >= stop)
        rule = recipe.rule([rows[i].task for i in here], tensor)
        assert rule is not None, "the rows' backend is the reference"
        pieces.append(_Piece(start, stop, here, rule))
    return pieces


class _Lane(ABC):
    """One thread's way to a device."""

    @abstractmethod
    def computing(self) -> AbstractContextManager[object]:
        """Within it, work goes to the device and the stream that this lane computes on."""

    @abstractmethod
    def room(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Tensors on the device that `feed` fills."""

    @abstractmethod
    def feed(
        self, cuts: Sequence[tuple[int, int]], sources: Sequence[Tensor], there: Sequence[Tensor]
    ) -> Iterator[int]:
        """Bring elements [start, stop) of all tensors there, cut by cut; the number of each cut once it may be used."""


class _Here(_Lane):
    """The CPU's own memory: nothing moves."""

    def computing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def room(self, sources: Sequence[Tensor]) -> list[Tensor]:
        return [source.contiguous() for source in sources]

    def feed(
        self,
        cuts: Sequence[tuple[int, int]],
        sources: Sequence[Tensor],  # noqa: ARG002 - they are there
        there: Sequence[Tensor],  # noqa: ARG002 - likewise
    ) -> Iterator[int]:
        yield from range(len(cuts))


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]  # likewise


class _Pinned(_Lane):
    """Two streams, and pinned memory for two cuts: one is filled while the other one is on its way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._compute, self._copy = (_stream(device) for _ in range(2))
        self._memory = [torch.empty(0, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._arrived = [_event() for _ in range(2)]

    def computing(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._compute)

    def room(self, sources: Sequence[Tensor]) -> list[Tensor]:
        return [torch.empty(len(source), dtype=source.dtype, device=self._device) for source in sources]

    def feed(
        self, cuts: Sequence[tuple[int, int]], sources: Sequence[Tensor], there: Sequence[Tensor]
    ) -> Iterator[int]:
        # The memory may have been another tensor's, which kernels before still read. Freed again it goes to work on
        # the same stream, which has waited for every copy by then.
        self._copy.wait_stream(self._compute)
        for number, (start, stop) in enumerate(cuts):
            slot = number % 2
            arrived = self._arrived[slot]
            arrived.synchronize()
            staged = self._stage(slot, [source[start:stop] for source in sources])
            with torch.cuda.stream(self._copy):
                for to, part in zip(there, staged, strict=True):
                    to[start : start + len(part)].copy_(part, non_blocking=True)
                arrived.record(self._copy)
            self._compute.wait_event(arrived)
            yield number

    def _stage(self, slot: int, parts: Sequence[Tensor]) -> list[Tensor]:
        """Copies of some tensors, one behind the other in pinned memory."""
        sizes = [part.numel() * part.element_size() for part in parts]
        places = np.cumsum([0, *(-(-size // 16) * 16 for size in sizes)]).tolist()
        if len(self._memory[slot]) < places[-1]:
            self._memory[slot] = torch.empty(places[-1], dtype=torch.uint8, pin_memory=True)
        staged = []
        for part, place, size in zip(parts, places, sizes, strict=False):
            copy = self._memory[slot][place : place + size].view(part.dtype)
            copy.copy_(part)
            staged.append(copy)
        return staged


class _Lanes(threading.local):
    """Each thread's lanes."""

    def __init__(self) -> None:
        self.by_device: dict[torch.device, _Lane] = {}


_LANES = _Lanes()


def lane_of(device: torch.device) -> _Lane:
    if device not in _LANES.by_device:
        _LANES.by_device[device] = _Pinned(device) if device.type == "cuda" else _Here()
    return _LANES.by_device[device]
