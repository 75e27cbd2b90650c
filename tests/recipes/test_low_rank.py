"""What few rows of changes tell of what all have in common: what telling that takes, and what it leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import Singles, planted, rms, square

from tallstore.codecs.low_rank import write_low_rank
from tallstore.kernels.low_rank import factors
from tallstore.recipes.coherence import picked
from tallstore.recipes.common_columns import find_columns, times_told
from tallstore.recipes.low_rank import SHARES_OF_RMS, common_part, matrix_of, spectrum_of

STRENGTHS = {"one": (1.0,), "four": (1.0, 0.7, 0.5, 0.3), "many": tuple(np.geomspace(1, 0.2, 12))}
"""Of the components that are planted."""


def sample_of(changes: Singles) -> Singles:
    """As many rows as are looked at."""
    return np.ascontiguousarray(changes[picked(len(changes))])


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("strengths", STRENGTHS.values(), ids=STRENGTHS)
@pytest.mark.parametrize("shape", [(256, 256), (200, 400), (400, 500), (1000, 300)], ids=str)
def test_a_few_rows_tell_what_a_tensor_takes_and_leaves(
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
        part = common_part(few, step, shape, 1 << 20, spectrum)
        columns = find_columns([changes], step, shape[0], changes.size)
        assert part is not None
        assert columns is not None
        of = columns.rows_of(changes, 0, changes.size)
        assert of is not None
        across, along = factors(of)
        left = square(changes - of.scale * (across.T @ along)) / square(changes)
        assert square(few - part.product) / spectrum.total == pytest.approx(left, rel=0.1, abs=0.08)
        assert 0.85 < part.bits / (8 * len(write_low_rank(of))) < 1.6


def test_bits_are_those_of_all_rows_and_of_columns_once_or_in_each_chunk() -> None:
    few = sample_of(planted(400, 300, (1.0, 0.5), 0.5))
    spectrum = spectrum_of(few)
    assert spectrum is not None
    step = 3 * rms(few)
    found = {}
    for rows, chunk in ((400, 1 << 20), (400, 1 << 14), (800, 1 << 20), (8000, 1 << 20), (8000, 1 << 18)):
        part = common_part(few, step, (rows, 300), chunk, spectrum)
        assert part is not None
        found[rows, chunk] = part
    one, many, long = (found[each] for each in ((400, 1 << 20), (400, 1 << 14), (800, 1 << 20)))
    assert many.bits == pytest.approx(one.bits + 7 * 960), "no more than what chunks take by themselves"
    assert np.array_equal(one.product, many.product)
    assert 1.3 * one.bits < long.bits < 2 * one.bits
    table = found[8000, 1 << 20].bits, found[8000, 1 << 18].bits
    assert table[0] + 7 * 960 + 2000 < table[1] < 1.4 * table[0], "chunks of 873 rows tell their own columns"


@pytest.mark.parametrize(
    ("shape", "chunk", "times"),
    [((8000, 300), 1 << 20, 3), ((8000, 300), 1 << 17, 1), ((3495, 300), 1 << 20, 1), ((49152, 576), 1 << 20, 27)],
)
def test_chunks_of_more_than_twice_as_many_rows_as_columns_tell_their_own(
    shape: tuple[int, int], chunk: int, times: int
) -> None:
    assert times_told(shape, chunk) == times


def test_of_rows_longer_than_a_chunk_nothing_is_told() -> None:
    changes = planted(40, 3000, (1.0, 0.5), 0.1)
    spectrum = spectrum_of(changes)
    assert spectrum is not None
    for chunk, due in ((3000, True), (2999, False)):
        assert (common_part(changes, rms(changes), (40, 3000), chunk, spectrum) is not None) is due
        assert (find_columns([changes], rms(changes), 40, chunk) is not None) is due


def test_of_long_rows_their_beginnings_tell() -> None:
    """What is left is the same, and what is told takes as many bits as it does of rows that are known to their ends."""
    few = sample_of(planted(400, 900, (1.0, 0.5), 0.5))
    begun = np.ascontiguousarray(few[:, :300])
    step = 3 * rms(few)
    whole, part = spectrum_of(few), spectrum_of(begun)
    assert whole is not None
    assert part is not None
    known, guessed = (
        common_part(few, step, (400, 900), 1 << 20, whole),
        common_part(begun, step, (400, 900), 1 << 20, part),
    )
    assert known is not None
    assert guessed is not None
    assert guessed.bits == pytest.approx(known.bits, rel=0.05)
    assert square(begun - guessed.product) / square(begun) == pytest.approx(
        square(few - known.product) / square(few), rel=0.1
    )


@pytest.mark.parametrize(("shape", "rank"), [((700, 900), 3), ((1024, 400), 12)])
def test_the_number_of_threads_changes_nothing(shape: tuple[int, int], rank: int) -> None:
    few = sample_of(planted(*shape, (1.0,) * rank, 1.0, seed=5))
    before = torch.get_num_threads()
    parts = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            spectrum = spectrum_of(few)
            assert spectrum is not None
            parts += [common_part(few, 4 * rms(few), shape, 1 << 20, spectrum)]
    finally:
        torch.set_num_threads(before)
    assert parts[0] is not None
    for part in parts[1:]:
        assert part is not None
        assert np.array_equal(part.product, parts[0].product)


@pytest.mark.parametrize("size", [1e-38, 1e-36, 1e-34, 1e-20, 1e20, 1e37])
def test_changes_of_any_size_have_a_spectrum(size: float) -> None:
    changes = (planted(60, 80, (1.0,), 0.1) / 8).astype(np.float32) * np.float32(size)
    spectrum = spectrum_of(changes)
    assert spectrum is not None
    assert spectrum.total == pytest.approx(square(changes), rel=1e-3)
    assert float(spectrum.square[0]) == pytest.approx(spectrum.total, rel=0.1)


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
                assert common_part(few, share * rms(few), (rows, columns), 1 << 20, spectrum) is None


def test_nothing_in_common_of_what_did_not_move_or_moved_in_one_row() -> None:
    assert spectrum_of(np.zeros((64, 100), np.float32)) is None
    one = np.zeros((64, 100), np.float32)
    one[5] = np.random.default_rng(4).standard_normal(100)
    assert spectrum_of(one) is None
    one[6] = one[5]
    assert spectrum_of(one) is not None


@pytest.mark.parametrize(
    ("shape", "due"),
    [
        ((300, 200), (300, 200)),
        ((7,), (7, 1)),
        ((64, 32, 3, 3), (64, 288)),
        ((64, 32, 31), (64, 992)),
        ((128, 16, 64), (2048, 64)),
        ((128, 16, 64, 1), (2048, 64)),
        ((20, 1, 8, 8), (20, 64)),
        ((16, 4, 3, 5, 7), (64, 105)),
        ((8, 300, 40), (2400, 40)),
        ((5, 0, 64), (0, 64)),
        ((5, 0), (5, 0)),
        ((5, 3, 0), (5, 0)),
        ((0, 30), (0, 30)),
    ],
    ids=str,
)
def test_rows_are_those_of_a_matrix_and_filters_and_long_kernels(shape: tuple[int, ...], due: tuple[int, int]) -> None:
    """A linear layer, a convolution of 3 by 3 taps, one of 64 taps; what has no elements has rows all the same."""
    assert matrix_of(shape) == due
