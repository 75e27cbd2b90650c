"""A group's vector and masks coded anew from themselves, without an original: every decoded bit stays.

A mask adds s·v where it is on, and nothing elsewhere. A vector of which tasks were removed still has values that no
mask is on for: they can be 0 (`prune`). And where few tasks are left, each can hold the values it uses by itself:
a `delta` of s·v where its mask is on and 0 elsewhere (`resolve`), after which nobody needs the vector. What a decoder
computes is the same sum of the same numbers, to the last bit; that θ0 + 0 is θ0 holds for all but −0, where the delta
is −0 too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tallstore import codecs
from tallstore.archive.decode import Decoder
from tallstore.archive.locations import coded
from tallstore.archive.reader import Place, Reader
from tallstore.codecs.base import Bytes, Floats
from tallstore.codecs.codebook import Codebook
from tallstore.encoder.part_writer import PartWriter
from tallstore.format.manifest import Group
from tallstore.stores import Sink

_MASKED = frozenset({"binary", "signed"})
_CODECS = ("q4", "q5", "q8", "f32")
"""Of a delta: the first that holds every value is taken, and the last holds any."""


class CannotError(Exception):
    """It cannot be done without changing a bit."""


def prune(decoder: Decoder, reader: Reader, group: Group, sink: Sink) -> tuple[PartWriter, float]:
    """The group's vector with 0 where no mask is on, without tensors that no task needs; the share of values that went.

    (Of those that were not 0.)
    """
    places = decoder.vectors(group.id)
    users: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for task in group.tasks:
        for name, place in decoder.task(task).items():
            if place.entry.kind in _MASKED:
                users[str(place.entry.base)].append((task, name))
    writer = PartWriter(sink, group.parts[0], "vector", group.id)
    gone = there = 0
    for name, place in places.items():
        if not users[name]:
            gone, there = gone + place.entry.numel, there + place.entry.numel
            continue
        code = coded(place)
        writer.begin()
        for index, start, stop in _spans(place):
            used = np.zeros(stop - start, bool)
            for task, own in users[name]:
                covered = decoder.task(task)[own].entry.covered
                if start < covered:
                    marks = decoder.symbol_range(task, own, start, min(stop, covered))
                    used[: len(marks)] |= marks != 0
            values = decoder.vector_range(group.id, name, start, stop).numpy() != 0
            gone, there = gone + int((values & ~used).sum()), there + int(values.sum())
            writer.add(_zeroed(code.codec, reader.chunk(place, index, name), used))
        writer.end(name, code.codec, code.chunk, replace(place.entry, coded=None))
    return writer, gone / max(1, there)


def resolve(decoder: Decoder, reader: Reader, group: Group, task: str, sink: Sink) -> PartWriter:
    """A task's mask part in which every mask has become a delta. Raises CannotError where that would change a bit."""
    path = reader.manifest.tasks[task].parts["mask"][0]
    writer = PartWriter(sink, path, "mask", task)
    for name, place in decoder.task(task).items():
        entry = place.entry
        if entry.coded is None:
            writer.note(name, entry)
        elif entry.kind not in _MASKED:
            writer.begin()
            for index, _, _ in _spans(place):
                writer.add(bytes(reader.chunk(place, index, name)))
            writer.end(name, entry.coded.codec, entry.coded.chunk, replace(entry, coded=None))
        else:
            _resolved(decoder, group.id, task, name, place, writer)
    return writer


def _resolved(decoder: Decoder, group: str, task: str, name: str, place: Place, writer: PartWriter) -> None:
    entry = place.entry
    base = decoder.base_tensor(str(entry.base)).reshape(-1)[: entry.covered]
    if not bool(base.isfinite().all()):
        raise CannotError
    negative_zero = ((base == 0) & base.signbit()).numpy()
    for codec in _CODECS:
        vector_codec = codecs.VECTOR[codec]
        writer.begin()
        for index, start, stop in _spans(place):
            scale = 1.0 if entry.scales is None else entry.scales[index]
            vector = decoder.vector_range(group, str(entry.base), start, stop).numpy()
            marks = decoder.symbol_range(task, name, start, stop)
            delta = _delta(vector, marks, scale, negative_zero[start:stop], wide=entry.dtype == "F64")
            if not isinstance(vector_codec, Codebook):
                writer.add(vector_codec.encode(delta))
                continue
            levels = _levels(delta)
            if levels is None or len(levels[0]) > vector_codec.levels:
                break
            writer.add(vector_codec.encode_indices(*levels))
        else:
            writer.end(name, codec, coded(place).chunk, replace(entry, kind="delta", scales=None, coded=None))
            return


def _delta(vector: Floats, marks: Bytes, scale: float, negative_zero: Bytes, *, wide: bool) -> Floats:
    """What is added to each element: ±s·v as the decoder rounds it, or a zero that leaves the element as it is."""
    step = vector * np.float32(scale)
    if not np.isfinite(step).all() or (wide and (step != vector.astype(np.float64) * scale).any()):
        raise CannotError
    nothing = np.where(negative_zero, np.float32(-0.0), np.float32(0.0))
    return np.where(marks == 0, nothing, np.where(marks == 2, -step, step)).astype(np.float32)


def _levels(delta: Floats) -> tuple[Floats, Bytes] | None:
    """Table, +0 first, and indices; None if there are more than a byte counts."""
    words, indices = np.unique(delta.view(np.uint32), return_inverse=True)
    table = words.view(np.float32)
    if not len(words) or words[0] != 0:  # +0 is the least of all words; a table begins with it
        table, indices = np.concatenate([np.zeros(1, np.float32), table]), indices + 1
    return (table, indices.astype(np.uint8)) if len(table) <= 256 else None


def _zeroed(codec_id: str, data: memoryview, used: Bytes) -> bytes:
    """A chunk of a vector, with 0 where it is not used and every other value as it was."""
    codec = codecs.VECTOR[codec_id]
    levels = codec.decode_levels(data, len(used))
    if levels is None or not isinstance(codec, Codebook):
        return codec.encode(np.where(used, codec.decode(data, len(used)), np.float32(0)))
    indices = levels.packed
    if levels.bits == 4:
        indices = np.stack([indices & 15, indices >> 4], axis=1).reshape(-1)[: len(used)]
    return codec.encode_indices(levels.table, np.where(used, indices, np.uint8(0)))


def _spans(place: Place) -> Iterator[tuple[int, int, int]]:
    """Index, first element and the one behind the last of each chunk."""
    size, total = coded(place).chunk, place.entry.covered
    for index in range(len(coded(place).chunks)):
        yield index, index * size, min((index + 1) * size, total)
