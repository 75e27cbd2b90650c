"""A product of thin matrices as bytes: what is written is read, and all else is refused, by name."""

from __future__ import annotations

import math
import struct
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from tallstore import codecs
from tallstore.codecs.base import ConditionalCodec, Given
from tallstore.codecs.dare import DareCodec
from tallstore.codecs.lattice import LatticeCodec
from tallstore.codecs.low_rank import MOST_NUMBERS, read_columns, read_low_rank, write_low_rank
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


def chunk(of: LowRank, rest: bytes = b"\0\0", *, with_columns: bool = True) -> bytes:
    """A chunk of mode 3, and what follows in it."""
    return b"\3" + write_low_rank(of, with_columns=with_columns) + rest


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
    st.booleans(),
)
def test_what_is_written_is_read(
    rank: int, rows: int, width: int, seed: int, most: int, bits: int, with_columns: bool
) -> None:
    """Whatever the numbers and the scale, and whatever is behind them; and whether columns are told here or not."""
    gone = seed % width
    of = matrix(rank, rows, width, gone, most=most, seed=seed)._replace(scale=np.uint32(bits).view(np.float32))
    n = max(rows * width - gone - seed % width, (rows - 1) * width - gone + 1, 1)
    coded = write_low_rank(of, with_columns=with_columns)
    turned = of._replace(rows=np.asfortranarray(of.rows), columns=np.asfortranarray(of.columns))
    assert coded == write_low_rank(turned, with_columns=with_columns), "the same bytes, however they lie in memory"
    columns = None if with_columns else lambda: of.columns
    if rank * rows > n:
        with pytest.raises(FormatError, match=f"rank {rank} has more numbers of {rows} rows than {n}$"):
            read_low_rank(coded, n, columns)
        return
    if rank * width > 64 * n:
        with pytest.raises(
            FormatError, match=f"rank {rank} has more numbers of {width} columns than 64 for each of {n} el"
        ):
            read_low_rank(coded, n, columns)
        return
    found, rest = read_low_rank(coded + b"behind", n, columns)
    check_same(found, of)
    assert rest.tobytes() == b"behind"


def test_components_may_lie_in_memory_the_other_way_round() -> None:
    of = matrix(5, 1, 5, 0)
    turned = of._replace(shifts=of.shifts[::-1], rows=of.rows[::-1], columns=of.columns[::-1])
    coded = write_low_rank(turned)
    assert coded == write_low_rank(LowRank(of.scale, *(each.copy() for each in turned[1:4]), of.gone))
    check_same(read_low_rank(coded, 5)[0], turned)


@pytest.mark.parametrize("rank", range(2, MOST_RANK + 1))
def test_every_rank_up_to_as_many_numbers_of_rows_as_there_are_elements(rank: int) -> None:
    """Of one element less, there are more numbers than that. Columns may have 64 times as many, and no more."""
    of = matrix(rank, 3, rank, 0, seed=rank)
    coded = write_low_rank(of)
    check_same(read_low_rank(coded, 3 * rank)[0], of)
    with pytest.raises(FormatError, match=f"rank {rank} has more numbers of 3 rows than {3 * rank - 1}$"):
        read_low_rank(coded, 3 * rank - 1)
    wide, wider = (
        matrix(rank, rows, width, 0, seed=rank) for rows, width in ((-(-rank // 64), 64), (-(-rank // 65), 65))
    )
    check_same(read_low_rank(write_low_rank(wide), rank)[0], wide)
    with pytest.raises(
        FormatError, match=f"rank {rank} has more numbers of 65 columns than 64 for each of {rank} elements$"
    ):
        read_low_rank(write_low_rank(wider), rank)


@pytest.mark.parametrize("rank", [1, 3, MOST_RANK])
def test_columns_have_so_many_numbers_and_no_more(rank: int) -> None:
    most, zeros = MOST_NUMBERS // rank, b"\0"
    for width, gone in ((most, 0), (most + 1, 0), (most + 1, most)):
        told = struct.pack("<BIIf", rank, width, gone, 1.0) + bytes(rank) + struct.pack("<II", 1, 1) + zeros * 2
        if width == most:
            assert read_low_rank(told, 1 << 16)[0].columns.shape == (rank, most)
            assert read_columns(told).shape == (rank, most)
            continue
        for data in (told, told[:-6] + bytes(4) + zeros):
            for read in (partial(read_low_rank, n=rank, columns=lambda: pytest.fail("asked")), read_columns):
                with pytest.raises(FormatError, match=f"has more numbers of {width} columns than 4194304$"):
                    read(data)


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
        (head(width=1, gone=0), r"rank 3 has more numbers of 127 rows than 127$"),
        (head(width=0xFFFFFFFF), r"rank 3 has more numbers of 4294967295 columns than 4194304$"),
        (head(width=4194304 // 3 + 1), r"rank 3 has more numbers of 1398102 columns than 4194304$"),
        (struct.pack("<BIIf", 12, WIDTH, GONE, 1.0) + bytes(20), r"rank 12 has more numbers of 11 rows than 127$"),
        *((head(scale=scale), r"the scale of a product, -?[0-9.infa]+, is not a number above 0") for scale in
          (0.0, -0.0, -0.001, math.inf, -math.inf, math.nan)),
        *((SOUND[: SHIFTS + k] + b"\5" + SOUND[SHIFTS + k + 1 :], r"shift, 5, is more than 4") for k in range(3)),
        (SOUND[:SHIFTS] + b"\xff" + SOUND[SHIFTS + 1 :], r"shift, 255, is more than 4"),
        (sized(FIRST, SECOND + 3), r"the numbers of a product are cut off"),
        (sized(0xFFFFFFFF, 0xFFFFFFFF), r"the numbers of a product are cut off"),
        (sized(0, SECOND), r"mode None"),
        (sized(FIRST, 0), r"a product of a tensor's first chunk has no columns$"),
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


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_elements_may_have_a_product(n: int) -> None:
    """Of one row or two, and of any width; of two components each."""
    for gone, rows in ((0, -(-n // 2)), (1, -(-(1 + n) // 2))):
        of = matrix(1, rows, 2, gone)
        check_same(read_low_rank(write_low_rank(of), n)[0], of)
        with pytest.raises(FormatError, match=f"rank 4 has more numbers of {rows} rows than {n}$"):
            read_low_rank(write_low_rank(matrix(4, rows, 2, gone)), n)


def test_to_no_element_nothing_is_added() -> None:
    with pytest.raises(FormatError, match=r"rank 2 has more numbers of 5 columns than 64 for each of 0 elements$"):
        read_low_rank(write_low_rank(matrix(2, 1, 5, 0))[:15] + struct.pack("<II", 1, 1) + b"\0\0!", 0)
    with pytest.raises(FormatError, match=r"rank 2 has more numbers of 1 rows than 0$"):
        read_low_rank(write_low_rank(matrix(2, 1, 5, 3)), 0)


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


# Columns that the tensor's first chunk tells.


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_first_components_of_the_first_chunk_are_taken(rank: int, dtype: str) -> None:
    """And nothing else of it: not its rows, shifts, scale or gone, and not the number of its elements."""
    first = matrix(3, ROWS, WIDTH, GONE)
    codec, told = DareCodec(), DareCodec().columns(chunk(first))
    assert told.dtype == np.int8
    assert np.array_equal(told, first.columns)
    later = matrix(rank, ROWS, WIDTH, 0, seed=9)._replace(scale=np.float32(0.01), columns=first.columns[:rank])
    data, base = chunk(later, with_columns=False), np.full(WIDTH * ROWS, 0x3F00, np.uint16)
    assert data[14 + rank + 4 :][:4] == bytes(4), "no byte of columns"
    due, out, own = base.copy(), base.copy(), base.copy()
    add_product.reference(dtype, due, later)
    assert (due != base).mean() > 0.9
    codec.decode(data, out.view(np.uint8), dtype, Given(columns=lambda: told))
    codec.decode(chunk(later), own.view(np.uint8), dtype, Given(columns=lambda: pytest.fail("it has its own")))
    assert np.array_equal(out, due)
    assert np.array_equal(own, due)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_columns_of_a_first_chunk_are_asked_for_by_those_alone_that_have_none(dtype: str) -> None:
    """Once a chunk, and not where it is refused for itself."""
    asked: list[int] = []

    def columns() -> np.ndarray:
        asked.append(1)
        return matrix(3, 1, WIDTH, 0).columns

    codec, room = DareCodec(), np.zeros(2 * N, np.uint8)
    asking = chunk(matrix(3, ROWS, WIDTH, GONE), with_columns=False)
    for data in (b"\0\0", b"\2" + bytes(85) + b"\0", chunk(matrix(3, ROWS, WIDTH, GONE))):
        codec.decode(data, room, dtype, Given(columns=columns))
    for data in (asking[:-2][:20], b"\3" + head(scale=0.0) + b"\0\0"):
        with pytest.raises(FormatError):
            codec.decode(data, room, dtype, Given(columns=columns))
    assert not asked
    codec.decode(asking, room, dtype, Given(columns=columns))
    assert asked == [1]


@pytest.mark.parametrize(
    ("rank", "width", "said"),
    [
        (3, WIDTH - 1, "of rank 2 of 12 columns does not fit the tensor's first chunk, which tells 3 of 11$"),
        (3, WIDTH + 1, "of rank 2 of 12 columns does not fit the tensor's first chunk, which tells 3 of 13$"),
        (1, WIDTH, "of rank 2 of 12 columns does not fit the tensor's first chunk, which tells 1 of 12$"),
        (64, 1, "of rank 2 of 12 columns does not fit the tensor's first chunk, which tells 64 of 1$"),
    ],
)
def test_columns_that_do_not_fit_are_refused(rank: int, width: int, said: str) -> None:
    asking = chunk(matrix(2, ROWS, WIDTH, GONE), with_columns=False)
    told = DareCodec().columns(chunk(matrix(rank, 1, width, 0)))
    with pytest.raises(FormatError, match=said):
        DareCodec().decode(asking, np.zeros(2 * N, np.uint8), "BF16", Given(columns=lambda: told))


def test_a_first_chunk_that_asks_for_columns_is_refused() -> None:
    asking = chunk(matrix(2, ROWS, WIDTH, GONE), with_columns=False)
    with pytest.raises(FormatError, match=r"^a product of a tensor's first chunk has no columns$"):
        DareCodec().decode(asking, np.zeros(2 * N, np.uint8), "BF16")
    assert DareCodec().columns(asking) is None
    with pytest.raises(FormatError, match=r"^the tensor's first chunk tells of no columns$"):
        DareCodec().decode(asking, np.zeros(2 * N, np.uint8), "BF16", Given(columns=lambda: None))


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0", b"\2" + bytes(85) + b"\0", b"\4" + SOUND])
def test_chunks_of_other_modes_tell_no_columns(data: bytes) -> None:
    assert DareCodec().columns(data) is None


@pytest.mark.parametrize("codec", list(codecs.LOSSLESS.values()), ids=list(codecs.LOSSLESS))
def test_chunks_of_other_codecs_tell_no_columns(codec: ConditionalCodec) -> None:
    assert codec.columns(chunk(matrix(1, 1, 4, 0))) is None


def test_columns_are_read_whatever_else_the_first_chunk_is() -> None:
    """Its rows may be of any number, or not to be decoded, and what follows is not looked at."""
    wanted = matrix(3, ROWS, WIDTH, GONE).columns
    columns = SOUND[SIZES + 8 + FIRST :]
    for data in (SOUND, SOUND + b"\7", numbered(b"\4", columns), numbered(b"", columns)):
        assert np.array_equal(DareCodec().columns(b"\3" + data), wanted)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (head(rank=0), "out of range"),
        (head(gone=WIDTH), "out of range"),
        (head(width=0xFFFFFFFF), "4294967295 columns than 4194304$"),
        (head(scale=math.nan), "the scale of a product, nan"),
        (SOUND[:SHIFTS] + b"\5" + SOUND[SHIFTS + 1 :], "shift, 5, is more than 4"),
        (sized(FIRST, SECOND + 1), "the numbers of a product are cut off"),
        (SOUND[:-1], "the numbers of a product are cut off"),
        (sized(FIRST, SECOND - 1), "fit"),
        (numbered(b"\0", b"\0\0"), "mode 0 for BF16"),
        (numbered(b"\0", steps(np.full((3, WIDTH), 128))), "a number of a product is beyond 127"),
    ],
)
def test_columns_of_a_first_chunk_that_cannot_be_used_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        DareCodec().columns(b"\3" + data)


def test_damage_of_columns_of_a_first_chunk_is_found() -> None:
    spoilt = bytearray(chunk(matrix(3, 3, 3000, 0, most=3)))
    spoilt[-3] ^= 1
    with pytest.raises(DamagedError, match="end"):
        DareCodec().columns(bytes(spoilt))
