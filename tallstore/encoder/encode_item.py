"""An item, coded: read it, choose vector and masks, code them; nothing else. See `items`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from tallstore.codecs.base import Buffer
from tallstore.encoder.backend import is_by_sign
from tallstore.encoder.chunk import Made, TaskRow, encode_chunk
from tallstore.encoder.fused_rows import (
    Fallback,
    Start,
    leveled,
    marked,
    row_in_file,
    start_of,
)
from tallstore.encoder.inspect_rows import looks_of, usable_rows
from tallstore.encoder.items import (
    WORDS,
    Done,
    Item,
    Outcome,
    Read,
    Tools,
    WholePiece,
    gather_runs,
    read,
    row_by_row,
    row_lengths,
    row_of,
)
from tallstore.encoder.lossless_rows import encode_row, may_be_lossless
from tallstore.encoder.plan import User
from tallstore.encoder.reasons import Reason, Why
from tallstore.encoder.remeasure import remeasure
from tallstore.encoder.row_bits import largest_of, same_bits
from tallstore.encoder.sampled_rows import encode_sampled
from tallstore.encoder.tensor_columns import added_first
from tallstore.kernels.reference import difference
from tallstore.recipes.sampled_changes import SampledPrecision
from tallstore.tensors import as_bytes


def do(item: Item, tools: Tools) -> Done:
    """Read an item and code it."""
    base = gather_runs(tools.base, item.name, [item], "whole")
    raw = as_bytes(base)
    origin = base if tools.origin is tools.base else tools.origin.read(item.name, item.start, item.stop)
    outcomes: dict[User, Outcome | None] = {}
    vector, size = b"", len(raw)
    lossy = replace(item, users=tuple(user for user in item.users if tools.is_masked(user, item.name)))
    for chunk, users in _together(lossy, origin, tools):
        if isinstance(chunk, Outcome):
            outcomes[users[0]] = chunk
            size += origin.numel() * origin.element_size()
            continue
        vector, coded = _encode(item, users, chunk, base, tools)
        outcomes |= zip(users, coded, strict=True)
        size += chunk.bytes - origin.numel() * origin.element_size()
    for user in item.users:
        if user not in outcomes:
            drop = tools.dropped(user, item.name)
            one = _without_loss(item, user, base, tools) if drop is None else _sampled(item, user, base, drop, tools)
            outcomes[user], read_bytes = one
            size += read_bytes
    alike = tuple(same_bits(base, gather_runs(tools.tasks[u.task], u.name, [item], "row")) for u in item.alike)
    only = len(base) == tools.base.tensors[item.name].numel
    sha256 = hashlib.sha256(raw.data).hexdigest() if only else ""
    coded_base = tools.whole.encode_pieces(raw, tools.base.tensors[item.name].dtype) if tools.embed else None
    return Done(coded_base, vector, tuple(outcomes[user] for user in item.users), alike, sha256, size)


def _without_loss(item: Item, user: User, base: Tensor, tools: Tools) -> tuple[Outcome | None, int]:
    """What becomes of a row that is coded against the base as it is stored; and how many bytes were read for it."""
    row = row_of(item, user, tools)
    if row is None:
        return None, 0
    info = tools.tasks[user.task].tensors[user.name]
    measured = user.task not in tools.exactly and not user.lossless
    origin = tools.base.origin_of(item.name, item.start, item.start + len(row))
    lengths = row_lengths(info, item)
    encoded = encode_row(row, base[: len(row)], info.dtype, lengths, measured=measured, origin=origin)
    size = row.numel() * row.element_size()
    if encoded is None:
        return Outcome(moved=True, why_whole=Why(Reason.BASE_NAN)), size
    return Outcome(made=encoded[0], moved=encoded[1]), size


def _sampled(item: Item, user: User, base: Tensor, drop: SampledPrecision, tools: Tools) -> tuple[Outcome | None, int]:
    """What becomes of a row of which some changes are dropped; and how many bytes were read for it."""
    row = row_of(item, user, tools)
    if row is None:
        return None, 0
    dtype, seed = tools.tasks[user.task].tensors[user.name].dtype, tools.recipe.seed(user.task, item.name)
    added = added_first(item, user, tools)
    made, moved = encode_sampled(row, base[: len(row)], dtype, drop, item.start, seed, added)
    return Outcome(made=made, moved=moved), row.numel() * row.element_size()


def identify(name: str, tools: Tools) -> str:
    """SHA-256 of a base tensor's bytes."""
    digest = hashlib.sha256()
    numel = tools.base.tensors[name].numel
    for start in range(0, numel, tools.chunk):
        run = Item(name, start, min(start + tools.chunk, numel), ())
        digest.update(as_bytes(gather_runs(tools.base, name, [run], "whole")).data)
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
    if not row_by_row(item, tools):
        yield read(item, tools, base), item.users
        return
    largest = largest_of(base)
    start = start_of(base, largest) if tools.origin is tools.base else None
    for user in item.users:
        done = Fallback.OUT_OF_REACH if start is None else code_from_file(item, user, start, tools)
        if isinstance(done, Outcome):
            yield done, (user,)
        else:
            yield Read(base, (gather_runs(tools.tasks[user.task], user.name, [item], "row"),), largest), (user,)


def code_from_file(item: Item, user: User, base: Start, tools: Tools) -> Outcome | Fallback | None:
    """What becomes of a row that needs nothing but its file and the base; None of one that needs more."""
    row = row_in_file(tools.tasks[user.task], user.name, base)
    if row is None or (user.task, item.name) in tools.forms or user.task in tools.exact:
        return None
    recipe = tools.recipe
    if (levels := recipe.levels(user.task, item.name)) is not None:
        encoded = leveled(row, item.start, base, levels, recipe.seed(user.task, item.name))
    elif (rule := recipe.rule([user.task], item.name)) is not None and is_by_sign(rule, tools.vector):
        encoded = marked(row, item.start, base, rule, recipe, tools.mask, user.task)
    else:
        return None
    return encoded if isinstance(encoded, Fallback) else Outcome(made=encoded[0], moved=encoded[1])


def _encode(
    item: Item, users: Sequence[User], chunk: Read, base: Tensor, tools: Tools
) -> tuple[bytes, list[Outcome | None]]:
    """Code rows. `base` is what is stored of it."""
    looks = looks_of(chunk)
    rows = [
        replace(row, form=tools.forms.get((row.task, item.name)), exact=row.task in tools.exact)
        for row in usable_rows(users, chunk, looks)
    ]
    coded = encode_chunk(chunk.base, rows, tools.recipe, tools.vector, tools.mask, tools.device, item.name, item.start)
    rounded = base.dtype != chunk.base.dtype
    codecs = (tools.vector, tools.mask)
    coded = remeasure(
        *(coded, rows, base), rounded=rounded, codecs=codecs, recipe=tools.recipe, tensor=item.name, first=item.start
    )
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
        other = encode_row(row.weights, base[: len(row.weights)], info.dtype, row_lengths(info, item), measured=True)
    return replace(
        look,
        made=replace(made, decoded=None),
        lost=tools.lossless.encode(lost, WORDS[size]),
        without_loss=None if other is None else other[0],
    )
