"""The unit of packing: one chunk of one base tensor, for all tasks that have it. Read, choose, code; nothing else.

An item needs only the checkpoints and the finished recipe, so items can be done anywhere and in any order; what is
made of them depends on their order alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.checkpoints import Checkpoint, RoundedBase, TensorInfo
from tallstore.codecs.base import Buffer, MaskCodec, VectorCodec, WholeCodec
from tallstore.codecs.base import Row as Lengths
from tallstore.encoder.backend import is_by_sign
from tallstore.encoder.chunk import STATISTIC_TILE, Made, TaskRow, encode_chunk, task_vector, tiles
from tallstore.encoder.device import has_kernels
from tallstore.encoder.kept import remeasure
from tallstore.encoder.lossless import NAN_IN_BASE, encode_row, lossless_bits, may_be_lossless
from tallstore.encoder.plan import User
from tallstore.encoder.straight import Fallback, Start, coherent, counted, leveled, marked, reach, row_in_file, start_of
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels.cpu import difference
from tallstore.kernels.native import encode as native
from tallstore.kernels.scratch import scratch
from tallstore.recipes.base import Recipe, Statistic
from tallstore.recipes.coherence import COLUMNS, gain, picked
from tallstore.tensors import TORCH, as_bytes

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
    why_whole: str = ""
    """Why the tensor must be stored whole, if it must."""
    if_moved: str = ""
    """Why it must if another of its chunks moved: this one did not, but cannot be computed with."""

    lost: bytes = b""
    """The coded difference between the original and what the decoder gives, where that is stored."""
    without_loss: Made | None = None
    """The same row coded without loss, where that may take less than `made` and `lost` together."""

    @property
    def usable(self) -> bool:
        """Whether arithmetic can carry it."""
        return not self.why_whole and not self.if_moved


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
    exact: frozenset[int] = frozenset()
    """Tasks of which the lost bits are stored too."""
    exactly: frozenset[int] = frozenset()
    """Tasks of which every tensor has the form LOSSLESS."""

    def is_lossless(self, user: User, base: str) -> bool:
        """Whether a tensor that comes from the base's of that name is coded without loss."""
        return user.lossless or user.task in self.exactly or self.forms.get((user.task, base)) == LOSSLESS

    @property
    def origin(self) -> Checkpoint:
        """The base as it was given."""
        return self.base.origin if isinstance(self.base, RoundedBase) else self.base


def read(item: Item, tools: Tools, base: Tensor | None = None) -> Read:
    """Read an item's elements from every checkpoint; the base's, unless they are given."""
    if base is None:
        base = tools.origin.read(item.name, item.start, item.stop)
    return Read(base, tuple(_row(item, user, tools) for user in item.users), _largest(base))


def _row(item: Item, user: User, tools: Tools) -> Tensor | None:
    stop = min(item.stop, user.covered)
    return tools.tasks[user.task].read(user.name, item.start, stop) if item.start < stop else None


def _gather(checkpoint: Checkpoint, name: str, runs: Sequence[Item], place: str) -> Tensor:
    """Runs of a tensor's elements, one behind the other, in this thread's memory of that name."""
    kind = TORCH[checkpoint.tensors[name].dtype]
    need = sum(run.stop - run.start for run in runs) * kind.itemsize
    out = torch.from_numpy(scratch(place, need, np.uint8)).view(kind)
    checkpoint.read_runs(name, [(run.start, run.stop) for run in runs], out)
    return out


def _apart(item: Item, tools: Tools) -> bool:
    """Whether rows are worked on one after the other, each from reading to coding, so that a row stays in the cache.

    They are where none depends on another, nor shares a kernel with it, nor ends early, which cuts the others' tiles.
    """
    even = all(user.covered >= item.stop for user in item.users)
    return even and not tools.recipe.shared and tools.vector.id == "ones" and not has_kernels(tools.device)


def measure(item: Item, tools: Tools, statistic: Statistic) -> tuple[list[Any], int]:
    """What a statistic measures on an item's tiles, and how many bytes it stands for."""
    item = replace(item, users=tuple(user for user in item.users if not user.lossless))
    if not item.users:
        return [], 0
    runs = _sample(item, tools.base.tensors[item.name].numel, statistic.one_in)
    weight = (item.stop - item.start) / sum(run.stop - run.start for run in runs)
    rows = _few_rows(item, tools, statistic) if statistic.by_row and not item.start else []
    if _apart(item, tools):
        measured, size = _rows_measured(item, runs, tools, statistic, weight)
        return rows + measured, round(size * weight)
    measured, size = rows, 0
    for run in runs:
        found = read(run, tools)
        size += found.bytes
        measured += _tiles_measured(item, run.users, found, run.start, statistic, weight)
    return measured, round(size * weight)


def _few_rows(item: Item, tools: Tools, statistic: Statistic) -> list[Any]:
    """What a statistic measures on a few rows of a matrix: all of the tensor's, not the item's alone."""
    shape = tools.base.tensors[item.name].shape
    width = math.prod(shape[1:])
    found = []
    columns = min(width, COLUMNS)
    before: dict[int, Tensor] = {}  # the base's, by how many rows there are to pick from: mostly as many for all tasks
    for user in item.users if len(shape) > 1 and width else ():
        count = user.covered // width
        runs = [(row * width, row * width + columns) for row in picked(count)]
        if count not in before:
            before[count] = _read_rows(tools.origin, item.name, runs)
        measured = partial(_gain, user, runs, before[count], tools)
        found.append(statistic.measure_rows(user.task, item.name, measured))
        if tools.origin is tools.base and may_be_lossless(tools.tasks[user.task].tensors[user.name].dtype):
            own = _read_rows(tools.tasks[user.task], user.name, runs)
            if (bits := lossless_bits(own, before[count], user.covered, columns)) is not None:
                found.append(statistic.measure_lossless(user.task, item.name, bits))
    return found


def _gain(user: User, runs: Sequence[tuple[int, int]], before: Tensor, tools: Tools) -> float:
    """How coherent a task's rows are, those of these runs."""
    if not runs:
        return 1.0
    checkpoint, columns = tools.tasks[user.task], runs[0][1] - runs[0][0]
    start = start_of(before, 0.0)
    row = None if start is None else row_in_file(checkpoint, user.name, start)
    if row is not None and start is not None:
        found = coherent(row, [first for first, _ in runs], start, columns)
        if found is not None:
            return found
    own = _read_rows(checkpoint, user.name, runs)
    return gain(task_vector(before, own).to(torch.float32).view(len(runs), columns).numpy())


def _read_rows(checkpoint: Checkpoint, name: str, runs: Sequence[tuple[int, int]]) -> Tensor:
    """Runs of equal length, one behind the other, in memory of their own."""
    found = torch.empty(sum(stop - start for start, stop in runs), dtype=TORCH[checkpoint.tensors[name].dtype])
    checkpoint.read_runs(name, runs, found)
    return found


def _tiles_measured(
    item: Item, users: Sequence[User], found: Read, start: int, statistic: Statistic, weight: float
) -> list[Any]:
    rows = _usable(users, found, _looks(found))
    cut = tiles(found.base, rows, item.name, STATISTIC_TILE, start)
    return [statistic.measure(replace(tile, weight=weight)) for tile in cut if tile.tasks]


def _rows_measured(
    item: Item, runs: Sequence[Item], tools: Tools, statistic: Statistic, weight: float
) -> tuple[list[Any], int]:
    """The same row by row, each with all its runs one behind the other; and the bytes that were read."""
    base = _gather(tools.origin, item.name, runs, "base")
    largest = _largest(base)
    plain = start_of(base, largest)
    cut = _cut(runs)
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
        found = Read(base, (_gather(checkpoint, user.name, runs, "row"),), largest)
        if all(look is not None and look.usable for look in _looks(found)):
            measured += _tiles_measured(item, (user,), found, item.start, statistic, weight)
            continue
        for run in runs:  # those that are usable by themselves
            found = read(replace(run, users=(user,)), tools)
            measured += _tiles_measured(item, (user,), found, run.start, statistic, weight)
    return measured, size


def _cut(runs: Sequence[Item]) -> list[npt.NDArray[np.int64]]:
    """The runs of each tile, their elements one behind the other: from which element to which, shape (R, 2)."""
    found: list[list[tuple[int, int]]] = []
    room = 0
    for run in runs:
        start = run.start
        while start < run.stop:
            if not room:
                found.append([])
                room = STATISTIC_TILE
            stop = min(start + room, run.stop)
            found[-1].append((start, stop))
            start, room = stop, room - (stop - start)
    return [np.array(each, np.int64) for each in found]


def _sample(item: Item, numel: int, one_in: int) -> list[Item]:
    """Runs of one element in so many; of an item of a small tensor, all of it."""
    if one_in == 1 or numel < _SAMPLED:
        return [item]
    starts = range(item.start, item.stop, _RUN * one_in)
    return [replace(item, start=start, stop=min(start + _RUN, item.stop)) for start in starts]


_SAMPLED = 1 << 19
"""Elements from which on a tensor is sampled."""
_RUN = 1 << 13
"""Elements of a run: several rows of an embedding, read at once."""


def do(item: Item, tools: Tools) -> Done:
    """Read an item and code it."""
    base = _gather(tools.base, item.name, [item], "whole")
    raw = as_bytes(base)
    origin = base if tools.origin is tools.base else tools.origin.read(item.name, item.start, item.stop)
    outcomes: dict[User, Outcome | None] = {}
    vector, size = b"", len(raw)
    lossy = replace(item, users=tuple(user for user in item.users if not tools.is_lossless(user, item.name)))
    for found, users in _together(lossy, origin, tools):
        if isinstance(found, Outcome):
            outcomes[users[0]] = found
            size += origin.numel() * origin.element_size()
            continue
        vector, coded = _encode(item, users, found, base, tools)
        outcomes |= zip(users, coded, strict=True)
        size += found.bytes - origin.numel() * origin.element_size()
    for user in item.users:
        if user not in outcomes:
            outcomes[user], read_bytes = _without_loss(item, user, base, tools)
            size += read_bytes
    alike = tuple(same_bits(base, tools.tasks[u.task].read(u.name, item.start, item.stop)) for u in item.alike)
    only = len(base) == tools.base.tensors[item.name].numel
    sha256 = hashlib.sha256(raw.data).hexdigest() if only else ""
    coded_base = tools.whole.encode_pieces(raw, tools.base.tensors[item.name].dtype) if tools.embed else None
    return Done(coded_base, vector, tuple(outcomes[user] for user in item.users), alike, sha256, size)


def _without_loss(item: Item, user: User, base: Tensor, tools: Tools) -> tuple[Outcome | None, int]:
    """What becomes of a row that is coded against the base as it is stored; and how many bytes were read for it."""
    row = _row(item, user, tools)
    if row is None:
        return None, 0
    info = tools.tasks[user.task].tensors[user.name]
    measured = user.task not in tools.exactly and not user.lossless
    found = encode_row(row, base[: len(row)], info.dtype, _rows_of(info, item), measured=measured)
    outcome = Outcome(moved=True, why_whole=NAN_IN_BASE) if found is None else Outcome(made=found[0], moved=found[1])
    return outcome, row.numel() * row.element_size()


def _rows_of(info: TensorInfo, item: Item) -> Lengths:
    """The rows of a tensor, and where in one an item begins; zeros of a tensor that has none."""
    length = math.prod(info.shape[1:]) if len(info.shape) > 1 else 0
    return (length, item.start % length) if length else (0, 0)


def identify(name: str, tools: Tools) -> str:
    """SHA-256 of a base tensor's bytes."""
    digest = hashlib.sha256()
    numel = tools.base.tensors[name].numel
    for start in range(0, numel, tools.chunk):
        run = Item(name, start, min(start + tools.chunk, numel), ())
        digest.update(as_bytes(_gather(tools.base, name, [run], "whole")).data)
    return digest.hexdigest()


def keep(piece: WholePiece, tools: Tools) -> Sequence[Buffer]:
    """Code elements of a tensor that is stored whole: pieces, good until this thread codes the next ones."""
    checkpoint = tools.tasks[piece.task]
    weights = checkpoint.read(piece.name, piece.start, piece.stop)
    return tools.whole.encode_pieces(as_bytes(weights), checkpoint.tensors[piece.name].dtype)


def _together(item: Item, base: Tensor, tools: Tools) -> Iterator[tuple[Read | Outcome, Sequence[User]]]:
    """Rows that are coded together, or what became of one. What is read is good until the next ones are."""
    if not item.users:
        return
    if not _apart(item, tools):
        yield read(item, tools, base), item.users
        return
    largest = _largest(base)
    start = start_of(base, largest) if tools.origin is tools.base else None
    for user in item.users:
        done = Fallback.OUT_OF_REACH if start is None else _straight(item, user, start, tools)
        if isinstance(done, Outcome):
            yield done, (user,)
        else:
            yield Read(base, (_gather(tools.tasks[user.task], user.name, [item], "row"),), largest), (user,)


def _straight(item: Item, user: User, base: Start, tools: Tools) -> Outcome | Fallback | None:
    """What becomes of a row that needs nothing but its file and the base; None of one that needs more."""
    row = row_in_file(tools.tasks[user.task], user.name, base)
    if row is None or (user.task, item.name) in tools.forms or user.task in tools.exact:
        return None
    recipe = tools.recipe
    rule, levels = recipe.rule([user.task], item.name), recipe.levels(user.task, item.name)
    if levels is not None:
        found = leveled(row, item.start, base, levels, recipe.seed(user.task, item.name))
    elif rule is not None and is_by_sign(rule, tools.vector):
        found = marked(row, item.start, base, rule, recipe, tools.mask, user.task)
    else:
        return None
    return found if isinstance(found, Fallback) else Outcome(made=found[0], moved=found[1])


def _encode(
    item: Item, users: Sequence[User], found: Read, base: Tensor, tools: Tools
) -> tuple[bytes, list[Outcome | None]]:
    """Code rows. `base` is what is stored of it."""
    looks = _looks(found)
    rows = [
        replace(row, form=tools.forms.get((row.task, item.name)), exact=row.task in tools.exact)
        for row in _usable(users, found, looks)
    ]
    coded = encode_chunk(found.base, rows, tools.recipe, tools.vector, tools.mask, tools.device, item.name, item.start)
    rounded = base.dtype != found.base.dtype
    codecs = (tools.vector, tools.mask)
    coded = remeasure(coded, rows, base, rounded=rounded, codecs=codecs, recipe=tools.recipe)
    made = iter(zip(coded.rows, rows, strict=True))
    return coded.vector, [
        _outcome(item, user, look, *next(made), base, tools) if look is not None and look.usable else look
        for user, look in zip(users, looks, strict=True)
    ]


def _outcome(item: Item, user: User, look: Outcome, made: Made, row: TaskRow, base: Tensor, tools: Tools) -> Outcome:
    if made.decoded is None or tools.lossless is None:
        return replace(look, made=made)
    size = row.weights.element_size()
    lost = difference(as_bytes(row.weights), as_bytes(made.decoded), size)
    info, other = tools.tasks[user.task].tensors[user.name], None
    if may_be_lossless(info.dtype):
        other = encode_row(row.weights, base[: len(row.weights)], info.dtype, _rows_of(info, item), measured=True)
    return replace(
        look,
        made=replace(made, decoded=None),
        lost=tools.lossless.encode(lost, WORDS[size]),
        without_loss=None if other is None else other[0],
    )


def _looks(found: Read) -> list[Outcome | None]:
    """What is plain to see of each row, before anything is coded."""
    return [None if row is None else _look(row, found.base[: len(row)], found.largest) for row in found.rows]


def _usable(users: Sequence[User], found: Read, looks: Sequence[Outcome | None]) -> list[TaskRow]:
    """The rows that arithmetic can carry."""
    together = zip(users, found.rows, looks, strict=True)
    return [
        TaskRow(user.task, row) for user, row, look in together if row is not None and look is not None and look.usable
    ]


def _look(weights: Tensor, base: Tensor, base_largest: float) -> Outcome:
    """Whether a row moved, and whether it or its base holds what arithmetic cannot carry."""
    same, own_largest = _same_and_largest(weights, base.to(weights.dtype))
    for whose, largest in (("the base's tensor", base_largest), ("it", own_largest)):
        if largest <= reach(weights.dtype):
            continue
        why = f"{whose} holds {f'numbers as large as {largest:.3g}' if math.isfinite(largest) else 'NaN or Inf'}"
        # A NaN has no one image in another type, so only in the same type is such a row the base's.
        return Outcome(if_moved=why) if same and weights.dtype == base.dtype else Outcome(moved=True, why_whole=why)
    return Outcome(moved=not same)


def _same_and_largest(weights: Tensor, base: Tensor) -> tuple[bool, float]:
    """Whether both are equal in every bit, and the largest magnitude of the first; not finite if there is a NaN."""
    if not native.available() or not weights.numel():
        low, high = weights.aminmax() if weights.numel() else (0.0, 0.0)
        return same_bits(weights, base), max(abs(float(low)), abs(float(high)))
    word = np.dtype(f"<u{weights.element_size()}")
    same, top = native.look(as_bytes(weights).view(word), as_bytes(base).view(word))
    found = torch.from_numpy(np.array([top], word).view(f"<i{word.itemsize}")).view(weights.dtype)
    return same, float(found)


def _largest(values: Tensor) -> float:
    """The largest magnitude; not finite if there is a NaN."""
    return _same_and_largest(values, values)[1]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two flat tensors of one type are equal in every bit (−0 is not 0, a NaN is itself)."""
    return np.array_equal(as_bytes(left.contiguous()), as_bytes(right.contiguous()))
