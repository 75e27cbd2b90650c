"""What each kind of codec must do: give back what it was given, and refuse all else in bounded memory.

That of sampled codecs is in `sampled_codecs`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from tallstore.codecs.base import (
    ALONE,
    Bytes,
    ConditionalCodec,
    Floats,
    Given,
    LosslessCodec,
    MaskCodec,
    VectorCodec,
    WholeCodec,
)
from tallstore.codecs.known_dither import DitheredLevels, DitheredMask
from tallstore.errors import ArchiveError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels import reference

__all__ = [
    "SIZES",
    "DrawnLevelsContract",
    "DrawnMaskContract",
    "LosslessCodecContract",
    "MaskCodecContract",
    "VectorCodecContract",
    "WholeCodecContract",
    "survives_within",
]

SIZES = (1, 7, 8, 63, 64, 65, 255, 1024, 5000)
"""Elements of a chunk: around bytes, words and runs."""


def _damaged(data: bytes) -> Iterator[bytes]:
    """Coded bytes that are not what they were: cut, grown, and with a bit of every 13th byte flipped."""
    yield data[:-1]
    yield data + b"\0"
    for at in range(0, len(data), 13):
        yield data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def _survives(decode: Callable[[bytes], object], data: bytes) -> None:
    """Decoding damaged bytes gives something in range, or an error of the package's own. Checksums find the rest."""
    for damaged in _damaged(data):
        try:
            decode(damaged)
        except ArchiveError:
            continue


class MaskCodecContract(ABC):
    """Inherit as `class TestX(MaskCodecContract)` and name the codec."""

    codec: ClassVar[MaskCodec]
    kinds: ClassVar[tuple[str, ...]] = ("binary", "signed")
    """Those that it takes."""

    def _masks(self, kind: str) -> Iterator[Bytes]:
        rng = np.random.default_rng(7)
        for n in SIZES:
            for density in (0.0, 0.01, 0.3, 1.0):
                on = rng.random(n) < density
                yield (on * rng.integers(1, reference.SYMBOL_BITS[kind] + 1, n)).astype(np.uint8)

    def test_symbols_come_back(self) -> None:
        """Packed and unpacked, whatever their number and density."""
        for kind in self.kinds:
            for symbols in self._masks(kind):
                coded = self.codec.encode(symbols, kind)
                assert (self.codec.decode(coded, kind, len(symbols)) == symbols).all()
                packed = self.codec.decode_packed(memoryview(coded), kind, len(symbols))
                assert (packed == reference.pack(symbols, kind)).all()

    def test_the_same_symbols_give_the_same_bytes(self) -> None:
        """Archives do not depend on who wrote them, or on what was coded before."""
        for kind in self.kinds:
            assert [self.codec.encode(s, kind) for s in self._masks(kind)] == [
                self.codec.encode(s, kind) for s in self._masks(kind)
            ]

    def test_gaps_are_the_symbols(self) -> None:
        """Where a codec has them."""
        for kind in self.kinds:
            for symbols in self._masks(kind):
                marks = self.codec.decode_marks(self.codec.encode(symbols, kind), kind, len(symbols))
                if marks is not None:
                    assert marks.number == np.count_nonzero(symbols)
                    ends = np.flatnonzero(marks.gaps < 255)
                    zeros = np.diff(np.cumsum(marks.gaps, dtype=np.int64)[ends], prepend=0)
                    assert (np.cumsum(zeros + 1) - 1).tolist() == np.flatnonzero(symbols).tolist()

    def test_damage_is_refused_or_stays_in_range(self) -> None:
        """Symbols that no mask has never reach a kernel."""

        def decode(data: bytes) -> None:
            symbols = self.codec.decode(data, kind, 5000)
            assert len(symbols) == 5000
            assert symbols.max(initial=0) <= reference.SYMBOL_BITS[kind]

        for kind in self.kinds:
            for symbols in [s for s in self._masks(kind) if len(s) == 5000]:
                _survives(decode, self.codec.encode(symbols, kind))


_FIRST = (0, 77, 0xFFFFFFC0)
"""What draws for the first element: from the last on 2^32 is passed."""


class DrawnMaskContract(MaskCodecContract):
    """Of a codec that is told what drew the marks. Inherit as `class TestX(DrawnMaskContract)` and name the codec."""

    codec: ClassVar[DitheredMask]

    def test_marks_come_back_whatever_drew_them(self) -> None:
        """A dither makes them cheaper, and changes none."""
        for symbols in self._masks("signed"):
            packed = reference.pack(symbols, "signed")
            for first in _FIRST:
                coded = self.codec.encode_drawn(packed, len(symbols), first)
                assert coded == self.codec.encode_drawn(packed.copy(), len(symbols), first)
                assert (self.codec.decode_packed(coded, "signed", len(symbols)) == packed).all()

    def test_damage_of_drawn_marks_is_refused_or_stays_in_range(self) -> None:
        """As of others."""

        def decode(data: bytes) -> None:
            symbols = self.codec.decode(data, "signed", 5000)
            assert len(symbols) == 5000
            assert symbols.max(initial=0) <= reference.SYMBOL_BITS["signed"]

        for symbols in [s for s in self._masks("signed") if len(s) == 5000]:
            coded = self.codec.encode_drawn(reference.pack(symbols, "signed"), 5000, 77)
            _survives(decode, coded)


class VectorCodecContract(ABC):
    """Inherit as `class TestX(VectorCodecContract)` and name the codec."""

    codec: ClassVar[VectorCodec]
    error: ClassVar[float] = 0.0
    """The largest relative error of a chunk, ‖v̂ − v‖ / ‖v‖, that its precision allows; 0: it is exact."""

    def _values(self) -> Iterator[Floats]:
        rng = np.random.default_rng(7)
        for n in SIZES:
            yield rng.standard_normal(n).astype(np.float32)
            yield np.zeros(n, np.float32)

    def test_values_come_back_as_near_as_it_says(self) -> None:
        """Exactly so many, all finite."""
        for values in self._values():
            decoded = self.codec.decode(self.codec.encode(values), len(values))
            assert decoded.dtype == np.float32
            assert decoded.shape == values.shape
            assert np.isfinite(decoded).all()
            assert np.linalg.norm(decoded - values) <= self.error * np.linalg.norm(values)

    def test_what_was_decoded_is_coded_exactly(self) -> None:
        """Masks are chosen against values as they are stored: coding them once more must not move them."""
        for values in self._values():
            decoded = self.codec.decode(self.codec.encode(values), len(values))
            again = self.codec.decode(self.codec.encode(decoded), len(values))
            assert self.error or again.tobytes() == decoded.tobytes()
            assert self.codec.encode(values) == self.codec.encode(values.copy())

    def test_levels_are_the_values(self) -> None:
        """Where a codec has a table."""
        for values in self._values():
            coded = self.codec.encode(values)
            levels = self.codec.decode_levels(coded, len(values))
            if levels is not None:
                halves = np.stack([levels.packed & 15, levels.packed >> 4], 1).reshape(-1)
                indices = levels.packed if levels.bits == 8 else halves[: len(values)]
                assert levels.table[indices].tobytes() == self.codec.decode(coded, len(values)).tobytes()

    def test_damage_is_refused_or_stays_in_range(self) -> None:
        """Exactly so many values, or an error."""

        def decode(data: bytes) -> None:
            assert len(self.codec.decode(data, 5000)) == 5000

        values = next(each for each in self._values() if len(each) == 5000)
        _survives(decode, self.codec.encode(values))


class DrawnLevelsContract(VectorCodecContract):
    """Of a codec of few levels that is told what drew them; otherwise as `DrawnMaskContract`."""

    codec: ClassVar[DitheredLevels]

    def _values(self) -> Iterator[Floats]:
        for values in super()._values():
            yield (np.clip(np.rint(4 * values), -8, 8) / 4).astype(np.float32)

    def test_numbers_come_back_whatever_drew_them(self) -> None:
        """Up to as many levels as there are, the last one used or not."""
        rng = np.random.default_rng(7)
        for n in SIZES:
            for most in (0, 1, 3, 127):
                numbers = rng.integers(-most, most + 1, n).astype(np.int8)
                numbers[rng.random(n) < 0.7] = 0
                sizes = rng.standard_normal(most).astype(np.float32)
                for first in _FIRST:
                    coded = self.codec.encode_drawn(numbers, sizes, first)
                    levels = self.codec.decode_levels(coded, n)
                    assert (levels.table == np.concatenate([np.zeros(1, np.float32), sizes, -sizes])).all()
                    wanted = levels.table[np.where(numbers < 0, most - numbers.astype(int), numbers)]
                    assert self.codec.decode(coded, n).tobytes() == levels.values(n).tobytes() == wanted.tobytes()


def _elements(dtype: str, n: int, seed: int) -> Bytes:
    """Bytes of n elements that are near to each other, as weights are, and a few that are anything."""
    rng = np.random.default_rng(seed)
    size = n * ITEM_BYTES[dtype]
    raw = rng.integers(0, 256, size, np.uint8)
    raw[:: max(1, ITEM_BYTES[dtype])] &= 15
    return raw


class WholeCodecContract(ABC):
    """Inherit as `class TestX(WholeCodecContract)` and name the codec."""

    codec: ClassVar[WholeCodec]
    dtypes: ClassVar[tuple[str, ...]] = ("F32", "BF16", "F16", "F64", "I64", "U8", "BOOL")

    def test_bytes_come_back(self) -> None:
        """By every way of decoding that it has."""
        for dtype in self.dtypes:
            for n in SIZES:
                raw = _elements(dtype, n, n)
                coded = self.codec.encode(raw, dtype)
                assert b"".join(map(bytes, self.codec.encode_pieces(raw, dtype))) == coded
                out = np.empty_like(raw)
                self.codec.decode(coded, out, dtype)
                assert (out == raw).all(), (dtype, n)
                out, at = np.empty_like(raw), 0
                for start, stop in self.codec.decode_tiles(coded, out, dtype):
                    assert start == at
                    assert (out[start:stop] == raw[start:stop]).all(), "a run is whole when it is said to be"
                    at = stop
                assert at == len(raw)

    def test_damage_is_refused_or_stays_in_range(self) -> None:
        """Never a byte outside of the memory that is there."""
        room = np.full(5000 * 4 + 128, 77, np.uint8)
        out = room[64:-64]
        _survives(lambda data: self.codec.decode(data, out, "F32"), self.codec.encode(_elements("F32", 5000, 1), "F32"))
        assert (room[:64] == 77).all()
        assert (room[-64:] == 77).all()


class LosslessCodecContract(ABC):
    """Inherit as `class TestX(LosslessCodecContract)` and name the codec."""

    codec: ClassVar[LosslessCodec]
    dtypes: ClassVar[tuple[str, ...]] = ("F32", "BF16", "F16")

    def _pairs(self, dtype: str) -> Iterator[tuple[Bytes, Bytes]]:
        for n in SIZES:
            base, other = _elements(dtype, n, n), _elements(dtype, n, n + 1)
            yield base, base.copy()
            yield base, other
            near = base.copy()
            near[:: 2 * ITEM_BYTES[dtype]] ^= 1
            yield base, near

    def test_elements_come_back_to_the_last_bit(self) -> None:
        """Equal ones, near ones, and any others."""
        for dtype in self.dtypes:
            for base, raw in self._pairs(dtype):
                coded = self.codec.encode(raw, base, dtype)
                assert coded == self.codec.encode(raw.copy(), base.copy(), dtype)
                out = base.copy()
                self.codec.decode(coded, out, dtype)
                assert (out == raw).all(), (dtype, len(raw))

    def test_damage_is_refused_or_stays_in_range(self) -> None:
        """Never a byte outside of the memory that is there."""
        dtype: Any = self.dtypes[0]
        base, raw = _elements(dtype, 5000, 1), _elements(dtype, 5000, 2)
        survives_within(self.codec, self.codec.encode(raw, base, dtype), base, dtype)


def survives_within(codec: ConditionalCodec, data: bytes, base: Bytes, dtype: str, given: Given = ALONE) -> None:
    """The same of a codec that decodes in place, with memory on either side."""
    room = np.full(len(base) + 128, 77, np.uint8)

    def decode(damaged: bytes) -> None:
        room[64:-64] = base
        codec.decode(damaged, room[64:-64], dtype, given)

    _survives(decode, data)
    assert (room[:64] == 77).all()
    assert (room[-64:] == 77).all()
