"""The unit of packing: one chunk of one base tensor, for all tasks that have it. Read, choose, code; nothing else.

An item needs only the checkpoints and the finished recipe, so items can be done anywhere and in any order; what is
made of them depends on their order alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tallstore.checkpoints import Checkpoint
from tallstore.codecs.base import Bytes, MaskCodec, VectorCodec, WholeCodec
from tallstore.encoder.chunk import Made, Row, encode_chunk, tiles
from tallstore.encoder.plan import User
from tallstore.recipes.base import Recipe, Statistic
from tallstore.tensors import as_bytes


@dataclass(frozen=True)
class Item:
    """Elements [start, stop) of a base tensor, and the tensors that come from it."""

    name: str
    start: int
    stop: int
    users: tuple[User, ...]


@dataclass(frozen=True)
class Read:
    """An item's elements."""

    base: Tensor
    rows: tuple[Tensor | None, ...]
    """One a user; None where its tensor has no elements in this chunk."""

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
    why_whole: str = ""
    """Why the tensor must be stored whole, if it must."""


@dataclass(frozen=True)
class Done:
    """A finished item."""

    item: Item
    raw: Bytes
    """The base's elements as bytes, for its hash."""
    base: bytes | None
    vector: bytes
    outcomes: tuple[Outcome | None, ...]
    read: int


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What every item is done with."""

    base: Checkpoint
    tasks: Sequence[Checkpoint]
    recipe: Recipe
    vector: VectorCodec
    mask: MaskCodec
    whole: WholeCodec | None
    """Codec of the base's own chunks; None where the base is not stored."""
    device: torch.device


def read(item: Item, tools: Tools) -> Read:
    """Read an item's elements from every checkpoint."""
    rows = [
        tools.tasks[user.task].read(user.name, item.start, min(item.stop, user.covered))
        if item.start < user.covered
        else None
        for user in item.users
    ]
    return Read(tools.base.read(item.name, item.start, item.stop), tuple(rows))


def measure(item: Item, tools: Tools, statistic: Statistic) -> tuple[list[Any], int]:
    """What a statistic measures on an item's tiles, and how many bytes were read for it."""
    found = read(item, tools)
    pairs = zip(item.users, found.rows, strict=True)
    rows = [Row(user.task, row) for user, row in pairs if row is not None]
    cut = tiles(found.base, rows, tools.device, item.name)
    return [statistic.measure(tile) for tile in cut if tile.tasks], found.bytes


def do(item: Item, tools: Tools) -> Done:
    """Read an item and code it."""
    found = read(item, tools)
    raw = as_bytes(found.base)
    sound = bool(torch.isfinite(found.base).all()) if item.users else True
    looks = [None if row is None else _look(row, found.base, sound) for row in found.rows]
    coded_base = None if tools.whole is None else tools.whole.encode(raw, tools.base.tensors[item.name].dtype)
    rows = [
        Row(user.task, weights)
        for user, weights, look in zip(item.users, found.rows, looks, strict=True)
        if weights is not None and look is not None and not look.why_whole
    ]
    coded = encode_chunk(found.base, rows, tools.recipe, tools.vector, tools.mask, tools.device, item.name)
    made = iter(coded.rows)
    outcomes: list[Outcome | None] = []
    for look in looks:
        if look is None or look.why_whole:
            outcomes.append(look)
            continue
        outcomes.append(Outcome(next(made), moved=look.moved))
    return Done(item, raw, coded_base, coded.vector, tuple(outcomes), found.bytes)


def _look(weights: Tensor, base: Tensor, sound: bool) -> Outcome:
    """Whether a row moved, and whether it holds what arithmetic cannot carry."""
    if same_bits(weights, base[: len(weights)].to(weights.dtype)):
        return Outcome()
    if not sound:
        return Outcome(moved=True, why_whole="the base's tensor holds NaN or Inf")
    if not bool(torch.isfinite(weights.to(torch.float32)).all()):
        return Outcome(moved=True, why_whole="it holds NaN or Inf")
    return Outcome(moved=True)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two flat tensors of one type are equal in every bit (−0 is not 0, a NaN is itself)."""
    return np.array_equal(as_bytes(left.contiguous()), as_bytes(right.contiguous()))
