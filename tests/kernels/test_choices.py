"""What choices cost and spoil is the same with the native library and without, to the last bit."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both, examples

from tallstore.kernels.logarithm import log2
from tallstore.kernels.native import choices as native_choices
from tallstore.recipes import rate_distortion
from tallstore.recipes.allocation import allocate
from tallstore.recipes.histogram import BINS, Magnitudes
from tallstore.recipes.rate_distortion import Choices, choices, fine
from tallstore.recipes.steps import steps

pytestmark = pytest.mark.usefixtures("native")

KAPPAS = st.sampled_from([1.0, 1.0 + 2.0**-20, 4.0, 19.0, 1000.0])


@st.composite
def histograms(draw: st.DrawFn) -> Magnitudes:
    """From one bin to many, some of them empty, of few parameters or many; as sampled, perhaps."""
    bins = draw(st.sampled_from([1, 2, 3, 31, 200, 700]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    high = draw(st.sampled_from([1, 3, 50, 10**4, 10**7]))
    counts = rng.integers(0, high + 1, bins) * np.exp(-np.linspace(draw(st.sampled_from([0.0, 3.0, 9.0])), 0, bins))
    counts[rng.random(bins) < draw(st.sampled_from([0.0, 0.3, 0.9]))] = 0
    counts[[0, -1]] = np.maximum(counts[[0, -1]], 1)
    found = Magnitudes(np.floor(counts), draw(st.sampled_from([0, 1, 2500, 3400])), 1.0)
    found.scale(draw(st.sampled_from([1.0, 8.0, 7.9375, 22 / 3])))
    return found


def assert_same(found: Magnitudes, kappa: float) -> None:
    for way in (rate_distortion.hard, rate_distortion.dithered) if found.energy else ():
        quick, slow = both(lambda way=way: way(found, kappa))
        for mine, theirs in zip(quick, slow, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    quick, slow = both(lambda: choices(found, kappa))
    assert list(quick) == list(slow)
    assert quick.ladders.dtype == slow.ladders.dtype
    for bound in (0.4, 1.0):
        quick, slow = both(lambda bound=bound: fine(found, bound))
        assert quick == slow
    for mine, theirs in zip(*both(lambda: steps(found)), strict=True):
        assert [np.asarray(each).tolist() for each in mine] == [np.asarray(each).tolist() for each in theirs]


@settings(max_examples=examples(100), deadline=None)
@given(histograms(), KAPPAS)
def test_choices(found: Magnitudes, kappa: float) -> None:
    assert_same(found, kappa)


@pytest.mark.parametrize("kappa", [1.0, 4.0])
@pytest.mark.parametrize("count", [1.0, 7.0, 8.0, 1e9])
@pytest.mark.parametrize("first", [0, 3200, BINS - 300])
def test_magnitudes_that_are_all_alike(kappa: float, count: float, first: int) -> None:
    found = Magnitudes(np.array([count]), first, 1.0)
    assert_same(found, kappa)
    assert bool(choices(found, kappa)) == (count >= 8 and first > 0)


def test_what_did_not_move_has_no_choices() -> None:
    for kappa in (1.0, 4.0):
        quick, slow = both(lambda kappa=kappa: choices(Magnitudes(), kappa))
        assert list(quick) == list(slow) == []


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 2.0, 2.5, 1e6]), st.sampled_from([0.0, 0.5, 1.0, 3.0, math.inf])),
        max_size=30,
    )
)
def test_hulls_of_few_numbers_often_the_same(offered: list[tuple[float, float]]) -> None:
    bits, harm = (np.array(each, np.float64) for each in (zip(*offered, strict=True) if offered else ((), ())))
    quick, slow = both(lambda: rate_distortion.hull_of(bits, harm).tolist())
    assert quick == slow


def test_logarithms() -> None:
    rng = np.random.default_rng(1)
    near = 1 - 2.0 ** -np.arange(1.0, 54.0)
    values = np.concatenate([rng.random(5000), near, 1 / near, np.exp(rng.uniform(-700, 700, 5000)), [1.0, 0.5, 2.0]])
    found = log2(values)
    np.testing.assert_allclose(found, [math.log2(value) for value in values.tolist()], rtol=1e-15)
    np.testing.assert_array_equal(native_choices.log2(values), found)
    assert log2(np.array([1.0, 0.25, 8.0])).tolist() == [0.0, -2.0, 3.0]


def test_choices_are_a_sequence_that_can_be_sent() -> None:
    found = choices(Magnitudes(np.arange(1.0, 400.0), 3200, 1.0), 4.0)
    assert len(found) > 5
    assert list(pickle.loads(pickle.dumps(found))) == list(found)
    assert list(found[1:3]) == list(found)[1:3]
    assert Choices.only(found[2])[0] == found[2] == list(found)[2]
    assert allocate({"a": found}, {"a": 1.0}, found[-1].bits) == {"a": found[-1]}
    assert allocate({}, {}, 1.0) == {}
