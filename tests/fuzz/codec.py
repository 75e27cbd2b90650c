"""Every codec's decoder: the right number of valid values or a refusal, alike with the native library and without.

What a decoder takes, the second reader that was written from `spec/` alone takes too, and reads the same values.

    u8 kind or element type | u8 flags | u16 n | the coded chunk

Of a chunk that is not its tensor's first one, `u16 length | the first one` come before it.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from spec.second_numbers import BYTES

from spec import second_codecs, second_dare
from tallstore import codecs
from tallstore.codecs import zstd
from tallstore.codecs.base import ALONE, Given
from tallstore.codecs.known_dither import DitheredLevels, DitheredMask
from tallstore.codecs.low_rank import write_low_rank
from tallstore.errors import DamagedError, FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels import reference
from tallstore.kernels.conversion import to_bf16
from tallstore.kernels.dare import Sampling, units
from tallstore.kernels.dare_fast import select
from tallstore.kernels.known_dither import pack_numbers, pick
from tallstore.kernels.lattice import LATTICES, LEVELS
from tallstore.kernels.low_rank import LowRank, add_product
from tallstore.kernels.native import library
from tallstore.kernels.place_hash import DRAWN

from . import frames
from .base import Plain, Target

HEAD = 4
KINDS = tuple(reference.SYMBOL_BITS)
DTYPES = tuple(ITEM_BYTES)
FLOATS = tuple(dtype for dtype in LATTICES if dtype in BYTES)
SAMPLED = ("BF16", "F16", "F32")
"""Those of which changes may be dropped: a new one comes last, so that inputs that were found stand for what they did."""
_MANY, _LATER = 1, 2
"""Flags: n counts 64 elements; a sampled chunk is not its tensor's first one."""
_AND_FIRST = 256
"""What a selector of a type has more where a tensor's first chunk comes before the one that is decoded."""
_SLOW = 1 << 13
"""Elements up to which the second reader is asked: it is written to be read."""

Decode = Callable[[str, bytes, int, int], bytes]
"""Codec, coded bytes, selector of kind or type, n → decoded bytes."""


def _mask(id_: str, data: bytes, which: int, n: int) -> bytes:
    kind = KINDS[which % len(KINDS)]
    packed = codecs.MASK[id_].decode_packed(memoryview(data), kind, n)
    assert packed.dtype == np.uint8
    assert len(packed) == reference.packed_size(kind, n)
    symbols = reference.unpack(packed, kind, n)
    assert len(symbols) == n
    assert not n or symbols.max() <= reference.SYMBOL_BITS[kind]
    marks = codecs.MASK[id_].decode_marks(memoryview(data), kind, n)
    if marks is not None:
        assert marks.number == np.count_nonzero(symbols)
        assert int(marks.gaps.sum(dtype=np.int64)) + marks.number <= n, "no mark lies outside"
        assert len(marks.signs) == (-(-marks.number // 8) if kind == "signed" else 0)
    return symbols.tobytes()


def _vector(id_: str, data: bytes, which: int, n: int) -> bytes:
    values = codecs.VECTOR[id_].decode(memoryview(data), n)
    assert values.dtype == np.float32
    assert values.shape == (n,)
    assert np.isfinite(values).all()
    levels = codecs.VECTOR[id_].decode_levels(memoryview(data), n)
    if levels is not None:
        assert len(levels.packed) == -(-n * levels.bits // 8)
        each = levels.packed if levels.bits == 8 else np.stack([levels.packed & 15, levels.packed >> 4], 1).reshape(-1)
        assert levels.table[each[:n]].tobytes() == values.tobytes()
    return values.tobytes()


def _whole(id_: str, data: bytes, which: int, n: int) -> bytes:
    dtype = DTYPES[which % len(DTYPES)]
    out = np.full(n * ITEM_BYTES[dtype] + 16, 0xA5, np.uint8)
    end = 0
    for start, stop in codecs.WHOLE[id_].decode_tiles(memoryview(data), out[: len(out) - 16], dtype):
        assert (start, stop > start or stop == n * ITEM_BYTES[dtype]) == (end, True)
        end = stop
    assert end == n * ITEM_BYTES[dtype]
    assert (out[len(out) - 16 :] == 0xA5).all(), "it wrote behind its memory"
    return out[: len(out) - 16].tobytes()


def _base(dtype: str, n: int) -> np.ndarray:
    """The base's elements that chunks coded without loss are over."""
    return np.resize(np.random.default_rng(9).integers(0, 256, 1 << 12, np.uint8), n * ITEM_BYTES[dtype])


def _lossless(id_: str, data: bytes, which: int, n: int) -> bytes:
    dtype = FLOATS[which % len(FLOATS)]
    out = np.append(_base(dtype, n), np.full(16, 0xA5, np.uint8))
    codecs.LOSSLESS[id_].decode(memoryview(data), out[: len(out) - 16], dtype)
    assert (out[len(out) - 16 :] == 0xA5).all(), "it wrote behind its memory"
    return out[: len(out) - 16].tobytes()


def _sampled(id_: str, data: bytes, which: int, n: int) -> bytes:
    """Of one that is not its tensor's first one, `which` has a bit more, and that one comes first."""
    dtype, codec = SAMPLED[which % len(SAMPLED)], codecs.SAMPLED[id_]
    first, data = _parted(data, which)
    given = ALONE if first is None else Given(columns=partial(codec.columns, memoryview(first)))
    out = np.append(_base(dtype, n), np.full(16, 0xA5, np.uint8))
    codec.decode(memoryview(data), out[: len(out) - 16], dtype, given)
    assert (out[len(out) - 16 :] == 0xA5).all(), "it wrote behind its memory"
    return _one_nan(out[: len(out) - 16], dtype)


def _parted(data: bytes, which: int) -> tuple[bytes | None, bytes]:
    """A tensor's first chunk, where there is one before it, and the chunk itself."""
    if which < _AND_FIRST:
        return None, data
    length = int.from_bytes(data[:2], "little")
    return data[2 : 2 + length], data[2 + length :]


def _one_nan(elements: np.ndarray, dtype: str) -> bytes:
    """Of a NaN that arithmetic gives, sign and payload are not fixed."""
    lattice = LATTICES[dtype]
    words, infinite = elements.view(lattice.word).copy(), lattice.mask << lattice.shift
    words[words & lattice.word.type((1 << lattice.bits - 1) - 1) > infinite] = infinite + 1
    return words.tobytes()


def _frame(_: str, data: bytes, which: int, n: int) -> bytes:
    found = zstd.decompress(data, n)
    assert len(found) == n
    return found.tobytes()


def _second(family: str, id_: str, data: bytes, which: int, n: int) -> bytes:
    if family == "vector":
        return second_codecs.decode_vector(data, n, id_).tobytes()
    if family == "whole":
        decode = {"raw": second_codecs.decode_raw, "planes+zstd": second_codecs.decode_planes}[id_]
        return bytes(decode(data, n, DTYPES[which % len(DTYPES)]))
    if family == "lossless":
        dtype = FLOATS[which % len(FLOATS)]
        return second_codecs.decode_lattice(data, _base(dtype, n).tobytes(), dtype)
    if family == "sampled":
        dtype = SAMPLED[which % len(SAMPLED)]
        first, data = _parted(data, which)
        found = second_dare.decode_dare(data, _base(dtype, n).tobytes(), dtype, first)
        return _one_nan(np.frombuffer(found, np.uint8), dtype)
    if family == "frame":
        return second_codecs.unframe(data, n)
    named: Mapping[str, Callable[[bytes, int, str], Any]] = {
        "bits": second_codecs.decode_bits,
        "bits+zstd": second_codecs.decode_bits_zstd,
        "adaptive": second_codecs.decode_adaptive,
        "dither": second_codecs.decode_dither,
    }
    return bytes(named[id_](data, n, KINDS[which % len(KINDS)]).tobytes())


FIRST: Mapping[str, Decode] = {
    "mask": _mask,
    "vector": _vector,
    "whole": _whole,
    "lossless": _lossless,
    "sampled": _sampled,
    "frame": _frame,
}


@contextmanager
def _by_reference() -> Iterator[None]:
    kept = os.environ.get(library.VARIABLE)
    os.environ[library.VARIABLE] = "reference"
    try:
        yield
    finally:
        del os.environ[library.VARIABLE]
        if kept is not None:
            os.environ[library.VARIABLE] = kept


def _outcome(decode: Callable[[], bytes]) -> bytes | None:
    try:
        return decode()
    except (FormatError, DamagedError):
        return None


def run(family: str, id_: str, data: bytes) -> None:
    if len(data) < HEAD:
        return
    which, flags, n, coded = data[0], data[1], int.from_bytes(data[2:4], "little"), data[HEAD:]
    n *= 64 if flags & _MANY else 1
    which += _AND_FIRST if family == "sampled" and flags & _LATER else 0
    decode = partial(FIRST[family], id_, coded, which, n)
    found = _outcome(decode)
    with _by_reference():
        assert _outcome(decode) == found, "the native library and the reference disagree"
    if found is not None and n <= _SLOW:
        assert _second(family, id_, coded, which, n) == found, "the second reader reads something else"


def mutate(data: bytes, most: int, chance: random.Random, plain: Plain) -> bytes:
    """Now and then the head; mostly what is coded, in its frames if it has any."""
    if len(data) < HEAD or chance.random() < 0.1:
        return plain(data, most)
    head, coded = data[:HEAD], data[HEAD:]
    if chance.random() < 0.1:
        head = bytes([chance.randrange(256), head[1]]) + head[2:]
    if chance.random() < 0.05:
        n = max(0, min(0xFFFF, int.from_bytes(head[2:], "little") + chance.choice((-8, -1, 1, 8, 255))))
        head = head[:2] + n.to_bytes(2, "little")
    return head + frames.mutate(coded, most - HEAD, chance, plain)


def _seeds(family: str, id_: str) -> Iterable[bytes]:
    rng = np.random.default_rng(0)
    for n in (0, 1, 7, 8, 9, 255, 256, 1000):
        head = n.to_bytes(2, "little")
        if family == "mask":
            for which, kind in enumerate(KINDS):
                for density in (0.0, 0.004, 0.1, 0.5, 1.0):
                    symbols = (rng.random(n) < density) * rng.integers(1, reference.SYMBOL_BITS[kind] + 1, n)
                    yield bytes([which, 0]) + head + codecs.MASK[id_].encode(symbols.astype(np.uint8), kind)
            if id_ == DitheredMask.id:
                yield from (
                    bytes([KINDS.index("signed"), 0]) + head + b"\1" + coded for coded in _drawn_seeds(n, 1, rng)
                )
        elif family == "vector":
            for share in (0.0, 0.2, 1.0):
                values = (rng.standard_normal(n) * (rng.random(n) < share)).astype(np.float32)
                few = np.clip(np.rint(4 * values), -8, 8) / 4 if id_ == DitheredLevels.id else values
                yield bytes([0, 0]) + head + codecs.VECTOR[id_].encode(few)
            if id_ == DitheredLevels.id:
                for most in (0, 1, 5, 127):
                    levels = bytes([most]) + rng.standard_normal(most).astype("<f4").tobytes()
                    yield from (bytes([0, 0]) + head + levels + coded for coded in _drawn_seeds(n, most, rng))
        elif family == "whole":
            for which, dtype in enumerate(DTYPES):
                raw = (rng.standard_normal(n) * 0.02).astype(np.float32).view(np.uint8)
                raw = np.resize(raw, n * ITEM_BYTES[dtype]) if n else raw
                yield bytes([which, 0]) + head + codecs.WHOLE[id_].encode(raw, dtype)
        elif family == "lossless":
            for which, dtype in enumerate(FLOATS):
                lattice = LATTICES[dtype]
                base = _base(dtype, n).view(lattice.word)
                steps = np.rint(rng.standard_normal(n) * rng.choice((0.0, 0.7, 50.0))).astype(np.int64)
                after = lattice.turned(lattice.turned(base) + steps.astype(lattice.word)).view(np.uint8)
                coded = codecs.LOSSLESS[id_].encode(after, base.view(np.uint8), dtype, (64, 5))
                yield bytes([which, 0]) + head + coded
        elif family == "sampled":
            for which, dtype in enumerate(SAMPLED):
                yield from (bytes([which, 0]) + head + coded for coded in _sampled_seeds(dtype, n, rng))
                yield from (bytes([which, _LATER]) + head + coded for coded in _later_seeds(dtype, n, rng))
        else:
            for content in (bytes(n), rng.bytes(n), bytes(rng.integers(0, 3, n, dtype=np.uint8))):
                yield bytes([0, 0]) + head + zstd.compress(content)


def _sampled_seeds(dtype: str, n: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Chunks of all modes, of all, some and next to none: the base has numbers that only mode 0 is for."""
    base = _base(dtype, n)
    yield from _without_product(dtype, base, rng)
    for of in _products(n, rng):
        yield from (b"\3" + write_low_rank(of) + rest for rest in _behind(dtype, base, of, rng))


def _later_seeds(dtype: str, n: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Chunks behind a tensor's first one, which tells columns of as many components, or of more; and one that does not."""
    base = _base(dtype, n)
    for of in _products(n, rng):
        more = rng.integers(-9, 10, (len(of.shifts) + 2, of.columns.shape[1])).astype(np.int8)
        more[: len(of.shifts)] = of.columns
        for along in (of.columns, more):
            rows = np.zeros((len(along), 1), np.int8)
            first = (
                b"\3" + write_low_rank(LowRank(np.float32(1), np.zeros(len(along), np.uint8), rows, along, 0)) + b"\0\0"
            )
            for rest in _behind(dtype, base, of, rng):
                told = b"\3" + write_low_rank(of, with_columns=False) + rest
                yield len(first).to_bytes(2, "little") + first + told
    yield b"\2\0\0\0\0\0"


def _products(n: int, rng: np.random.Generator) -> Iterator[LowRank]:
    """What may be added to n elements, of rows that chunks cut, and of one that is longer."""
    for rank, width, gone, most in (
        (1, 2, 0, 127),
        (1, 16, 9, 3),
        (2, 20, 19, 127),
        (7, 30, 1, 40),
        (14, 40, 11, 15),
        (2, 300, 250, 9),
    ):
        rows = -(-(gone + n) // width)
        if 0 < rank * rows <= n and rank * width <= 64 * n:
            across, along = (rng.integers(-most, most + 1, (rank, m)).astype(np.int8) for m in (rows, width))
            across[:, ::3] *= rows == 1
            yield LowRank(np.float32(2.0**-16), rng.integers(0, 5, rank).astype(np.uint8), across, along, gone)


def _behind(dtype: str, base: np.ndarray, of: LowRank, rng: np.random.Generator) -> Iterator[bytes]:
    """What follows a product."""
    moved = base.copy()
    add_product(dtype, moved.view(LATTICES[dtype].word), of)
    yield from _without_product(dtype, moved, rng)


def _without_product(dtype: str, base: np.ndarray, rng: np.random.Generator) -> Iterator[bytes]:
    """Chunks of modes 0 and 2."""
    lattice, n = LATTICES[dtype], len(base) // ITEM_BYTES[dtype]
    words, low = base.view(lattice.word), lattice.mask // 2
    after = lattice.turned(lattice.turned(words) + rng.integers(-2, 3, n).astype(lattice.word)).view(np.uint8)
    codec = codecs.SAMPLED["dare"]
    width = to_bf16(units(dtype, low).astype(np.float32))
    for first_level in (low, lattice.mask):
        yield codec.encode(after, base, dtype, Sampling(first_level, np.full(LEVELS, 65535, np.uint16), width), 1)
    for share, context in ((65535, 0x40), (30000, 0), (8000, 0x21), (0, 0x4F)):
        sampling = Sampling(low, np.full(LEVELS, share, np.uint16), width * np.uint16(share > 0))
        contexts = np.full(LEVELS, context, np.uint8)
        _, before = select(lattice, words, sampling, contexts, 1)
        own = LATTICES["BF16"].turned(before + rng.integers(-1, 2, len(before)).astype(np.uint16))
        coded = codecs.LOSSLESS["lattice"].encode(own.view(np.uint8), before.view(np.uint8), "BF16")
        told = sampling.shares.tobytes() + sampling.widths.tobytes() + contexts.tobytes()
        yield struct.pack("<BBI", 2, low, 1) + told + coded


def _drawn_seeds(n: int, most: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Numbers of all forms: some classes and all, with blocks and without."""
    for shift, classes, block in ((20, 16, 0), (20, 16, 6), (16, 9, 0), (22, 3, 7), (24, 1, 24)):
        live = np.packbits(rng.random(-(-n >> block)) < 0.7, bitorder="little") if block else np.zeros(0, np.uint8)
        picked, words = pick(n, 77, shift, classes, live, block)
        numbers = (rng.integers(-most, most + 1, n) * (rng.random(n) < 0.3)).astype(np.int8)
        at = np.unpackbits(picked, count=n, bitorder="little").view(bool)
        after, rest = words + numbers[at].astype(np.uint16), np.where(at, np.int8(0), numbers)
        flags = zstd.compress(live) if block else b""
        coded = codecs.LOSSLESS["lattice"].encode(after.view(np.uint8), words.view(np.uint8), "BF16")
        others = b""
        if classes << shift < 1 << DRAWN:
            others = codecs.MASK["adaptive"].encode_packed(pack_numbers(np.sign(rest)), "signed", n)
        yield struct.pack("<BBBxIII", shift, classes, block, 77, len(flags), len(coded)) + flags + coded + others


def _target(family: str, id_: str) -> Target:
    return Target(run=partial(run, family, id_), seeds=partial(_seeds, family, id_), mutate=mutate, max_len=1 << 13)


_FAMILIES: Mapping[str, Iterable[str]] = {
    "mask": codecs.MASK,
    "vector": codecs.VECTOR,
    "whole": codecs.WHOLE,
    "lossless": ["lattice"],
    "sampled": codecs.SAMPLED,
    "frame": ["zstd"],
}
TARGETS = {f"codec-{id_}": _target(family, id_) for family, ids in _FAMILIES.items() for id_ in ids}
