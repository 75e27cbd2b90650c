"""What rows of changes have in common: what is found is what there is, and costs and leaves what was foretold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from planted import Singles, planted, square

from tallstore.codecs.low_rank import read_low_rank, write_low_rank
from tallstore.kernels.low_rank import LARGEST, MOST_RANK, LowRank
from tallstore.recipes.coherence import picked
from tallstore.recipes.low_rank import SHARES_OF_RMS, common_part, find_low_rank, spectrum_of

SHAPES = ((300, 200), (256, 256), (200, 400), (90, 1000), (1000, 90))
STRENGTHS = {"one": (1.0,), "four": (1.0, 0.7, 0.5, 0.3), "many": tuple(np.geomspace(1, 0.2, 12))}
"""Of the components that are planted."""


def sample_of(changes: Singles) -> Singles:
    """As many rows as are looked at."""
    return np.ascontiguousarray(changes[picked(len(changes))])


def rms(changes: Singles) -> float:
    return float(np.sqrt(np.mean(np.square(changes, dtype=np.float64))))


def product(of: LowRank) -> npt.NDArray[np.float64]:
    """The matrix, in float64."""
    across = np.ldexp(of.rows.astype(np.float64), of.shifts[:, None].astype(np.int32))
    return float(of.scale) * (across.T @ of.columns.astype(np.float64))


def found_in(changes: Singles, step: float, gone: int = 0) -> LowRank:
    of = find_low_rank(changes, step, gone)
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
        assert find_low_rank(noise, share, 0) is None


@pytest.mark.parametrize("shape", [(64, 2048), (73, 14336), (90, 1000), (400, 500)], ids=str)
def test_behind_what_rows_have_in_common_noise_is_not_told_either(shape: tuple[int, int]) -> None:
    changes = planted(*shape, (1.0, 0.8, 0.6), 1.0)
    of = find_low_rank(changes, 1.5 * rms(changes), 0)
    assert of is not None
    assert len(of.shifts) == 3


@pytest.mark.parametrize(("rows", "columns", "gone", "behind"), [(17, 60000, 59000, 0), (9, 8000, 100, 7000)])
def test_elements_that_are_another_chunks_are_no_part_of_the_noise(
    rows: int, columns: int, gone: int, behind: int
) -> None:
    for seed in range(3):
        noise = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
        noise[0, :gone] = 0
        noise[-1, columns - behind :] = 0
        assert find_low_rank(noise, 1.5, gone) is None


def test_of_chunks_too_large_for_exact_sums_nothing_is_told() -> None:
    assert find_low_rank(np.ones((1 << 21, 1), np.float32).repeat(2, 1), 1e-3, 0) is None


def test_nothing_is_found_where_nothing_is_or_can_be() -> None:
    row = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    assert find_low_rank(np.zeros((50, 40), np.float32), 1e-6, 0) is None
    assert find_low_rank(row[None], 0.01, 0) is None
    assert find_low_rank(row[:, None], 0.01, 0) is None
    assert find_low_rank(planted(40, 50, (1.0,), 0.0), 0.0, 0) is None, "a step of 0 means that none is wanted"
    assert find_low_rank(planted(40, 50, (1.0,), 0.0), 1.0, 0) is not None


@pytest.mark.parametrize("columns", [2, 3, 7, 40, 300])
@pytest.mark.parametrize("rows", [2, 3, 5, 31, 100])
def test_there_are_never_more_numbers_than_elements(rows: int, columns: int) -> None:
    """At steps so fine that every component is worth its bits."""
    changes = planted(rows, columns, tuple(0.5 ** np.arange(min(rows, columns))), 0.0)
    of = find_low_rank(changes, 1e-3, 0)
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
    told = product(of).T if transposed else product(of)
    assert square(np.delete(changes - told, 17, axis=0)) < 1.15 * alone


@pytest.mark.parametrize("gone", [1, 37, 298, 299])
def test_elements_of_the_first_row_may_be_gone(gone: int) -> None:
    """They are 0 here, belong to no one, and the others are as good as without them."""
    changes = planted(200, 300, (1.0, 0.6), 0.1)
    step = 2 * rms(changes)
    whole = square(changes - product(found_in(changes, step)))
    changes.reshape(-1)[:gone] = 0
    of = found_in(changes, step, gone)
    check_form(of, 200, 300)
    assert of.gone == gone
    assert square((changes - product(of)).reshape(-1)[gone:]) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("size", [1e-38, 1e-36, 1e-34, 1e-20, 1e20, 1e37])
def test_changes_of_any_size_are_looked_at(size: float) -> None:
    """A step has as good a place among tiny numbers, of which no product is told; and nothing is infinite."""
    changes = (planted(60, 80, (1.0,), 0.1) / 8).astype(np.float32) * np.float32(size)
    spectrum = spectrum_of(changes)
    assert spectrum is not None
    assert spectrum.total == pytest.approx(square(changes), rel=1e-3)
    assert float(spectrum.square[0]) == pytest.approx(spectrum.total, rel=0.1)
    for step in (0.1 * size, 1e-3):
        of = find_low_rank(changes, step, 0)
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
            spectrum_of(changes)
            for each in (changes, np.ascontiguousarray(changes.T)):
                of = find_low_rank(each, 0.05, 0)
                seen += of is not None
                assert of is None or square(each - product(of)) < 0.01 * square(each)
    assert seen > 600, "nearly all of them"


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
    few, before = sample_of(changes), torch.get_num_threads()
    told, parts = [], []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            told += [[found_in(changes, share * rms(changes)) for share in (1.0, 4.0)]]
            spectrum = spectrum_of(few)
            assert spectrum is not None
            parts += [common_part(few, 4 * rms(few), shape[0], 1.0, spectrum)]
    finally:
        torch.set_num_threads(before)
    for other in told[1:]:
        assert all(same(one, two) for one, two in zip(other, told[0], strict=True))
    assert parts[0] is not None
    for part in parts[1:]:
        assert part is not None
        assert np.array_equal(part.product, parts[0].product)


# What is foretold of it.


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("strengths", STRENGTHS.values(), ids=STRENGTHS)
@pytest.mark.parametrize("shape", [(256, 256), (200, 400), (400, 500), (1000, 300)], ids=str)
def test_a_few_rows_tell_what_a_chunk_takes_and_leaves(
    shape: tuple[int, int], strengths: tuple[float, ...], noise: float
) -> None:
    changes = planted(*shape, strengths, noise, seed=3)
    few = sample_of(changes)
    spectrum = spectrum_of(few)
    assert spectrum is not None
    power = sum(strength**2 for strength in strengths)
    assert float(spectrum.square.sum()) / spectrum.total == pytest.approx(power / (power + noise**2), abs=0.1)
    assert spectrum.total == pytest.approx(square(few), rel=1e-3)
    assert np.allclose(spectrum.left.T @ spectrum.left, np.eye(len(spectrum.square)), atol=1e-9)
    assert (np.diff(spectrum.square) <= 0).all()
    assert ((spectrum.kept > 0) & (spectrum.kept <= 1)).all()
    for share in (4.0, 6.0):
        step = share * float(np.sqrt(spectrum.total / few.size))
        part = common_part(few, step, shape[0], 1.0, spectrum)
        assert part is not None
        of = found_in(changes, step)
        left = square(changes - product(of)) / square(changes)
        assert square(few - part.product) / spectrum.total == pytest.approx(left, rel=0.1, abs=0.08)
        assert 0.85 < part.bits / (8 * len(write_low_rank(of))) < 1.6


def test_bits_are_those_of_all_chunks() -> None:
    few = sample_of(planted(400, 300, (1.0, 0.5), 0.5))
    spectrum = spectrum_of(few)
    assert spectrum is not None
    step = 3 * rms(few)
    one, many = (common_part(few, step, 400, chunks, spectrum) for chunks in (1.0, 7.5))
    assert one is not None
    assert many is not None
    assert many.bits == pytest.approx(7.5 * one.bits)
    assert np.array_equal(one.product, many.product)


@pytest.mark.parametrize("huge", [0, 3, 12])
@pytest.mark.parametrize("columns", [200, 400, 1000, 2000])
def test_rows_that_have_nothing_in_common_are_told_none(columns: int, huge: int) -> None:
    """Independent noise, also where a few rows have nearly all of the square: that a row is like itself says nothing."""
    for seed in range(12):
        rng = np.random.default_rng([seed, columns, huge])
        few = rng.standard_normal((64, columns)).astype(np.float32)
        few[rng.permutation(64)[:huge]] *= (5, 30, 100)[seed % 3]
        spectrum = spectrum_of(few)
        shares = {4.0, 6.0, *(SHARES_OF_RMS if columns >= 1000 else ())}  # a step of less is not above narrow noise
        if spectrum is None:
            continue
        for share in shares:
            for rows in (64, 600, 4000):
                assert common_part(few, share * rms(few), rows, 1.0, spectrum) is None


def test_nothing_in_common_of_what_did_not_move_or_moved_in_one_row() -> None:
    assert spectrum_of(np.zeros((64, 100), np.float32)) is None
    one = np.zeros((64, 100), np.float32)
    one[5] = np.random.default_rng(4).standard_normal(100)
    assert spectrum_of(one) is None
    one[6] = one[5]
    assert spectrum_of(one) is not None
