"""Levels with dither in types of few bits: right on the average in what a decoder returns, parameter by parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples, without_kernels

from tallstore.encoder.moved_elements import moved_of, scattered
from tallstore.encoder.quantize import agreement_of_levels
from tallstore.encoder.rounded_levels import RoundedLevels
from tallstore.kernels import reference
from tallstore.kernels.native import library
from tallstore.kernels.native_types import BFLOAT16, FLOAT16

DRAWS = 4000
TYPES = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}


def rounded(values: np.ndarray, form: int) -> np.ndarray:
    return torch.from_numpy(values).to(TYPES[form]).float().numpy()


def mean_returned(
    base: float, tau: float, values: list[float], width: float, low: float = 0.0
) -> tuple[float, set[float]]:
    """What a decoder returns more than the base, on the average of many parameters that are alike; and what at all."""
    bases, taus = (np.full(DRAWS, each, np.float32) for each in (base, tau))
    indices, steps = np.empty(DRAWS, np.uint8), np.array(values, np.float32)
    RoundedLevels(moved_of(taus, bases, 3, BFLOAT16), low, width, 11).place(indices, steps)
    table = np.concatenate([np.zeros(1, np.float32), steps, -steps])
    returned = rounded(bases + table[indices], BFLOAT16) - bases
    return float(returned.mean()), set(returned.tolist())


@pytest.mark.parametrize(
    ("step", "units"),
    [(0.6, 1), (1.0, 1), (1.3, 1), (1.8, 2), (2.4, 2), (7.7, 8)],
    ids=["up to a unit", "a unit", "down to a unit", "up to two", "down to two", "many"],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_marks_are_right_on_the_average_of_what_is_returned(step: float, units: int, sign: int) -> None:
    unit = 2.0**-7  # of the numbers from 1 to 2
    mean, returned = mean_returned(1.5, sign * 0.5 * unit, [step * unit], step * unit)
    assert returned == {0.0, sign * units * unit}
    # k is 1: the scale is the width. Three standard errors.
    assert mean == pytest.approx(sign * 0.5 * unit, abs=3 * units * unit / 2 / np.sqrt(DRAWS))


def test_a_unit_that_a_mark_returns_exactly_is_always_marked() -> None:
    """As a number it would be marked at one in 1.3, and be returned whole: 0.77 of it on the average."""
    assert mean_returned(1.5, 2.0**-7, [1.3 * 2.0**-7], 1.3 * 2.0**-7) == (2.0**-7, {2.0**-7})


def test_marks_that_a_decoder_rounds_to_nothing_are_not_made() -> None:
    indices = np.full(100, 7, np.uint8)
    tau, base = (np.full(100, each, np.float32) for each in (2.0**-7, 1.5))
    RoundedLevels(moved_of(tau, base, 0, BFLOAT16), 0.0, 1e-3, 0).place(indices, np.array([1e-3], np.float32))
    assert not indices.any()


def test_where_marks_begin_is_relative_to_what_is_returned() -> None:
    """From 0.25 to 0.75 of the width they get certain; returned are two units, so from half a unit to one and a half."""
    unit = 2.0**-7
    for size, share in ((0.4, 0.0), (1.0, 0.5), (1.6, 1.0)):
        mean, _ = mean_returned(1.5, size * unit, [1.8 * unit], 0.9 * unit, 0.45 * unit)
        assert mean == pytest.approx(2 * unit * share, abs=0.05 * unit)


def test_between_several_levels_what_is_returned_is_right_too() -> None:
    unit = 2.0**-7
    values = [0.7 * unit * i for i in range(1, 8)]  # returned: 1, 1, 2, 3, 4, 4, 5 units
    for size in (0.3, 1.5, 2.5, 3.2, 4.7):
        mean, returned = mean_returned(1.5, size * unit, values, 0.7 * unit)
        assert mean == pytest.approx(size * unit, abs=0.03 * unit)
        assert returned <= {np.floor(size) * unit, np.ceil(size) * unit}


def test_of_levels_that_return_the_same_the_first_is_taken() -> None:
    indices, unit = np.empty(DRAWS, np.uint8), 2.0**-7
    tau, base = np.full(DRAWS, -2 * unit, np.float32), np.full(DRAWS, 1.5, np.float32)
    values = np.array([0.7 * unit * i for i in range(1, 8)], np.float32)
    RoundedLevels(moved_of(tau, base, 0, BFLOAT16), 0.0, 0.7 * unit, 5).place(indices, values)
    assert set(indices.tolist()) <= {7 + 1, 7 + 3}  # never the second, which returns a unit as the first does


@pytest.mark.parametrize("bits", [2, 8])
def test_symbols_of_what_moved_lie_where_it_was(bits: int) -> None:
    tau = np.array([0.0, 1, 0, 0, -0.0, -2, 3, 0, 0, 4], np.float32)
    moved = moved_of(tau, np.arange(10, dtype=np.float32), 5, BFLOAT16)
    assert (moved.n, moved.start, moved.places.tolist()) == (10, 5, [1, 5, 6, 9])
    assert (moved.tau.tolist(), moved.base.tolist()) == ([1, -2, 3, 4], [1, 5, 6, 9])
    out = scattered(np.array([1, 2, 0, 1], np.uint8), moved.places, moved.n, bits)
    symbols = reference.unpack(out, "signed", 10) if bits == 2 else out
    assert symbols.tolist() == [0, 1, 0, 0, 0, 2, 0, 0, 0, 1]


@pytest.mark.skipif(library.chosen() is None, reason="needs the native library")
@settings(max_examples=examples(60), deadline=None)
@given(
    st.sampled_from([1, 3, 1023, 1025, 4099]),
    st.sampled_from([BFLOAT16, FLOAT16]),
    st.sampled_from([1, 2, 7]),
    st.sampled_from([1e-30, 1e-3, 0.02, 3.0, 1e30]),
    st.sampled_from([0.0, 0.15]),
    st.integers(0, 2**32 - 1),
)
def test_the_native_library_places_alike(n: int, form: int, count: int, width: float, foot: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rounded(rng.standard_normal(n).astype(np.float32), form)
    steps = rng.standard_normal(n) * 2.0 ** rng.integers(-20, 2, n) * rng.integers(0, 2, n)
    tau = rounded((base + steps).astype(np.float32), form) - base
    moved = moved_of(tau, base, seed % 1000, form)
    levels = RoundedLevels(moved, foot * width, (1 - 2 * foot) * width, seed)
    values = (np.arange(1, count + 1) * width * 1.1).astype(np.float32)
    found, due = (np.empty(len(moved.tau), np.uint8) for _ in range(2))
    kept = levels.place(found, values)
    with pytest.MonkeyPatch.context() as patch:
        without_kernels(patch)
        assert np.array_equal(levels.place(due, values), kept, equal_nan=True)
    assert np.array_equal(found, due)
    table = np.concatenate([np.zeros(1, np.float32), values, -values])
    np.testing.assert_array_equal(agreement_of_levels(moved.tau, table, found, moved.base, form), kept)
