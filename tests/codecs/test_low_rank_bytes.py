"""A product of thin matrices as bytes: what is written is read, and all else is refused, by name."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from tallstore.codecs.dare import DareCodec
from tallstore.codecs.lattice import LatticeCodec
from tallstore.codecs.low_rank import read_low_rank, write_low_rank
from tallstore.errors import ArchiveError, DamagedError, FormatError
from tallstore.kernels.low_rank import LARGEST, MOST_RANK, MOST_SHIFT, LowRank, add_product

WIDTH, ROWS, GONE = 12, 11, 5
N = WIDTH * ROWS - GONE
"""Elements of the sound one, which ends with its last row."""
SHIFTS, SIZES = 13, 16
"""Where, of its three components, these are."""


def matrix(rank: int, rows: int, width: int, gone: int, *, most: int = LARGEST, seed: int = 0) -> LowRank:
    rng = np.random.default_rng(seed)
    across, along = (rng.integers(-most, most + 1, (rank, count)).astype(np.int8) for count in (rows, width))
    shifts = rng.integers(0, MOST_SHIFT + 1, rank).astype(np.uint8)
    return LowRank(np.float32(0.001), shifts, across, along, gone)


SOUND = write_low_rank(matrix(3, ROWS, WIDTH, GONE))
FIRST, SECOND = struct.unpack_from("<II", SOUND, SIZES)


def head(rank: int = 3, width: int = WIDTH, gone: int = GONE, scale: float = 0.001) -> bytes:
    """The sound one with another beginning."""
    return struct.pack("<BIIf", rank, width, gone, scale) + SOUND[SHIFTS:]


def sized(first: int, second: int) -> bytes:
    """The sound one with other sizes."""
    return SOUND[:SIZES] + struct.pack("<II", first, second) + SOUND[SIZES + 8 :]


def numbered(rows: bytes, columns: bytes) -> bytes:
    """The sound one with other numbers, as they are coded."""
    return SOUND[:SIZES] + struct.pack("<II", len(rows), len(columns)) + rows + columns


def steps(numbers: np.ndarray) -> bytes:
    """Numbers of three components, as `lattice` codes them: any of 16 bits."""
    before = np.repeat(np.full(3, 1 << 7, np.uint16), numbers.shape[1])
    sums = before + numbers.reshape(-1).astype(np.int64).astype(np.uint16)
    after = np.where(sums >> 15, sums ^ 0x7FFF, sums).astype(np.uint16)
    return LatticeCodec().encode(after.view(np.uint8), before.view(np.uint8), "BF16")


def check_same(found: LowRank, wanted: LowRank) -> None:
    assert (found.scale, found.gone) == (wanted.scale, wanted.gone)
    for each, other in zip(found[1:4], wanted[1:4], strict=True):
        assert (each.dtype, each.shape) == (other.dtype, other.shape)
        assert np.array_equal(each, other)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.integers(1, MOST_RANK),
    st.integers(1, 9),
    st.integers(1, 400),
    st.integers(0, 1 << 20),
    st.sampled_from((0, 1, 15, 16, LARGEST)),
    st.integers(1, 0x7F7FFFFF),
)
def test_what_is_written_is_read(rank: int, rows: int, width: int, seed: int, most: int, bits: int) -> None:
    """Whatever the numbers and the scale, and whatever is behind them."""
    gone = seed % width
    rows = max(rows, -(-rank * width // max(width - rank, 1)) + 2)
    of = matrix(rank, rows, width, gone, most=most, seed=seed)._replace(scale=np.uint32(bits).view(np.float32))
    n = (rows - 1) * width + 1
    coded = write_low_rank(of)
    turned = of._replace(rows=np.asfortranarray(of.rows), columns=np.asfortranarray(of.columns))
    assert coded == write_low_rank(turned), "the same bytes, however they lie in memory"
    if rank * (rows + width) > n:
        with pytest.raises(FormatError, match=f"rank {rank} has more numbers"):
            read_low_rank(coded, n)
        return
    found, rest = read_low_rank(coded + b"behind", n)
    check_same(found, of)
    assert rest.tobytes() == b"behind"


@pytest.mark.parametrize("rank", range(1, MOST_RANK + 1))
def test_every_rank_up_to_as_many_numbers_as_there_are_elements(rank: int) -> None:
    """Of one element less, there are more numbers than that."""
    width = 2 * rank
    rows = 2 * rank
    of = matrix(rank, rows, width, 0, seed=rank)
    coded = write_low_rank(of)
    assert rank * (rows + width) == rows * width
    check_same(read_low_rank(coded, rows * width)[0], of)
    with pytest.raises(FormatError, match=f"of {rows} rows and {width} columns, than {rows * width - 1}"):
        read_low_rank(coded, rows * width - 1)


@pytest.mark.parametrize(("exponents", "right"), [((1, 1, 1, 1, 2), True), ((1, 1, 2, 2, 3), False)])
def test_numbers_are_in_a_context_that_four_components_share(exponents: tuple[int, ...], right: bool) -> None:
    """As the page has it: `lattice` is told to start from exponents 1, 1, 1, 1, 2, and no other gives these numbers."""
    rng = np.random.default_rng(2)
    rows = (rng.standard_normal((5, 600)) * np.array([[2], [2], [2], [2], [9]])).round().astype(np.int8)
    of = matrix(5, 36000, 60, 0)._replace(rows=rows)
    coded = write_low_rank(of)
    size = struct.unpack_from("<I", coded, 13 + 5)[0]
    chunk = coded[13 + 5 + 8 :][:size]
    assert chunk[0] not in {0, 2}, "they are coded, and not told as they are"
    before = np.repeat(np.array(exponents, np.uint16) << np.uint16(7), 600)
    after = before.copy()
    if right:
        LatticeCodec().decode(chunk, after.view(np.uint8), "BF16")
        assert np.array_equal((after - before).view(np.int16).reshape(5, 600), rows)
        return
    with pytest.raises((FormatError, DamagedError)):
        LatticeCodec().decode(chunk, after.view(np.uint8), "BF16")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (head(rank=0), r"rank 0, from element 5 of 12 on, is out of range"),
        (head(rank=65), r"rank 65, from element 5 of 12 on, is out of range"),
        (head(rank=255), r"rank 255, "),
        (head(gone=WIDTH), r"from element 12 of 12 on, is out of range"),
        (head(gone=0xFFFFFFFF), r"from element 4294967295 of 12 on"),
        (head(width=0, gone=0), r"from element 0 of 0 on"),
        (head(width=1, gone=0), r"has more numbers, of 127 rows and 1 columns, than 127"),
        (head(width=0xFFFFFFFF), r"of 1 rows and 4294967295 columns"),
        (head(rank=6), r"rank 6 has more numbers, of 11 rows and 12 columns, than 127"),
        *((head(scale=scale), r"the scale of a product, -?[0-9.infa]+, is not a number above 0") for scale in
          (0.0, -0.0, -0.001, math.inf, -math.inf, math.nan)),
        *((SOUND[: SHIFTS + k] + b"\5" + SOUND[SHIFTS + k + 1 :], r"shift, 5, is more than 4") for k in range(3)),
        (SOUND[:SHIFTS] + b"\xff" + SOUND[SHIFTS + 1 :], r"shift, 255, is more than 4"),
        (sized(FIRST, SECOND + 3), r"the numbers of a product are cut off"),
        (sized(0xFFFFFFFF, 0xFFFFFFFF), r"the numbers of a product are cut off"),
        (sized(0, SECOND), r"mode None"),
        (sized(FIRST, 0), r"mode None"),
        (sized(FIRST - 1, SECOND + 1), r"fit"),
        (sized(FIRST + 1, SECOND - 1), r"fit"),
        (numbered(b"\0", b"\0\0"), r"mode 0 for BF16, is unknown or cut off"),
        (numbered(b"\4", b"\0"), r"mode 4"),
        *(
            (numbered(*parts), r"a number of a product is beyond 127")
            for number in (128, -128, 255, -129, 0x7FFF, -0x8000)
            for parts in (
                (steps(np.full((3, ROWS), number)), b"\0"),
                (b"\0", steps(np.arange(3 * WIDTH).reshape(3, WIDTH) // (3 * WIDTH - 1) * number)),
            )
        ),
    ],
)  # fmt: skip
def test_what_must_be_refused_is(data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_low_rank(data, N)
    with pytest.raises(FormatError, match=said):
        DareCodec().decode(b"\3" + data + b"\0\0", np.zeros(2 * N, np.uint8), "BF16")


def test_the_largest_numbers_are_not_refused() -> None:
    for number in (LARGEST, -LARGEST):
        data = numbered(steps(np.full((3, ROWS), number)), steps(np.full((3, WIDTH), -number)))
        found, rest = read_low_rank(data, N)
        assert (found.rows == number).all()
        assert (found.columns == -number).all()
        assert not rest


@pytest.mark.parametrize("size", range(SIZES + 8))
def test_heads_that_are_cut_off_are_refused(size: int) -> None:
    with pytest.raises(FormatError, match="is out of range, or cut off"):
        read_low_rank(SOUND[:size], N)


@pytest.mark.parametrize("size", range(SIZES + 8, len(SOUND)))
def test_numbers_that_are_cut_off_are_refused(size: int) -> None:
    with pytest.raises(FormatError, match="the numbers of a product are cut off"):
        read_low_rank(SOUND[:size], N)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_elements_have_no_product(n: int) -> None:
    ones = np.ones((1, 2), np.int8)
    data = write_low_rank(LowRank(np.float32(1), np.zeros(1, np.uint8), ones, ones, 0))
    with pytest.raises(FormatError, match="more numbers"):
        read_low_rank(data, n)
    assert read_low_rank(data, 4)[0].rows.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("rest", "error", "said"),
    [
        (b"", FormatError, "of mode None, is unknown or cut off"),
        (b"\1\0", FormatError, "of mode 1, is unknown or cut off"),
        (b"\4\0", FormatError, "of mode 4, is unknown or cut off"),
        (b"\2" + bytes(84), FormatError, "of mode 2, is unknown or cut off"),
        (b"\0", FormatError, "mode None"),
        (b"\0\0\0", FormatError, "mode 0"),
        (b"\3" + SOUND + b"\0\0", FormatError, "a product is added to another one"),
        (b"\3", FormatError, "a product is added to another one"),
        (b"\2" + bytes(85) + b"\0\0", FormatError, "mode 0 for BF16"),
    ],
)
def test_what_follows_is_of_another_mode_and_whole(rest: bytes, error: type[ArchiveError], said: str) -> None:
    room = np.full(2 * N + 64, 77, np.uint8)
    with pytest.raises(error, match=said):
        DareCodec().decode(b"\3" + SOUND + rest, room[32:-32], "BF16")
    assert (room[:32] == 77).all()
    assert (room[-32:] == 77).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_what_follows_starts_from_the_sums(dtype: str) -> None:
    """With nothing behind them they are what comes back; with a chunk of mode 0, what that was coded against."""
    of = matrix(3, ROWS, WIDTH, GONE)
    rng = np.random.default_rng(5)
    base = (rng.integers(0x3800, 0x3C00, N) | rng.integers(0, 2, N) << 15).astype(np.uint16)
    moved = base.copy()
    add_product.reference(dtype, moved, of)
    assert (moved != base).mean() > 0.9
    task = moved + rng.integers(0, 2, N).astype(np.uint16)
    other = LatticeCodec().encode(task.view(np.uint8), moved.view(np.uint8), dtype)
    for rest, due in ((b"\0\0", moved), (b"\0" + other, task), (b"\2" + bytes(85) + b"\0", moved)):
        out = base.copy()
        DareCodec().decode(b"\3" + write_low_rank(of) + rest, out.view(np.uint8), dtype)
        assert np.array_equal(out, due)


def test_damage_of_the_streams_is_found() -> None:
    """Numbers whose words do not end as they should: not a number in their place."""
    spoilt = bytearray(write_low_rank(matrix(3, 300, 300, 0, most=3)))
    spoilt[-1] ^= 1
    with pytest.raises(DamagedError, match="end"):
        read_low_rank(bytes(spoilt), 300 * 300)
