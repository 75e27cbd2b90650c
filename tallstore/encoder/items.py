"""Items: the units of packing, what is read for one, and what becomes of it.

An item is one chunk of one base tensor, for all tasks that have it. It needs only the checkpoints, the finished recipe
and columns that were found before (`tensor_columns`), so items can be done anywhere and in any order; what is made of
them depends on their order alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tallstore.checkpoints import Checkpoint, RoundedBase, TensorInfo
from tallstore.codecs.base import Buffer, MaskCodec, VectorCodec, WholeCodec
from tallstore.codecs.base import Row as Lengths
from tallstore.encoder.chunk import Made
from tallstore.encoder.plan import User
from tallstore.encoder.reasons import Why
from tallstore.encoder.result_files import Span
from tallstore.encoder.row_bits import largest_of
from tallstore.encoder.select_gpu import has_kernels
from tallstore.kernels.scratch import scratch
from tallstore.recipes.base import Recipe
from tallstore.recipes.sampled_changes import SampledPrecision
from tallstore.tensors import TORCH

LOSSLESS = "lossless"
"""The form of a tensor that is coded against the base's without loss."""
WORDS = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}
"""Unsigned integers by bytes an element."""


@dataclass(frozen=True)
class Item:
    """Elements [start, stop) of a base tensor, and the tensors that come from it."""

    name: str
    start: int
    stop: int
    users: tuple[User, ...]
    """Those that may be masked."""
    alike: tuple[User, ...] = ()
    """Those of the base's type and shape that may not: they are compared with it."""


@dataclass(frozen=True)
class Identity:
    """A base tensor whose hash is wanted, and which has more than one item."""

    name: str


@dataclass(frozen=True)
class ColumnsJob:
    """A base tensor, and those that come from it whose chunks are to have columns in common."""

    name: str
    users: tuple[User, ...]


@dataclass(frozen=True)
class WholePiece:
    """Elements [start, stop) of a task's tensor that is stored whole."""

    task: int
    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Read:
    """An item's elements."""

    base: Tensor
    """As it was given: what fine-tuning changed is told from this."""
    rows: tuple[Tensor | None, ...]
    """One a user; None where its tensor has no elements in this chunk."""
    largest: float
    """The largest magnitude of the base's; not finite if there is a NaN."""

    @property
    def bytes(self) -> int:
        """Bytes read."""
        return sum(t.numel() * t.element_size() for t in (self.base, *self.rows) if t is not None)


@dataclass(frozen=True)
class Outcome:
    """What became of one user's chunk."""

    made: Made | None = None
    moved: bool = False
    """Whether it differs from the base in any bit."""
    why_whole: Why | None = None
    """Why the tensor must be stored whole, if it must."""
    if_moved: Why | None = None
    """Why it must if another of its chunks moved: this one did not, but cannot be computed with."""

    lost: bytes = b""
    """The coded difference between the original and what the decoder gives, where that is stored."""
    without_loss: Made | None = None
    """The same row coded without loss, where that may take less than `made` and `lost` together."""

    @property
    def usable(self) -> bool:
        """Whether arithmetic can carry it."""
        return self.why_whole is None and self.if_moved is None


@dataclass(frozen=True)
class Done:
    """A finished item."""

    base: Sequence[Buffer] | None
    """Pieces, good until this thread does the next item."""
    vector: bytes
    outcomes: tuple[Outcome | None, ...]
    alike: tuple[bool, ...]
    """Whether each of the item's `alike` is the base's to the last bit."""
    sha256: str
    """Of the base's elements, where they are the tensor's only ones."""
    read: int


class ColumnsPlace(NamedTuple):
    """Columns that the chunks of a task's tensor have in common: see `common_columns.CommonColumns`."""

    span: Span
    """Their numbers: int8."""
    step: float
    scale: float
    shifts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What every item is done with."""

    base: Checkpoint
    """As it is stored."""
    tasks: Sequence[Checkpoint]
    recipe: Recipe
    vector: VectorCodec
    mask: MaskCodec
    whole: WholeCodec
    """Codec of what is stored whole."""
    embed: bool
    """Whether the base is."""
    chunk: int
    """Elements of an item."""
    device: torch.device
    lossless: WholeCodec | None = None
    """Codec of lost bits."""
    forms: Mapping[tuple[int, str], str] = field(default_factory=dict)
    """(task, base tensor) → the vector codec of a delta of its own, or LOSSLESS: what a budget asks for."""
    drop: Mapping[tuple[int, str], SampledPrecision] = field(default_factory=dict)
    """(task, base tensor) → what is kept of it, where some changes are dropped."""
    columns: Mapping[tuple[int, str], ColumnsPlace] = field(default_factory=dict)
    """(task, base tensor) → where the columns are that its chunks have in common."""
    exact: frozenset[int] = frozenset()
    """Tasks of which the lost bits are stored too."""
    exactly: frozenset[int] = frozenset()
    """Tasks of which every tensor has the form LOSSLESS."""

    def is_lossless(self, user: User, base: str) -> bool:
        """Whether a tensor that comes from the base's of that name is coded without loss."""
        key = (user.task, base)
        if user.lossless or user.task in self.exactly or self.forms.get(key) == LOSSLESS:
            return True
        return key in self.drop and user.task in self.exact  # one layer that loses nothing takes less than two

    def is_masked(self, user: User, base: str) -> bool:
        """Whether it is coded by masks or levels over the base."""
        return not self.is_lossless(user, base) and (user.task, base) not in self.drop

    def dropped(self, user: User, base: str) -> SampledPrecision | None:
        """What is kept of a tensor that comes from the base's of that name, where some changes are dropped."""
        return None if self.is_lossless(user, base) else self.drop.get((user.task, base))

    @property
    def origin(self) -> Checkpoint:
        """The base as it was given."""
        return self.base.origin if isinstance(self.base, RoundedBase) else self.base


def read(item: Item, tools: Tools, base: Tensor | None = None) -> Read:
    """Read an item's elements from every checkpoint; the base's, unless they are given."""
    if base is None:
        base = tools.origin.read(item.name, item.start, item.stop)
    return Read(base, tuple(row_of(item, user, tools) for user in item.users), largest_of(base))


def row_of(item: Item, user: User, tools: Tools) -> Tensor | None:
    """A user's elements of an item; None where its tensor ends before."""
    stop = min(item.stop, user.covered)
    return tools.tasks[user.task].read(user.name, item.start, stop) if item.start < stop else None


def gather_runs(checkpoint: Checkpoint, name: str, runs: Sequence[Item], place: str) -> Tensor:
    """Runs of a tensor's elements, one behind the other, in this thread's memory of that name."""
    kind = TORCH[checkpoint.tensors[name].dtype]
    need = sum(run.stop - run.start for run in runs) * kind.itemsize
    out = torch.from_numpy(scratch(place, need, np.uint8)).view(kind)
    checkpoint.read_runs(name, [(run.start, run.stop) for run in runs], out)
    return out


def read_rows(checkpoint: Checkpoint, name: str, runs: Sequence[tuple[int, int]]) -> Tensor:
    """Runs of elements, one behind the other, in memory of their own."""
    rows = torch.empty(sum(stop - start for start, stop in runs), dtype=TORCH[checkpoint.tensors[name].dtype])
    checkpoint.read_runs(name, runs, rows)
    return rows


def row_by_row(item: Item, tools: Tools) -> bool:
    """Whether rows are worked on one after the other, each from reading to coding, so that a row stays in the cache.

    They are where none depends on another, nor shares a kernel with it, nor ends early, which cuts the others' tiles.
    """
    even = all(user.covered >= item.stop for user in item.users)
    return even and not tools.recipe.shared and tools.vector.id == "ones" and not has_kernels(tools.device)


def row_lengths(info: TensorInfo, item: Item) -> Lengths:
    """The rows of a tensor, and where in one an item begins; zeros of a tensor that has none."""
    length = math.prod(info.shape[1:]) if len(info.shape) > 1 else 0
    return (length, item.start % length) if length else (0, 0)
