"""What rows of changes have in common: what is found is what there is, whatever part of it is told at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from planted import Singles, planted, rms, square

from tallstore.codecs.low_rank import read_low_rank, write_low_rank
from tallstore.kernels.low_rank import LARGEST, MOST_RANK, MOST_SHIFT, LowRank
from tallstore.recipes.common_columns import CommonColumns, find_columns
from tallstore.recipes.low_rank import SHARES_OF_RMS

SHAPES = ((300, 200), (256, 256), (200, 400), (90, 1000), (1000, 90))
STRENGTHS = {"one": (1.0,), "four": (1.0, 0.7, 0.5, 0.3), "many": tuple(np.geomspace(1, 0.2, 12))}
"""Of the components that are planted."""


def product(of: LowRank) -> npt.NDArray[np.float64]:
    """The matrix, in float64."""
    across = np.ldexp(of.rows.astype(np.float64), of.shifts[:, None].astype(np.int32))
    return float(of.scale) * (across.T @ of.columns.astype(np.float64))


def columns_in(changes: Singles, step: float, parts: int = 1) -> CommonColumns | None:
    """Those of all rows, which are given in so many blocks."""
    return find_columns(np.array_split(changes, parts), step, len(changes), changes.size)


def rows_of(columns: CommonColumns, changes: Singles, gone: int, elements: int) -> LowRank:
    of = columns.rows_of(changes, gone, elements)
    assert of is not None
    return of


def whole_rows(columns: CommonColumns, changes: Singles) -> LowRank:
    return rows_of(columns, changes, 0, changes.size)


def told(changes: Singles, step: float) -> LowRank | None:
    """What one chunk tells that has all of them."""
    columns = columns_in(changes, step)
    return None if columns is None else whole_rows(columns, changes)


def found_in(changes: Singles, step: float) -> LowRank:
    of = told(changes, step)
    assert of is not None
    return of


def check_form(of: LowRank, rows: int, columns: int) -> None:
    """No more numbers than elements, and each in its range: what is written is read."""
    rank = len(of.shifts)
    assert 1 <= rank <= MOST_RANK
    assert rank * (rows + columns) <= rows * columns
    assert (of.rows.shape, of.columns.shape) == ((rank, rows), (rank, columns))
    assert of.rows.dtype == of.columns.dtype == np.int8
    for numbers in (of.rows, of.columns):
        assert np.abs(numbers.astype(int)).max() <= LARGEST
    again, rest = read_low_rank(write_low_rank(of), rows * columns - of.gone)
    assert not rest
    assert np.array_equal(product(again), product(of))


def same(left: LowRank, right: LowRank) -> bool:
    return (left.scale, left.gone) == (right.scale, right.gone) and all(
        np.array_equal(a, b) for a, b in zip(left[1:4], right[1:4], strict=True)
    )


# What is found.


@pytest.mark.parametrize("share", [4.0, 2.0, 1.0])
@pytest.mark.parametrize("strengths", STRENGTHS.values(), ids=STRENGTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_left_is_what_the_best_of_its_rank_leaves_and_rounding(
    shape: tuple[int, int], strengths: tuple[float, ...], share: float
) -> None:
    """No product of the same rank leaves less than the SVD's; numbers that are rounded add δ² · (m + n) / 12 each."""
    changes = planted(*shape, strengths, 0.1)
    step = share * rms(changes)
    of = found_in(changes, step)
    check_form(of, *shape)
    sigma = np.linalg.svd(changes.astype(np.float64), compute_uv=False)
    rank = len(of.shifts)
    worth = sigma[:MOST_RANK] ** 2 / (0.15 * step**2 * sum(shape))
    assert np.count_nonzero(worth > 1.001) <= rank <= np.count_nonzero(worth > 0.999), "all that are worth it"
    best, rounding = float((sigma[rank:] ** 2).sum()), rank * step**2 * sum(shape) / 12
    left = square(changes - product(of))
    assert left > best
    assert left <= 1.03 * best + 1.4 * rounding
    assert left >= 0.97 * best + 0.8 * rounding


def test_all_components_err_alike() -> None:
    """A strong one and a weak one, each by itself: strength gives bits, and not error."""
    rows, columns, step = 400, 300, 1.0
    errors = []
    for strength in (0.1, 0.3, 1.0):
        changes = planted(rows, columns, (strength,), 0.0)
        of = found_in(changes, step)
        assert len(of.shifts) == 1
        errors.append(square(changes - product(of)) / (step**2 * (rows + columns) / 12))
    assert errors == pytest.approx([1, 1, 1], rel=0.15)


@pytest.mark.parametrize("share", [*SHARES_OF_RMS, 3.0, 6.0])
@pytest.mark.parametrize("shape", [*SHAPES, (64, 64), (2, 5000), (64, 4096), (73, 14336)], ids=str)
def test_in_white_noise_there_is_nothing_worth_its_bits(shape: tuple[int, int], share: float) -> None:
    for seed in range(3):
        noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        assert columns_in(noise, share) is None


@pytest.mark.parametrize("shape", [(64, 2048), (73, 14336), (90, 1000), (400, 500)], ids=str)
def test_behind_what_rows_have_in_common_noise_is_not_told_either(shape: tuple[int, int]) -> None:
    changes = planted(*shape, (1.0, 0.8, 0.6), 1.0)
    of = told(changes, 1.5 * rms(changes))
    assert of is not None
    assert len(of.shifts) == 3


def test_nothing_is_found_where_nothing_is_or_can_be() -> None:
    row = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    assert told(np.zeros((50, 40), np.float32), 1e-6) is None
    assert told(row[None], 0.01) is None
    assert told(row[:, None], 0.01) is None
    assert told(planted(40, 50, (1.0,), 0.0), 0.0) is None, "a step of 0 means that none is wanted"
    assert told(planted(40, 50, (1.0,), 0.0), 1.0) is not None


@pytest.mark.parametrize("columns", [2, 3, 7, 40, 300])
@pytest.mark.parametrize("rows", [2, 3, 5, 31, 100])
def test_there_are_never_more_numbers_than_elements(rows: int, columns: int) -> None:
    """At steps so fine that every component is worth its bits."""
    changes = planted(rows, columns, tuple(0.5 ** np.arange(min(rows, columns))), 0.0)
    of = told(changes, 1e-3)
    assert of is not None or rows * columns < 3 * (rows + columns), "there is room for more than one"
    if of is not None:
        check_form(of, rows, columns)


@pytest.mark.parametrize("huge", [1e2, 1e4, 1e6])
def test_a_huge_row_or_column_leaves_numbers_in_range(huge: float) -> None:
    """One that has most of the square: its number is the largest there is."""
    changes = planted(200, 300, (1.0, 0.5), 0.3) / np.float32(1e6)
    changes[17] *= np.float32(huge)
    for each in (changes, np.ascontiguousarray(changes.T)):
        for step in (1e-8, 1e-6, huge / 1e7):
            of = found_in(each, step)
            check_form(of, *each.shape)
            assert square(each - product(of)) < square(each)


@pytest.mark.parametrize("huge", [3, 30])
@pytest.mark.parametrize("transposed", [False, True])
def test_beside_a_huge_row_or_column_others_are_told_as_well(huge: float, transposed: bool) -> None:
    changes = planted(200, 300, (1.0, 0.5), 0.1)
    step = 2 * rms(changes)
    alone = square(np.delete(changes - product(found_in(changes, step)), 17, axis=0))
    changes[17] *= np.float32(huge)
    of = found_in(np.ascontiguousarray(changes.T) if transposed else changes, step)
    found = product(of).T if transposed else product(of)
    assert square(np.delete(changes - found, 17, axis=0)) < 1.15 * alone


@pytest.mark.parametrize("size", [1e-38, 1e-36, 1e-34, 1e-20, 1e20, 1e37])
def test_changes_of_any_size_are_looked_at(size: float) -> None:
    """Of tiny numbers no product is told; and nothing is infinite."""
    changes = (planted(60, 80, (1.0,), 0.1) / 8).astype(np.float32) * np.float32(size)
    for step in (0.1 * size, 1e-3):
        of = told(changes, step)
        assert of is None or np.isfinite(product(of)).all()


def test_rows_that_cancel_out_in_a_sketch_are_no_error() -> None:
    """Of few rows, alike or opposite, which signs that are drawn may add up to 0."""
    column = np.random.default_rng(2).standard_normal(100)
    seen = 0
    for rows in (2, 3, 4, 5):
        for number in range(1, 3**rows):
            signs = number // 3 ** np.arange(rows) % 3 - 1
            if not signs.any():
                continue
            changes = np.outer(signs, column).astype(np.float32)
            for each in (changes, np.ascontiguousarray(changes.T)):
                of = told(each, 0.05)
                seen += of is not None
                assert of is None or square(each - product(of)) < 0.01 * square(each)
    assert seen > 600, "nearly all of them"


def test_what_a_number_of_columns_stands_for_is_exact() -> None:
    """A power of two of the scale, by the step, in float64: shifts are bytes, of which a power has few bits by itself."""
    changes = planted(200, 300, (1.0, 0.5, 0.25, 0.12), 0.01)
    step = rms(changes)
    columns = columns_in(changes, step)
    assert columns is not None
    assert len(set(columns.shifts.tolist())) > 2
    assert columns.units.dtype == np.float64
    due = [float(columns.scale) * 2.0**shift / step for shift in columns.shifts.tolist()]
    assert columns.units.tolist() == due


# Chunk by chunk.


def in_chunks(changes: Singles, columns: CommonColumns, size: int) -> Iterator[tuple[Singles, LowRank]]:
    """Chunks of so many elements, and what is told of each."""
    width = changes.shape[1]
    for start in range(0, changes.size, size):
        part = changes.reshape(-1)[start : start + size]
        rows = changes[start // width : -(-(start + len(part)) // width)]
        yield part, rows_of(columns, rows, start % width, len(part))


@pytest.mark.parametrize("size", [60_000, 10_000, 9_973, 3_000, 317, 300])
def test_chunks_leave_together_what_one_leaves(size: int) -> None:
    """They begin and end within rows, or have no more than one: each tells the best rows that there are for it."""
    changes = planted(200, 300, (1.0, 0.6, 0.4), 0.1)
    columns = columns_in(changes, 2 * rms(changes))
    assert columns is not None
    left = 0.0
    for part, of in in_chunks(changes, columns, size):
        rows = -(-(of.gone + len(part)) // 300)
        assert of.rows.shape == (3, rows)
        assert np.array_equal(of.columns, columns.numbers)
        again, rest = read_low_rank(write_low_rank(of, with_columns=False), len(part), lambda: columns.numbers)
        assert not rest
        assert same(again, of)
        left += square(part - product(of).reshape(-1)[of.gone :][: len(part)])
    whole = square(changes - product(whole_rows(columns, changes)))
    assert left == pytest.approx(whole, rel=0.03)


def test_a_chunk_has_no_more_numbers_than_there_may_be() -> None:
    """Of a few elements on both sides of a row's end: the first components, then, or none."""
    changes = planted(200, 60, (1.0, 0.6, 0.4), 0.1)
    columns = columns_in(changes, rms(changes))
    assert columns is not None
    assert columns.rows_of(changes[1:3], 59, 1) is None
    for n, rank in ((2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)):
        of = rows_of(columns, changes[1:3], 59, n)
        assert of.rows.shape == (rank, 2)
        assert np.array_equal(of.columns, columns.numbers[:rank])
        assert read_low_rank(write_low_rank(of), n)[0].gone == 59
    wide = columns_in(planted(60, 200, (1.0, 0.6, 0.4), 0.1), 0.5)
    assert wide is not None
    for n, few in ((3, 0), (4, 1), (6, 1), (7, 2), (9, 2), (10, 3)):
        part = wide.rows_of(np.ones((1, 200), np.float32), 0, n)
        assert (0 if part is None else len(part.shifts)) == few


def test_of_a_chunk_that_is_not_finite_or_does_not_move_nothing_is_added() -> None:
    changes = planted(200, 300, (1.0, 0.6, 0.4), 0.1)
    columns = columns_in(changes, rms(changes))
    assert columns is not None
    for value in (np.nan, np.inf, -np.inf):
        odd = changes[:20].copy()
        odd[3, 77] = value
        assert not whole_rows(columns, odd).rows.any()
    assert not whole_rows(columns, np.zeros((3, 300), np.float32)).rows.any()


@pytest.mark.parametrize("times", [3.0, 100.0, 4000.0])
def test_a_chunk_that_moved_by_far_more_than_others_has_coarser_rows(times: float) -> None:
    """Its numbers are in range, and what it leaves is a small part of it; others are told as finely as before."""
    changes = planted(200, 300, (1.0, 0.01), 0.0)
    changes[100:] *= np.float32(1 / times)
    columns = columns_in(changes, 0.05 * rms(changes))
    assert columns is not None
    for part in (changes[:100], changes[100:]):
        for factor in (1.0, times):
            moved = part * np.float32(factor)
            of = whole_rows(columns, moved)
            assert int(of.shifts.max()) <= MOST_SHIFT
            assert np.abs(of.rows.astype(int)).max() <= LARGEST
            coarsest = max(columns.step, float(np.abs(moved).max()))
            assert square(moved - product(of)) < 0.02 * moved.size * coarsest**2


@pytest.mark.parametrize("parts", [2, 7, 200])
def test_blocks_find_what_all_rows_together_do(parts: int) -> None:
    changes = planted(200, 300, (1.0, 0.6, 0.4), 0.5)
    one, several = (columns_in(changes, rms(changes), blocks) for blocks in (1, parts))
    assert one is not None
    assert several is not None
    assert one.numbers.shape == several.numbers.shape
    left = [square(changes - product(whole_rows(each, changes))) for each in (one, several)]
    assert left[1] == pytest.approx(left[0], rel=0.01)


def test_a_sample_of_rows_tells_columns_of_all() -> None:
    """A quarter of them: of strong components nearly what all of them tell."""
    changes = planted(1200, 300, (1.0, 0.6, 0.4), 0.3)
    whole = columns_in(changes, rms(changes))
    few = find_columns([np.ascontiguousarray(changes[::4])], rms(changes), 1200, changes.size)
    assert whole is not None
    assert few is not None
    assert len(few.shifts) == len(whole.shifts) == 3
    left = [square(changes - product(whole_rows(each, changes))) for each in (whole, few)]
    assert left[1] < 1.1 * left[0]


def test_there_are_no_more_columns_than_the_first_chunk_has_room_for() -> None:
    """It has as many rows as elements, or one element less than two rows."""
    changes = planted(200, 30, tuple(0.9 ** np.arange(20)), 0.0)
    for first, rank in ((6_000, 20), (30, 20), (59, 20), (31, 15), (35, 17)):
        columns = find_columns([changes], 1e-2 * rms(changes), 200, first)
        assert columns is not None
        assert len(columns.shifts) == rank
    assert find_columns([changes], 1e-2 * rms(changes), 200, 29) is None, "rows are longer than it"


# The same for the same.


def test_the_same_changes_give_the_same_numbers_however_they_lie_in_memory() -> None:
    for strengths in STRENGTHS.values():
        changes = planted(310, 220, strengths, 0.3)
        apart = np.zeros((620, 440), np.float32)
        apart[::2, ::2] = changes
        step = 2 * rms(changes)
        first = found_in(changes, step)
        for other in (changes.copy(), np.asfortranarray(changes), apart[::2, ::2]):
            assert same(found_in(other, step), first)


@pytest.mark.parametrize(("shape", "rank"), [((700, 900), 3), ((1024, 400), 12), ((64, 3000), 1), ((1822, 576), 1)])
def test_the_number_of_threads_changes_no_number(shape: tuple[int, int], rank: int) -> None:
    changes = planted(*shape, (1.0,) * rank, 1.0, seed=5)
    before = torch.get_num_threads()
    every = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            every += [[found_in(changes, share * rms(changes)) for share in (1.0, 4.0)]]
    finally:
        torch.set_num_threads(before)
    for other in every[1:]:
        assert all(same(one, two) for one, two in zip(other, every[0], strict=True))
