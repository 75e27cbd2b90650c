"""Codec dare: every native variant against the reference, bit for bit; shares as they should be, and a mean without bias."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples, without_kernels

from tallstore.codecs.dare import DareCodec
from tallstore.codecs.lattice import LatticeCodec
from tallstore.codecs.lattice_model import lowest
from tallstore.errors import FormatError
from tallstore.kernels import dare as reference
from tallstore.kernels import dare_fast
from tallstore.kernels.dare import NOTHING, TYPES, KeptElements, as_float, share_of, thresholds
from tallstore.kernels.lattice import LATTICES, LEVELS, Bytes, Words
from tallstore.kernels.place_hash import DRAWN, drawn_at, first_of

CODEC = DareCodec()
SIZES = (1, 7, 40, 1000, 4097, 20001)
"""Around blocks of the kernels."""
SOME = np.array([255, 60, 40, 33, 31, 24, 23, 17, 16, 13, 9, 8, 5, 1, 0, 192], np.uint8)
ALL, NONE = np.zeros(LEVELS, np.uint8), np.full(LEVELS, NOTHING, np.uint8)


def anything(dtype: str, n: int, seed: int = 0) -> Words:
    """Any bits."""
    return np.random.default_rng(n + seed).integers(0, 1 << 16, n, dtype=np.uint64).astype(LATTICES[dtype].word)


def weights(dtype: str, n: int, seed: int = 0) -> Words:
    """Numbers as weights are."""
    values = (np.random.default_rng(n + seed).standard_normal(n) * 0.05).astype(np.float32)
    return values.astype("<f2").view("<u2") if dtype == "F16" else (values.view(np.uint32) >> 16).astype(np.uint16)


def tuned(dtype: str, base: Words, seed: int = 0, most: int = 3) -> Words:
    """A few units beside."""
    lattice = LATTICES[dtype]
    steps = np.random.default_rng(len(base) + seed).integers(-most, most + 1, len(base)).astype(lattice.word)
    return lattice.turned(lattice.turned(base) + steps)


def back(dtype: str, base: Words, after: Words, low: int, rates: Bytes, first: int) -> tuple[int, Words]:
    """The mode that it is coded in, and what comes back."""
    coded = CODEC.encode(after.view(np.uint8), base.view(np.uint8), dtype, low, rates, first)
    out = base.copy()
    CODEC.decode(coded, out.view(np.uint8), dtype)
    return coded[0], out


def test_thresholds_are_shares_by_eighths_of_an_octave() -> None:
    rates = np.arange(256, dtype=np.uint8)
    found = thresholds(rates)
    assert found[:8].tolist() == [16777216, 15384775, 14107901, 12937002, 11863283, 10878679, 9975792, 9147842]
    assert found[0] == 1 << DRAWN, "all are kept"
    assert found[::8][:25].tolist() == [1 << 24 >> step for step in range(24)] + [0]
    assert found[NOTHING - 1] == 1
    assert not found[NOTHING:].any()
    assert (np.diff(found[:NOTHING].astype(np.int64)) <= 0).all()
    assert share_of(rates)[:100] == pytest.approx(2.0 ** -(rates[:100] / 8), rel=1e-3)


def test_what_is_drawn_is_even_and_counts_on_from_chunk_to_chunk() -> None:
    seed, n = 0x12345678, 1 << 18
    drawn = drawn_at(np.arange(n, dtype=np.uint32), first_of(0, seed))
    assert drawn.max() < 1 << DRAWN
    assert np.bincount(drawn >> 20, minlength=16) == pytest.approx(n / 16, rel=0.04)
    later = drawn_at(np.arange(n - 1000, dtype=np.uint32), first_of(1000, seed))
    assert np.array_equal(later, drawn[1000:])
    assert first_of(1 << 32, seed) != first_of(0, seed)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_every_variant_is_the_reference(dtype: str, n: int) -> None:
    """On any bits: NaN, infinite, subnormal and overflowing, too."""
    lattice = LATTICES[dtype]
    for base, after in (
        (anything(dtype, n), anything(dtype, n, 1)),
        (weights(dtype, n), tuned(dtype, weights(dtype, n))),
    ):
        for low in (0, lowest(lattice, base), lattice.mask):
            for rates in (SOME, ALL, NONE, np.full(LEVELS, NOTHING - 1, np.uint8), np.roll(SOME, 7)):
                for first in (0, 0xFFFFFF00):
                    wanted = reference.select(lattice, base, low, first, rates)
                    kept, words = dare_fast.select(lattice, base, low, first, rates)
                    assert np.array_equal(wanted.places, kept.places)
                    assert np.array_equal(wanted.times, kept.times)
                    assert np.array_equal(base[wanted.places], words)
                    left, right = base.copy(), base.copy()
                    reference.rescale(dtype, left, wanted, after[wanted.places])
                    dare_fast.rescale(dtype, right, kept, after[wanted.places])
                    assert np.array_equal(left, right)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_any_number_of_times(dtype: str) -> None:
    """As often as nothing is ever drawn for."""
    n = 5000
    base, after = anything(dtype, n, 2), anything(dtype, n, 3)
    times = np.random.default_rng(4).integers(1, 1 << 24, n, dtype=np.uint32, endpoint=True)
    times[::3] = np.random.default_rng(5).integers(1, 4, len(times[::3]))
    kept = KeptElements(np.arange(n, dtype=np.uint32), times)
    left, right = base.copy(), base.copy()
    reference.rescale(dtype, left, kept, after)
    dare_fast.rescale(dtype, right, kept, after)
    assert np.array_equal(left, right)


@pytest.mark.parametrize("dtype", TYPES)
def test_it_is_coded_in_the_same_bytes_with_kernels_and_without(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lattice, base = LATTICES[dtype], weights(dtype, 9001)
    after = tuned(dtype, base)
    given = after.view(np.uint8), base.view(np.uint8), dtype, lowest(lattice, base), SOME, 77
    coded = CODEC.encode(*given)
    _, decoded = back(*(dtype, base, after), *given[3:])
    without_kernels(monkeypatch)
    assert CODEC.encode(*given) == coded
    assert np.array_equal(back(*(dtype, base, after), *given[3:])[1], decoded)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.sampled_from(TYPES),
    st.integers(1, 3000),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 255), min_size=LEVELS, max_size=LEVELS),
    st.integers(0, 31),
    st.integers(0, 1 << 20),
)
def test_what_is_kept_moved_by_whole_changes(
    dtype: str, n: int, first: int, rates: list[int], low: int, seed: int
) -> None:
    """Every element is the base's, or that with its change a whole number of times, near 1 by the share."""
    lattice, base = LATTICES[dtype], weights(dtype, n, seed)
    after = tuned(dtype, base, seed)
    told = np.array(rates, np.uint8)
    mode, out = back(dtype, base, after, low, told, first)
    if not mode:
        assert np.array_equal(out, after)
        return
    share = thresholds(told)[lattice.levels(base, low)]
    drawn = drawn_at(np.arange(n, dtype=np.uint32), first)
    dropped = drawn >= share
    assert np.array_equal(out[dropped], base[dropped])
    times = (1 << 24) // np.maximum(share, 1)
    times = times + (drawn < (1 << 24) % np.maximum(share, 1))
    start, stop = (as_float(each, dtype).astype(np.float64) for each in (base, after))
    exact = start + times * (stop - start)
    unit = 2.0 ** -(lattice.shift + 1)
    least = 2.0**-25 if dtype == "F16" else 0.0
    found = as_float(out, dtype).astype(np.float64)
    assert (np.abs(found - exact)[~dropped] <= (unit * np.abs(exact) * 1.001 + least)[~dropped]).all()
    assert np.array_equal(out[~dropped & (share == 1 << 24)], after[~dropped & (share == 1 << 24)])


@settings(max_examples=examples(40), deadline=None)
@given(st.sampled_from(TYPES), st.integers(1, 2000), st.integers(0, 2**32 - 1), st.integers(0, 1 << 20))
def test_a_rate_of_0_keeps_every_bit(dtype: str, n: int, first: int, seed: int) -> None:
    base, after = anything(dtype, n, seed), anything(dtype, n, seed + 1)
    assert np.array_equal(back(dtype, base, after, 0, ALL, first)[1], after)


@pytest.mark.parametrize("rate", [1, 5, 8, 13, 20, 32])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_mean_of_many_draws_is_the_task(dtype: str, rate: int) -> None:
    """Numbers that no rounding is needed of: the mean of τ is within its error, and so is its variance."""
    n, draws = 4000, 400
    one = np.array([1.5], np.float32)
    base = np.full(n, one.astype("<f2").view("<u2")[0] if dtype == "F16" else one.view(np.uint32)[0] >> 16, np.uint16)
    after = base + np.uint16(1)
    unit = float(as_float(after[:1], dtype)[0] - one[0])
    rates = np.full(LEVELS, rate, np.uint8)
    times = np.zeros((draws, n))
    for seed in range(draws):
        mode, out = back(dtype, base, after, LATTICES[dtype].mask // 2, rates, first_of(0, seed))
        assert mode == 1
        times[seed] = (as_float(out, dtype) - one) / unit
    assert np.array_equal(times, np.rint(times))
    share = float(share_of(rates)[0])
    fraction = 1 / share % 1
    variance = 1 / share - 1 + share * fraction * (1 - fraction)
    assert times.mean() == pytest.approx(1, abs=5 * (variance / times.size) ** 0.5)
    assert times.var() == pytest.approx(variance, rel=0.05)
    assert np.abs(times.mean(0) - 1).max() < 7 * (variance / draws) ** 0.5, "of every element by itself"


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_safe_is_coded_without_loss(dtype: str) -> None:
    """NaN, infinities, numbers that would overflow, subnormal changes, a sign of 0: on either side, bit for bit."""
    lattice, n = LATTICES[dtype], 600
    base = weights(dtype, n)
    after = tuned(dtype, base)
    rates, low = np.full(LEVELS, 24, np.uint8), lowest(lattice, base)
    places = np.flatnonzero(drawn_at(np.arange(n, dtype=np.uint32), 3) < thresholds(rates)[0])
    assert back(dtype, base, after, low, rates, 3)[0] == 1
    infinite = lattice.mask << lattice.shift
    odd = [(infinite, 0x3C00), (0x3C00, infinite), (infinite | 1, 0x3C00), (0x3C00, infinite | 0x8001)]
    odd += [(infinite - 2, infinite - 1), (0x8000, 0), (0, 0x8000)]
    odd += [(0, 1), (1, 2), (0x8001, 1)] if dtype == "BF16" else []
    for before, own in odd:
        for place in places[:2]:
            spoilt, moved = base.copy(), after.copy()
            spoilt[place], moved[place] = before, own
            mode, out = back(dtype, spoilt, moved, low, rates, 3)
            assert (mode, np.array_equal(out, moved)) == (0, True), (hex(before), hex(own))
    dropped = int(np.setdiff1d(np.arange(n), places)[0])
    for before, own in odd[:4]:
        spoilt, moved = base.copy(), after.copy()
        spoilt[dropped], moved[dropped] = before, own
        assert back(dtype, spoilt, moved, low, rates, 3)[0] == 0, "what is infinite is not dropped either"


def test_a_zero_with_a_sign_stays_where_it_did_not_move() -> None:
    base = weights("BF16", 600)
    base[::7] = 0x8000
    after = tuned("BF16", base, most=1)
    after[::7] = 0x8000
    mode, out = back("BF16", base, after, lowest(LATTICES["BF16"], base), SOME, 3)
    assert mode == 1
    assert (out[::7] == 0x8000).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_subnormal_numbers_taken_for_0_change_nothing(dtype: str) -> None:
    """What is written is far from them, or is not computed with: a setting of the processor's gives the same bits."""
    lattice, base = LATTICES[dtype], weights(dtype, 4000)
    after = tuned(dtype, base)
    base[::50], after[::50] = 3, 3
    base[25::50], after[25::50] = 5, after[25] if dtype == "BF16" else 7
    low = lowest(lattice, base)
    modes = []
    for rates in (SOME, np.full(LEVELS, 24, np.uint8)):
        mode, wanted = back(dtype, base, after, low, rates, 3)
        modes.append(mode)
        torch.set_flush_denormal(True)
        try:
            assert np.array_equal(back(dtype, base, after, low, rates, 3)[1], wanted)
        finally:
            torch.set_flush_denormal(False)
    assert modes == [1, 1]


def test_fewer_are_kept_in_fewer_bytes() -> None:
    base = weights("BF16", 1 << 16)
    after = tuned("BF16", base)
    low, given = lowest(LATTICES["BF16"], base), (after.view(np.uint8), base.view(np.uint8), "BF16")
    sizes = [len(CODEC.encode(*given, low, np.full(LEVELS, rate, np.uint8), 1)) for rate in (0, 8, 16, 24, 32)]
    assert sizes[0] <= len(LatticeCodec().encode(*given)) + 22
    for before, now in pairwise(sizes):
        assert now == pytest.approx(before / 2, rel=0.1)


def test_other_types_are_refused() -> None:
    coded = CODEC.encode(*(weights("BF16", 40).view(np.uint8),) * 2, "BF16", 100, ALL, 0)
    for dtype in ("F32", "F8_E4M3", "U16"):
        with pytest.raises(FormatError, match=f"BF16 and F16, not for {dtype}"):
            CODEC.decode(coded, np.zeros(80, np.uint8), dtype)
