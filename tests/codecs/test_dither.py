"""Codecs dither and dither-levels: whatever drew them, numbers come back; drawn as they are, they take what is left open."""

from __future__ import annotations

import math
import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples, without_kernels

from tallstore.codecs import zstd
from tallstore.codecs.adaptive import Adaptive
from tallstore.codecs.codebook import Codebook
from tallstore.codecs.known_dither import DitheredLevels, DitheredMask
from tallstore.errors import DamagedError, FormatError
from tallstore.kernels.known_dither import Numbers, pack_numbers, pick
from tallstore.kernels.place_hash import drawn_at, first_of
from tallstore.kernels.reference import pack, packed_size

MASK, LEVELS = DitheredMask(), DitheredLevels()
SIZES = (0, 1, 63, 64, 65, 127, 128, 1000, 5000, 70001)
FIXED = 3000
"""Bits of models and states, at most."""
FIRST = st.one_of(st.integers(0, 2**32 - 1), st.integers(2**32 - 300, 2**32 - 1))
"""Some from which on 2^32 is passed."""


def numbers_of(n: int, most: int, share: float, seed: int, still: float = 0.0) -> Numbers:
    """Any numbers up to `most`; of a share of the blocks none."""
    rng = np.random.default_rng(seed)
    found = rng.integers(1, max(most, 1) + 1, n) * rng.choice((-1, 1), n) * (rng.random(n) < share) * (most > 0)
    alive = (rng.random(-(-n // 64)) >= still).repeat(64)[:n]
    return (found * alive).astype(np.int8)


def drawn(n: int, size: float, first: int, most: int = 1, seed: int = 0) -> tuple[Numbers, float]:
    """Normal magnitudes in steps, rounded by the dither, and the bits of entropy that it leaves open, signs too."""
    rng = np.random.default_rng(seed)
    u = drawn_at(np.arange(n, dtype=np.uint32), first) / 2**24
    x = rng.standard_normal(n) * size
    numbers = np.clip(np.ceil(np.abs(x) - u), 0, most)
    table = np.array([math.erfc(i / 4096 / math.sqrt(2)) for i in range(8 * 4096)])
    upto = [np.ones(n)]
    for level in range(most):
        at = (u + level) / size * 4096
        upto.append(np.where(at < len(table), table[np.minimum(at, len(table) - 1).astype(int)], 0.0))
    upto.append(np.zeros(n))
    shares = -np.diff(np.array(upto), axis=0)
    entropy = -(shares * np.log2(np.maximum(shares, 1e-300))).sum() + upto[1].sum()
    return (numbers * np.sign(x)).astype(np.int8), float(entropy)


def marks(numbers: Numbers, first: int) -> bytes:
    """As coded marks, that give them back."""
    packed = pack_numbers(numbers)
    coded = MASK.encode_drawn(packed, len(numbers), first)
    assert np.array_equal(MASK.decode_packed(coded, "signed", len(numbers)), packed)
    return coded


@settings(max_examples=examples(100), deadline=None)
@given(st.one_of(st.sampled_from(SIZES), st.integers(0, 3000)), st.sampled_from((0.0, 0.001, 0.05, 0.5, 1.0)), FIRST,
       st.sampled_from((0.0, 0.5, 0.99, 1.0)), st.integers(0, 99))  # fmt: skip
def test_any_marks_come_back(n: int, share: float, first: int, still: float, seed: int) -> None:
    numbers = numbers_of(n, 1, share, seed, still)
    coded = marks(numbers, first)
    other = MASK.encode((np.abs(numbers) > 0).astype(np.uint8), "binary")
    assert other[0] == 0
    assert np.array_equal(MASK.decode(other, "binary", n), np.abs(numbers))
    assert coded == marks(numbers, first)


@settings(max_examples=examples(100), deadline=None)
@given(st.one_of(st.sampled_from(SIZES), st.integers(0, 3000)), st.sampled_from((0, 1, 2, 5, 126, 127)),
       st.sampled_from((0.0, 0.01, 0.3, 1.0)), FIRST, st.sampled_from((0.0, 0.9)), st.integers(0, 99))  # fmt: skip
def test_any_levels_come_back(n: int, most: int, share: float, first: int, still: float, seed: int) -> None:
    numbers = numbers_of(n, most, share, seed, still)
    sizes = np.random.default_rng(seed).standard_normal(most).astype(np.float32)
    coded = LEVELS.encode_drawn(numbers, sizes, first)
    wanted = np.concatenate([np.zeros(1, np.float32), sizes, -sizes[::-1]])[numbers.astype(int)]
    assert LEVELS.decode(coded, n).tobytes() == wanted.tobytes()


def test_large_chunks_come_back() -> None:
    """So large that runs are counted one in many, and the other form is not tried."""
    for n in ((1 << 20) + 1, (1 << 17) - 1):
        numbers, _ = drawn(n, 0.02, first_of(1 << 33, 5))
        numbers[n // 4 : n // 2] = 0
        assert marks(numbers, first_of(1 << 33, 5))[0] == 1
        marks(numbers, 0)


def test_values_that_are_few_are_coded() -> None:
    values = np.array([0.5, -0.25, 0.0, -0.5, 1.5, -0.0], np.float32)
    assert LEVELS.decode(LEVELS.encode(values), 6).tolist() == values.tolist()
    with pytest.raises(ValueError, match="128 levels"):
        LEVELS.encode(np.arange(129, dtype=np.float32))


@pytest.mark.parametrize("size", [0.001, 0.003, 0.01, 0.03, 0.1, 0.25])
def test_marks_take_what_their_dither_leaves_open(size: float) -> None:
    """Within 6 % of the entropy given it; where few are marks, at least 35 % below what knows nothing of it."""
    n = 1 << 20
    for first in (first_of(0, 7), first_of(123 << 16, 99)):
        numbers, entropy = drawn(n, size, first)
        bits = 8 * len(marks(numbers, first))
        assert 0.98 * entropy < bits < 1.06 * entropy + FIXED, bits / entropy
        blind = 8 * len(Adaptive().encode_packed(pack_numbers(numbers), "signed", n))
        assert bits < (0.65 if size <= 0.03 else 0.75) * blind, bits / blind


@pytest.mark.parametrize(("size", "most"), [(0.5, 3), (1.0, 7), (3.0, 15), (10.0, 60)])
def test_levels_take_what_their_dither_leaves_open(size: float, most: int) -> None:
    n, first = 1 << 19, first_of(0, 7)
    numbers, entropy = drawn(n, size, first, most)
    table = np.concatenate([[0], np.arange(1, most + 1), -np.arange(1, most + 1)]).astype(np.float32)
    coded = LEVELS.encode_drawn(numbers, table[1 : most + 1], first)
    assert LEVELS.decode(coded, n).tolist() == numbers.tolist()
    assert 0.98 * entropy < 8 * len(coded) < 1.06 * entropy + FIXED
    indices = np.where(numbers < 0, most - numbers.astype(int), numbers).astype(np.uint8)
    codec = Codebook("q8", 256)
    blind = codec.encode_indices(table, indices, np.bincount(indices, minlength=len(table)))
    assert len(coded) < (0.8 if size < 1 else 0.95 if size < 2 else 1.0) * len(blind)


def test_another_dither_costs_more_and_decodes_all_the_same() -> None:
    numbers, _ = drawn(1 << 16, 0.02, 5)
    assert len(marks(numbers, 6)) > 1.5 * len(marks(numbers, 5))


@pytest.mark.parametrize("most", [1, 3])
def test_rows_that_never_moved_cost_next_to_nothing(most: int) -> None:
    """Of an embedding of which one row in sixteen moved: those alone take as much, but for who they are."""
    rows, wide, first = 4096, 256, 11
    numbers, _ = drawn(rows * wide, 0.03 if most == 1 else 0.7, first, most)
    still = np.random.default_rng(3).random(rows) > 1 / 16
    numbers[still.repeat(wide)] = 0
    moved = numbers.reshape(rows, wide)[~still].reshape(-1)
    sizes = np.arange(1, most + 1).astype(np.float32)
    if most == 1:
        coded, alone = marks(numbers, first), marks(drawn(len(moved), 0.03, first)[0], first)
    else:
        coded = LEVELS.encode_drawn(numbers, sizes, first)
        alone = LEVELS.encode_drawn(drawn(len(moved), 0.7, first, most)[0], sizes, first)
    assert len(coded) < 1.05 * len(alone) + rows * wide // 64 // 8
    nothing = np.zeros(rows * wide, np.int8)
    assert len(marks(nothing, first) if most == 1 else LEVELS.encode_drawn(nothing, sizes, first)) < 80


@pytest.mark.parametrize("size", [0.0003, 0.001, 0.003])
def test_blocks_without_marks_by_chance_are_not_told_of(size: float) -> None:
    """Where marks are so few that most blocks have none, flags would take more than the marks do."""
    packed = pack_numbers(drawn(1 << 20, size, 7)[0])
    assert struct.unpack_from("<BBB", MASK.encode_drawn(packed, 1 << 20, 7), 1)[2] == 0
    moved = drawn(1 << 20, size, 7)[0]
    moved[1 << 18 :] = 0
    assert struct.unpack_from("<BBB", MASK.encode_drawn(pack_numbers(moved), 1 << 20, 7), 1)[2] == 6


def test_marks_that_no_dither_drew_are_taken_as_such_where_that_is_shorter() -> None:
    symbols = (np.arange(300) % 3).astype(np.uint8)
    assert MASK.encode_drawn(pack(symbols, "signed"), 300, 0) == MASK.encode(symbols, "signed")


@pytest.mark.parametrize("n", [1, 64, 1000, 70001])
def test_bytes_are_the_same_with_kernels_and_without(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = numbers_of(n, 1, 0.1, n, 0.5), numbers_of(n, 7, 0.3, n)
    sizes = np.arange(1, 8).astype(np.float32)
    coded = marks(small, 77), LEVELS.encode_drawn(large, sizes, 77)
    without_kernels(monkeypatch)
    assert (marks(small, 77), LEVELS.encode_drawn(large, sizes, 77)) == coded
    assert LEVELS.decode(coded[1], n).tolist() == large.tolist()


def test_a_block_larger_than_the_chunk_takes_no_memory_of_its_size() -> None:
    """2^24 elements a block, of a chunk of 70: by either path; see `spec/codecs/dither.md`."""
    flags = zstd.compress(b"\1")
    data = b"\1" + struct.pack("<BBBxIII", 20, 16, 24, 0, len(flags), 1) + flags + b"\0"
    tracemalloc.start()
    try:
        assert not MASK.decode(data, "signed", 70).any()
        bits, words = pick.reference(70, 0, 20, 16, np.ones(1, np.uint8), 24)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(words), int(np.unpackbits(bits).sum())) == (70, 70)
    assert peak < 1 << 20


def test_marks_without_levels_are_refused() -> None:
    """An index that no table has would reach a kernel."""
    others = Adaptive().encode(np.array([0, 1, 2, 0], np.uint8), "signed")
    data = b"\0" + struct.pack("<BBBxIII", 0, 1, 0, 0, 0, 1) + b"\0" + others
    assert drawn_at(np.arange(4, dtype=np.uint32), 0)[1:3].all()
    for decode in (LEVELS.decode, LEVELS.decode_levels):
        with pytest.raises(FormatError, match="no level"):
            decode(data, 4)
    one = b"\1" + struct.pack("<f", 0.5) + data[1:]
    assert LEVELS.decode(one, 4).tolist() == [0, 0.5, -0.5, 0]


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=80), st.integers(0, 200), st.booleans())
def test_any_bytes_are_refused_or_in_range(data: bytes, n: int, head: bool) -> None:
    data = struct.pack("<BBBxIII", 20, 16, 0, 5, 0, max(len(data) - 30, 0)) + data if head else data
    for kind in ("signed", "binary"):
        with suppress(FormatError, DamagedError):
            assert len(MASK.decode_packed(b"\1" + data, kind, n)) == packed_size(kind, n)
    for levels in (b"\0", b"\1\0\0\0\0"):
        with suppress(FormatError, DamagedError):
            found = LEVELS.decode_levels(levels + data, n)
            assert np.isin(found.values(n), found.table).all()


@pytest.mark.parametrize("row", range(4))
def test_rows_that_moved_are_seen_wherever_they_are(row: int) -> None:
    """A sample that keeps step with rows would see none of them, or nothing else."""
    n, width, first = 1 << 20, 4096, 77
    u = drawn_at(np.arange(n, dtype=np.uint32), first) / 2.0**24
    size = np.abs(np.random.default_rng(row).standard_normal(n)) / 8
    size[np.arange(n) // width % 4 != row] = 0
    symbols = (size > u).astype(np.uint8)
    coded = DitheredMask().encode_drawn(pack(symbols, "signed"), n, first)
    assert len(coded) < 0.6 * len(Adaptive().encode(symbols, "signed"))
