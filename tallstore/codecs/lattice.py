"""Lossless codec `lattice`: a task's elements as steps from the base's on the lattice of numbers of their type.

    u8 0: the base's elements
    u8 1 | the differences as integers, zigzag, coded by `planes+zstd`
    u8 2 | the task's own elements, coded by `planes+zstd`
    u8 3 | the steps, coded by a model: the head, the model in a zstd frame, the lanes' states, words, open bits

Types that are not floats, and those of eight bytes, have modes 0 to 2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.codecs import zstd
from tallstore.codecs.base import ALONE, Buffer, Bytes, Given, LosslessCodec, Row
from tallstore.codecs.coded_steps import Head, checked_weights, coded_chunk, read_head
from tallstore.codecs.lattice_model import choose, lanes_for, lowest, lowest_of, sampled
from tallstore.codecs.planes import Planes
from tallstore.codecs.sample import sample
from tallstore.errors import FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels import lattice as steps
from tallstore.kernels import reference
from tallstore.kernels.lattice import (
    CONTEXTS,
    DIRECT,
    GRADES,
    LARGEST,
    LATTICES,
    LEVELS,
    MOST_RANK,
    MOST_TABLES,
    Lattice,
    LatticeSymbols,
    Model,
    Prepared,
    Rows,
    Words,
    segments_of,
)
from tallstore.kernels.lattice_choices import both_signs
from tallstore.kernels.lattice_fast import decode, encode, prepare

__all__ = ["LatticeCodec", "encode_steps", "written"]

_SAME, _DIFFERENCES, _WHOLE, _STEPS = 0, 1, 2, 3
_WORDS = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}
"""Unsigned integers by bytes an element."""
_MODEL = struct.Struct("<BBB")
"""Tables, magnitudes' symbols, directions."""
_FEW = 1 << 12
"""Bytes that mostly tell whether anything moved."""
_ONE_IN = 64
"""Of how many bytes one is looked at to tell what the task's own elements would take."""
_DOUBTFUL = 2
"""Where the task's own elements take less than so many times the steps in a sample, they are coded whole too."""


class LatticeCodec(LosslessCodec):
    """Spec: `spec/codecs/lattice.md`."""

    id = "lattice"
    _planes = Planes()

    def encode(
        self,
        raw: Bytes,
        base: Bytes,
        dtype: str,
        row: Row = (0, 0),
        origin: Bytes | None = None,  # noqa: ARG002 - drift's
    ) -> bytes:
        """Whichever mode is the smallest, as far as samples tell."""
        return self._encode(raw, base, dtype, lambda lattice, after, before: encode_steps(lattice, after, before, row))

    @staticmethod
    def encode_numbers(numbers: npt.NDArray[np.signedinteger[Any]], levels: Bytes, low: int, most: int) -> bytes:
        """Whole numbers as steps of BF16 from made-up elements, of which nothing but the exponent says anything.

        Args:
            numbers: int8 or int16, shape (K,).
            levels: of each the exponent of what it starts from, less `low`: at most 15.
            low: where levels begin; it is elsewhere, if a sample of them says so.
            most: no number is larger.
        """
        if not numbers.any():
            return bytes([_SAME])
        said = lowest_of(sampled(levels).astype(np.int64) + low)
        if said != low:
            levels = np.minimum(levels + np.uint8(low - said), np.uint8(LEVELS - 1))
        if most < DIRECT:  # a step is its own symbol
            symbols = numbers.astype(np.int8, copy=False)
            return _coded(Prepared(symbols, levels, np.zeros(0, np.uint8)), said, (0, 0))
        lattice = LATTICES["BF16"]
        words = (levels.astype(np.uint16) + np.uint16(said)) << np.uint16(lattice.shift)
        after = lattice.turned(words + numbers.astype(np.uint16))
        return _coded(prepare(lattice, after, words, said), said, (0, 0))

    def _encode(self, raw: Bytes, base: Bytes, dtype: str, steps: Callable[[Lattice, Words, Words], bytes]) -> bytes:
        """`steps`: the chunk of the mode of steps, of elements as words, given those that they start from."""
        if np.array_equal(raw[:_FEW], base[:_FEW]) and np.array_equal(raw, base):
            return bytes([_SAME])
        lattice = LATTICES.get(dtype)
        if lattice is None:
            coded = self._differences(raw, base, ITEM_BYTES[dtype])
        else:
            coded = steps(lattice, raw.view(lattice.word), base.view(lattice.word))
        few = sample(raw, _ONE_IN)
        if few is not None and len(self._planes.encode(few, dtype)) * len(raw) >= _DOUBTFUL * len(coded) * len(few):
            return coded
        whole = self._planes.encode(raw, dtype)
        return coded if len(coded) <= 1 + len(whole) else bytes([_WHOLE]) + whole

    def _differences(self, raw: Bytes, base: Bytes, item: int) -> bytes:
        return bytes([_DIFFERENCES]) + self._planes.encode(reference.difference(raw, base, item), _WORDS[item])

    def decode(self, data: Buffer, out: Bytes, dtype: str, given: Given = ALONE) -> None:  # noqa: ARG002 - drift's
        """By the first byte."""
        view = memoryview(data).cast("B")
        mode = view[0] if len(view) else None
        if mode == _SAME and len(view) == 1:
            return
        if mode == _WHOLE:
            self._planes.decode(view[1:], out, dtype)
        elif mode == _DIFFERENCES:
            item = ITEM_BYTES[dtype]
            stored = np.empty(len(out), np.uint8)
            self._planes.decode(view[1:], stored, _WORDS[item])
            out[:] = reference.undo_difference(stored, out, item)
        elif mode == _STEPS and dtype in LATTICES:
            _take_steps(LATTICES[dtype], out, view)
        else:
            raise FormatError(f"a chunk coded against the base, of mode {mode} for {dtype}, is unknown or cut off")


def encode_steps(lattice: Lattice, after: npt.NDArray[Any], base: npt.NDArray[Any], row: Row) -> bytes:
    """The chunk of mode 3 of elements as words."""
    low = lowest(lattice, base)
    return _coded(prepare(lattice, after, base, low), low, row)


def _coded(prepared: Prepared, low: int, row: Row) -> bytes:
    model = choose(prepared, low, row)
    return written(encode(prepared, model, lanes_for(prepared.symbols)), model)


def written(steps: LatticeSymbols, model: Model) -> bytes:
    """The chunk of mode 3 of steps that are coded by this model."""
    rows = model.rows
    return coded_chunk(_STEPS, (model.bits, model.low, rows.width, rows.first), _told(model), steps)


def _told(model: Model) -> bytes:
    """A model as it is written; without directions, both signs have the same weights, which are written once."""
    rows, (tables, every) = model.rows, model.weights.shape
    weights = model.weights if len(rows.along) else model.weights[:, ::2]
    head = _MODEL.pack(tables, (every + 1) // 2, len(rows.along))
    parts = (weights, rows.shifts, model.table, rows.marks.astype("<u2"), rows.across, rows.along)
    return head + b"".join(each.tobytes() for each in parts)


def _take_steps(lattice: Lattice, out: Bytes, view: memoryview) -> None:
    words = out.view(lattice.word)
    head = read_head(lattice, view)
    segments = segments_of(len(words), head.width, head.first)
    most = _MODEL.size + GRADES * CONTEXTS + MOST_TABLES * (2 * lattice.symbols - 1) + segments + 2 * (GRADES - 1)
    most += MOST_RANK * (segments + head.width) if head.width <= len(words) else 0
    told = zstd.decompress_up_to(head.frame(view), most)
    if not decode(lattice, words, np.frombuffer(view, np.uint8), told):
        symbols, _ = head.parts(view, after=0)
        steps.decode(lattice, words, _model(told, lattice, len(words), head), symbols)


def _model(told: Bytes, lattice: Lattice, n: int, head: Head) -> Model:
    """The model of a chunk of n elements, everything in range."""
    width, first = head.width, head.first
    segments = segments_of(n, width, first)
    if len(told) < _MODEL.size:
        raise FormatError("the model of steps is cut off")
    tables, symbols, rank = _MODEL.unpack_from(told.data)
    if not (0 < tables <= MOST_TABLES and 0 < symbols <= lattice.symbols):
        raise FormatError(f"a model of {tables} tables of {symbols} symbols is out of range")
    if rank > MOST_RANK or (rank and not 0 < width <= n):
        raise FormatError(f"a model of {rank} directions of {width} places is out of range")
    grades, every = (GRADES, 2 * symbols - 1) if rank else (1, symbols)
    weights, shifts, rest = np.split(told[_MODEL.size :], np.cumsum([tables * every, segments]))
    contexts = LEVELS + int(shifts.max(initial=0))
    ends = np.cumsum([grades * contexts, 2 * (GRADES - 1) * (rank > 0), segments * rank])
    table, marks, across, along = np.split(rest, ends)
    if len(shifts) != segments or len(rest) != int(ends[-1]) + rank * width or contexts > CONTEXTS:
        raise FormatError(f"a model of {len(told)} bytes does not fit {segments} segments")
    rows = Rows(
        width=width,
        first=first,
        shifts=shifts,
        across=across.view(np.int8).reshape(segments, rank),
        along=along.view(np.int8).reshape(rank, width),
        marks=np.frombuffer(marks.tobytes(), "<u2").astype(np.uint16),
    )
    if rank and (max(_largest(across), _largest(along)) > LARGEST or not _ascend(rows.marks)):
        raise FormatError("directions of steps are out of range")
    weights = checked_weights(weights.reshape(tables, every), table)
    weights = np.ascontiguousarray(weights) if rank else both_signs(weights)
    return Model(bits=head.bits, low=head.low, rows=rows, table=table.reshape(grades, contexts), weights=weights)


def _largest(numbers: Bytes) -> int:
    """Magnitude of signed bytes."""
    return int(np.abs(numbers.view(np.int8).astype(np.int16)).max(initial=0))


def _ascend(marks: npt.NDArray[np.uint16]) -> bool:
    return int(marks[0]) > 0 and int(marks[-1]) < 1 << 15 and bool((marks[1:] >= marks[:-1]).all())
