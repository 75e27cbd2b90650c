"""Lossless codec `drift`: steps on the lattice, of a task that starts from others rather than from the base.

As `lattice`, with one mode more. There the context of an element is told by its drift, too: how many steps the start is
away from the base. Training goes on where it was going, and what never moved mostly stays; so a later checkpoint is
coded in fewer bits, and an earlier one, which lies between its start and the base, in many fewer.

    u8 4 | what `coded_steps` tells | places of exceptions, u16 each | symbols of exceptions, i8 each
"""

from __future__ import annotations

import struct

import numpy as np

from tallstore.codecs import zstd
from tallstore.codecs.base import ALONE, Buffer, Bytes, Given, Row
from tallstore.codecs.coded_steps import Head, checked_weights, coded_chunk, read_head
from tallstore.codecs.drift_model import choose
from tallstore.codecs.lattice import LatticeCodec, encode_steps
from tallstore.errors import FormatError
from tallstore.kernels import drift as steps
from tallstore.kernels.drift import CLASSES, GRADES, DriftModel, DriftSymbols
from tallstore.kernels.drift_fast import decode, encode
from tallstore.kernels.lattice import CONTEXTS, LATTICES, LEVELS, MOST_TABLES, Integers, Lattice, Words, segments_of

__all__ = ["DRIFT", "DriftCodec", "written"]

DRIFT = 4
"""The mode of steps whose contexts are told by what their start has drifted from the base."""
_MODEL = struct.Struct("<BBB")
"""Tables, magnitudes' symbols, log2 of the steps of a class of drift."""
_MOST_CONTEXTS = CONTEXTS + (GRADES - 1) * LEVELS
_FARTHEST = (1 << 16) - 1
"""What a place may be behind the one before."""


class DriftCodec(LatticeCodec):
    """Spec: `spec/codecs/drift.md`."""

    id = "drift"
    needs_origin = True

    def encode(self, raw: Bytes, base: Bytes, dtype: str, row: Row = (0, 0), origin: Bytes | None = None) -> bytes:
        """Whichever mode is the smallest, as far as samples and counts tell."""

        def coded(lattice: Lattice, after: Words, before: Words) -> bytes:
            beneath = None if origin is None else origin.view(lattice.word)
            chosen = None if beneath is None else choose(lattice, after, before, beneath, row)
            if chosen is None:
                return encode_steps(lattice, after, before, row)
            return written(encode(*chosen), chosen.model)

        return self._encode(raw, base, dtype, coded)

    def decode(self, data: Buffer, out: Bytes, dtype: str, given: Given = ALONE) -> None:
        """By the first byte."""
        view = memoryview(data).cast("B")
        if len(view) and view[0] == DRIFT and dtype in LATTICES and given.origin is not None:
            _go_on(LATTICES[dtype], out, view, given.origin)
        else:
            super().decode(data, out, dtype)


def written(symbols: DriftSymbols, model: DriftModel) -> bytes:
    """The chunk of mode 4 of steps that are coded by this model."""
    tables, every = model.weights.shape
    parts = (model.grades, model.weights, model.shifts, model.table)
    told = _MODEL.pack(tables, (every + 1) // 2, model.unit) + b"".join(each.tobytes() for each in parts)
    gaps, odd = _gaps(symbols)
    chunk = coded_chunk(DRIFT, (model.bits, model.low, model.width, model.first), told, symbols)
    return chunk + gaps.astype("<u2").tobytes() + odd.tobytes()


def _gaps(symbols: DriftSymbols) -> tuple[Integers, Bytes]:
    """How far each exception is behind the one before, and its symbol; too far ones have exceptions of 0 between."""
    gaps = np.diff(symbols.places.astype(np.int64), prepend=-1) - 1
    between = gaps // (_FARTHEST + 1)
    at = np.cumsum(between + 1) - 1
    far, odd = (
        np.full(len(gaps) + int(between.sum()), _FARTHEST, np.int64),
        np.zeros(len(gaps) + int(between.sum()), "i1"),
    )
    far[at], odd[at] = gaps - between * (_FARTHEST + 1), symbols.odd
    return far, odd.view(np.uint8)


def _go_on(lattice: Lattice, out: Bytes, view: memoryview, origin: Bytes) -> None:
    """Decode a chunk of mode 4."""
    if len(origin) != len(out):
        raise ValueError(f"an origin of {len(origin)} bytes is not one of {len(out)}")
    words, base = out.view(lattice.word), origin.view(lattice.word)
    head, n = read_head(lattice, view), len(words)
    most = _MODEL.size + CLASSES + MOST_TABLES * (2 * lattice.symbols - 1) + _MOST_CONTEXTS
    told = zstd.decompress_up_to(head.frame(view), most + segments_of(n, head.width, head.first))
    if not decode(lattice, words, base, np.frombuffer(view, np.uint8), told):
        model, symbols = _model(told, lattice, n, head), _symbols(lattice, head, view, n)
        steps.decode(lattice, words, base, model, symbols)


def _symbols(lattice: Lattice, head: Head, view: memoryview, n: int) -> DriftSymbols:
    """The coded symbols of a chunk of n elements, everything in range."""
    coded, rest = head.parts(view, None)
    count, left = divmod(len(rest), 3)
    if left:
        raise FormatError(f"coded steps do not fit {len(view)} bytes")
    places = np.cumsum(np.frombuffer(rest[: 2 * count], "<u2").astype(np.int64) + 1) - 1
    odd = np.frombuffer(rest[2 * count :], np.int8)
    if count and (int(places[-1]) >= n or int(np.abs(odd.astype(np.int64)).max()) >= lattice.symbols):
        raise FormatError(f"exceptions of steps are out of range of {n} elements")
    return DriftSymbols(coded.states, coded.words, coded.extra, places.astype(np.uint32), odd)


def _model(told: Bytes, lattice: Lattice, n: int, head: Head) -> DriftModel:
    """The model of a chunk of n elements, everything in range."""
    segments = segments_of(n, head.width, head.first)
    if len(told) < _MODEL.size + CLASSES:
        raise FormatError("the model of steps is cut off")
    tables, symbols, unit = _MODEL.unpack_from(told.data)
    if not (0 < tables <= MOST_TABLES and 0 < symbols <= lattice.symbols and unit < lattice.bits):
        raise FormatError(f"a model of {tables} tables of {symbols} symbols by 2^{unit} steps is out of range")
    every = 2 * symbols - 1
    grades, weights, shifts, table = np.split(told[_MODEL.size :], np.cumsum([CLASSES, tables * every, segments]))
    contexts = GRADES * LEVELS + int(shifts.max(initial=0))
    if len(shifts) != segments or len(table) != contexts or contexts > _MOST_CONTEXTS:
        raise FormatError(f"a model of {len(told)} bytes does not fit {segments} segments")
    if int(grades.max()) >= GRADES:
        raise FormatError("a model of steps names a grade that there is not")
    return DriftModel(
        bits=head.bits,
        low=head.low,
        unit=unit,
        grades=grades,
        width=head.width,
        first=head.first,
        shifts=shifts,
        table=table,
        weights=checked_weights(weights.reshape(tables, every), table),
    )
