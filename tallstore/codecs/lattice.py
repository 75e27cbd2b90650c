"""Lossless codec `lattice`: a task's elements as steps from the base's on the lattice of numbers of their type.

    u8 0: the base's elements
    u8 1 | the differences as integers, zigzag, coded by `planes+zstd`
    u8 2 | the task's own elements, coded by `planes+zstd`
    u8 3 | the steps, coded by a model: the head, the model in a zstd frame, the lanes' states, words, open bits

(Mode 4, of codec `drift`, has the layout of mode 3.)

Types that are not floats, and those of eight bytes, have modes 0 to 2.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.codecs import zstd
from tallstore.codecs.base import Buffer, Bytes, LosslessCodec, Row
from tallstore.codecs.lattice_model import choose, lanes_for, lowest
from tallstore.codecs.planes import Planes
from tallstore.codecs.sample import sample
from tallstore.errors import FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels import lattice as steps
from tallstore.kernels import reference
from tallstore.kernels.lattice import (
    CONTEXTS,
    GRADES,
    LARGEST,
    LATTICES,
    LEVELS,
    MOST_BITS,
    MOST_RANK,
    MOST_TABLES,
    Lattice,
    LatticeSymbols,
    Model,
    Rows,
    drift_of,
    segments_of,
)
from tallstore.kernels.lattice_choices import both_signs
from tallstore.kernels.lattice_fast import decode, encode, prepare

__all__ = ["DRIFT", "LatticeCodec", "take_steps", "written"]

_SAME, _DIFFERENCES, _WHOLE, _STEPS = 0, 1, 2, 3
DRIFT = 4
"""The mode of steps whose predictions are what their start has drifted from the base: of codec `drift`."""
_WORDS = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}
"""Unsigned integers by bytes an element."""
_HEAD = struct.Struct("<BBBBIIIII")
"""Mode, bits, log2 of the lanes, low; width, first, bytes of the model, words, bytes of open bits."""
_MODEL = struct.Struct("<BBB")
"""Tables, magnitudes' symbols, directions."""
_BITS = range(8, MOST_BITS + 1)
_LANES = range(3, 9)
_WEIGHTS = 64
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
        return self._encode(raw, base, dtype, row, None)

    def _encode(self, raw: Bytes, base: Bytes, dtype: str, row: Row, origin: Bytes | None) -> bytes:
        if np.array_equal(raw[:_FEW], base[:_FEW]) and np.array_equal(raw, base):
            return bytes([_SAME])
        lattice = LATTICES.get(dtype)
        if lattice is None:
            coded = self._differences(raw, base, ITEM_BYTES[dtype])
        else:
            coded = _steps(lattice, raw.view(lattice.word), base.view(lattice.word), row, origin)
        few = sample(raw, _ONE_IN)
        if few is not None and len(self._planes.encode(few, dtype)) * len(raw) >= _DOUBTFUL * len(coded) * len(few):
            return coded
        whole = self._planes.encode(raw, dtype)
        return coded if len(coded) <= 1 + len(whole) else bytes([_WHOLE]) + whole

    def _differences(self, raw: Bytes, base: Bytes, item: int) -> bytes:
        return bytes([_DIFFERENCES]) + self._planes.encode(reference.difference(raw, base, item), _WORDS[item])

    def decode(self, data: Buffer, out: Bytes, dtype: str, origin: Bytes | None = None) -> None:  # noqa: ARG002 - drift's
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
            take_steps(LATTICES[dtype], out, view)
        else:
            raise FormatError(f"a chunk coded against the base, of mode {mode} for {dtype}, is unknown or cut off")


def _steps(lattice: Lattice, after: npt.NDArray[Any], base: npt.NDArray[Any], row: Row, origin: Bytes | None) -> bytes:
    low = lowest(lattice, base)
    prepared = prepare(lattice, after, base, low)
    drift = None if origin is None else drift_of(lattice, base, origin.view(lattice.word))
    model = choose(prepared, low, row, drift)
    return written(encode(prepared, model, lanes_for(prepared.symbols, drifted=model.rows.drift is not None)), model)


def written(steps: LatticeSymbols, model: Model) -> bytes:
    """The chunk of mode 3, or 4, of steps that are coded by this model."""
    rows, told, log_lanes = model.rows, zstd.compress(_told(model)), len(steps.states).bit_length() - 1
    counts = len(told), len(steps.words), len(steps.extra)
    mode = _STEPS if rows.drift is None else DRIFT
    head = _HEAD.pack(mode, model.bits, log_lanes, model.low, rows.width, rows.first, *counts)
    parts = (steps.states.astype("<u4"), steps.words.astype("<u2"), steps.extra)
    return head + told + b"".join(part.tobytes() for part in parts)


def _told(model: Model) -> bytes:
    """A model as it is written; without grades, both signs have the same weights, which are written once."""
    rows, (tables, every) = model.rows, model.weights.shape
    weights = model.weights if rows.grades > 1 else model.weights[:, ::2]
    head = _MODEL.pack(tables, (every + 1) // 2, len(rows.along))
    parts = (weights, rows.shifts, model.table, rows.marks.astype("<u2"), rows.across, rows.along)
    return head + b"".join(each.tobytes() for each in parts)


def take_steps(lattice: Lattice, out: Bytes, view: memoryview, origin: Bytes | None = None) -> None:
    """Decode a chunk of mode 3, or of mode 4 with what it drifted from."""
    if origin is not None and len(origin) != len(out):
        raise ValueError(f"an origin of {len(origin)} bytes is not one of {len(out)}")
    words, before = out.view(lattice.word), None if origin is None else origin.view(lattice.word)
    told = _frame(lattice, view, len(words))
    if not decode(lattice, words, np.frombuffer(view, np.uint8), told, before):
        drift = None if before is None else drift_of(lattice, words, before)
        steps.decode(lattice, words, *_open(lattice, view, told, drift, len(words)))


def _frame(lattice: Lattice, view: memoryview, n: int) -> Bytes:
    """What the model of a chunk of n elements is told by."""
    if len(view) < _HEAD.size:
        raise FormatError("coded steps are cut off")
    *_, width, first, size, _, _ = _HEAD.unpack_from(view)
    if not (0 < first <= width or first == width == 0):
        raise FormatError(f"segments of {width} elements cannot begin with one of {first}")
    segments = segments_of(n, width, first)
    most = _MODEL.size + GRADES * CONTEXTS + MOST_TABLES * (2 * lattice.symbols - 1) + segments
    room = MOST_RANK * (segments + width) if width <= n else 0
    return zstd.decompress_up_to(view[_HEAD.size : _HEAD.size + size], most + 2 * (GRADES - 1) + room)


def _open(
    lattice: Lattice, view: memoryview, told: Bytes, drift: npt.NDArray[Any] | None, n: int
) -> tuple[Model, LatticeSymbols]:
    """The parts of a chunk of n elements, everything in range."""
    _, bits, log_lanes, low, width, first, size, words, extra = _HEAD.unpack_from(view)
    if bits not in _BITS or log_lanes not in _LANES or low > lattice.mask:
        raise FormatError(f"steps of {bits} bits in 2^{log_lanes} lanes from exponent {low} on: out of range")
    lanes = 1 << log_lanes
    if _HEAD.size + size + 4 * lanes + 2 * words + extra != len(view):
        raise FormatError(f"coded steps do not fit {len(view)} bytes")
    model = _model(told, lattice, drift, n, (bits, low, width, first))
    at = _HEAD.size + size
    states = np.frombuffer(view[at : at + 4 * lanes], "<u4")
    at += 4 * lanes
    stream = np.frombuffer(view[at : at + 2 * words], "<u2")
    return model, LatticeSymbols(states, stream, np.frombuffer(view[at + 2 * words :], np.uint8))


def _model(
    told: Bytes, lattice: Lattice, drift: npt.NDArray[Any] | None, n: int, head: tuple[int, int, int, int]
) -> Model:
    """The model of a chunk of n elements, everything in range. `head`: bits, low, width, first."""
    bits, low, width, first = head
    segments = segments_of(n, width, first)
    if len(told) < _MODEL.size:
        raise FormatError("the model of steps is cut off")
    tables, symbols, rank = _MODEL.unpack_from(told.data)
    if not (0 < tables <= MOST_TABLES and 0 < symbols <= lattice.symbols):
        raise FormatError(f"a model of {tables} tables of {symbols} symbols is out of range")
    if rank > MOST_RANK or (rank and (drift is not None or not 0 < width <= n)):
        raise FormatError(f"a model of {rank} directions of {width} places is out of range")
    graded = rank > 0 or drift is not None
    grades, every = (GRADES, 2 * symbols - 1) if graded else (1, symbols)
    weights, shifts, rest = np.split(told[_MODEL.size :], np.cumsum([tables * every, segments]))
    contexts = LEVELS + int(shifts.max(initial=0))
    ends = np.cumsum([grades * contexts, 2 * (GRADES - 1) * graded, segments * rank])
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
        drift=drift,
    )
    if graded and (max(_largest(across), _largest(along)) > LARGEST or not _ascend(rows.marks)):
        raise FormatError("directions or marks of steps are out of range")
    if int(table.max()) >= tables or int(weights.max()) >= _WEIGHTS:
        raise FormatError("a model of steps names a table or a weight that there is not")
    weights = weights.reshape(tables, every)
    if not weights.any(1).all():
        raise FormatError("a table of steps has no symbols")
    weights = np.ascontiguousarray(weights) if graded else both_signs(weights)
    return Model(bits=bits, low=low, rows=rows, table=table.reshape(grades, contexts), weights=weights)


def _largest(numbers: Bytes) -> int:
    """Magnitude of signed bytes."""
    return int(np.abs(numbers.view(np.int8).astype(np.int16)).max(initial=0))


def _ascend(marks: npt.NDArray[np.uint16]) -> bool:
    return int(marks[0]) > 0 and int(marks[-1]) < 1 << 15 and bool((marks[1:] >= marks[:-1]).all())
