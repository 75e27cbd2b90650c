"""Codec dare: every native variant against the reference, bit for bit; shares as they should be, and a mean without bias."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

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
from tallstore.kernels.conversion import from_bf16, to_bf16
from tallstore.kernels.dare import (
    MOST,
    SHARES,
    TYPES,
    Sampling,
    as_float,
    as_words,
    class_factors,
    starts,
    steps,
    thresholds,
    units,
)
from tallstore.kernels.lattice import LATTICES, LEVELS, Bytes, Words
from tallstore.kernels.place_hash import DRAWN, drawn_at, first_of
from tallstore.tensors import as_bytes

CODEC = DareCodec()
SIZES = (1, 7, 40, 1000, 4097, 20001)
"""Around blocks of the kernels."""
ALL = np.full(LEVELS, SHARES - 1, np.uint16)
KINDS = ("all", "some", "odd", "least")


def anything(dtype: str, n: int, seed: int = 0) -> Words:
    """Any bits."""
    lattice = LATTICES[dtype]
    return np.random.default_rng(n + seed).integers(0, 1 << lattice.bits, n, dtype=np.uint64).astype(lattice.word)


def weights(dtype: str, n: int, seed: int = 0) -> Words:
    """Numbers as weights are."""
    values = (np.random.default_rng(n + seed).standard_normal(n) * 0.05).astype(np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype("<f2").view("<u2") if dtype == "F16" else values.view("<u4")


def tuned(dtype: str, base: Words, seed: int = 0, most: int = 3) -> Words:
    """A few units beside."""
    lattice = LATTICES[dtype]
    steps = np.random.default_rng(len(base) + seed).integers(-most, most + 1, len(base)).astype(lattice.word)
    return lattice.turned(lattice.turned(base) + steps)


def sampling_of(kind: str, dtype: str, low: int, seed: int = 0) -> Sampling:
    """Of all, of some as they are chosen, of anything, and of next to none."""
    rng, unit = np.random.default_rng(seed), units(dtype, low).astype(np.float32)
    if kind == "odd":
        shares, widths = rng.integers(0, SHARES, LEVELS, np.uint16), rng.integers(0, 0x7F80, LEVELS, np.uint16)
        return Sampling(low, shares, widths)
    share, width = {"all": (SHARES, 1), "some": (SHARES // 4, 3), "least": (1, 256)}[kind]
    shares = np.full(LEVELS, share - 1, np.uint16)
    if kind == "some":
        shares[1::2] = rng.integers(SHARES // 8, SHARES, len(shares[1::2]))
    with np.errstate(over="ignore"):
        return Sampling(low, shares, np.minimum(to_bf16(unit * np.float32(width)), np.uint16(0x7F7F)))


def contexts_of(seed: int) -> Bytes:
    """Some that a reader takes."""
    down = np.random.default_rng(seed).integers(0, 5, LEVELS, dtype=np.uint8)
    return (15 - (15 >> down)) * np.uint8(seed % 2) + (down << np.uint8(4))


def back(dtype: str, base: Words, after: Words, sampling: Sampling, first: int) -> tuple[int, Words]:
    """The mode that it is coded in, and what comes back: what the encoder says comes back, and the base stays."""
    before = base.copy()
    coded, said = CODEC.coded(after.view(np.uint8), base.view(np.uint8), dtype, sampling, first)
    out = base.copy()
    CODEC.decode(coded, out.view(np.uint8), dtype)
    assert np.array_equal(said, out)
    assert np.array_equal(base, before)
    return coded[0], out


def test_thresholds_and_classes_are_those_of_shares() -> None:
    shares = np.array([0, 1, 2, 16383, 43690, 65534, 65535], np.uint16)
    below = thresholds(shares)
    assert below.tolist() == [256, 512, 768, 1 << 22, 43691 << 8, (1 << 24) - 256, 1 << DRAWN]
    drawn = (np.arange(SHARES, dtype=np.uint32)[None] < below[:, None] >> 8) * np.arange(SHARES, dtype=np.uint32)
    classes = drawn * class_factors(shares)[:, None] >> 16
    assert classes.max(1).tolist()[2:] == [10, 15, 15, 15, 15]
    assert (np.bincount(classes[-1]) == SHARES // 16).all(), "sixteenths"


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
            for seed, kind in enumerate(KINDS * 2):
                for first in (0, 0xFFFFFF00):
                    sampling, contexts = sampling_of(kind, dtype, low, seed), contexts_of(seed)
                    sampling = sampling._replace(nearest=seed >= len(KINDS))
                    wanted = reference.select(lattice, base, sampling, contexts, first)
                    kept, words = dare_fast.select(lattice, base, sampling, contexts, first)
                    assert np.array_equal(wanted.places, kept.places)
                    assert np.array_equal(wanted.tags, kept.tags)
                    assert np.array_equal(starts(wanted.tags), words)
                    given = dtype, base, after, wanted, sampling, first
                    assert_same(reference.multiples(*given), dare_fast.multiples(*given))
                    for coded in (anything("BF16", len(words), 2), words, words + np.uint16(1)):
                        left, right = base.copy(), base.copy()
                        reference.apply(dtype, left, wanted, coded, sampling)
                        dare_fast.apply(dtype, right, kept, coded, sampling)
                        assert np.array_equal(left, right)


def assert_same(left: Any, right: Any) -> None:
    """Both nothing, or the same."""
    assert (left is None) == (right is None)
    assert left is None or np.array_equal(left, right)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_multiples_of_single_elements_are_the_reference(dtype: str) -> None:
    """Where all are judged together, one that is not safe hides what becomes of the others."""
    lattice, n = LATTICES[dtype], 1500
    rng, found = np.random.default_rng(6), []
    for spread in (3, 200, 40000):
        base, after = weights(dtype, n), tuned(dtype, weights(dtype, n), most=spread)
        for at in range(0, n, 3):
            sampling = sampling_of("some", dtype, lowest(lattice, base), at)
            widths = sampling.widths + rng.integers(-9, 5, LEVELS).astype(np.uint16) * np.uint16(1 << 7)
            given = (
                base[at : at + 3],
                after[at : at + 3],
                sampling._replace(widths=widths.astype(np.uint16), shares=ALL, nearest=bool(at % 2)),
            )
            kept = reference.select(lattice, given[0], given[2], np.zeros(LEVELS, np.uint8), 0)
            wanted = reference.multiples(dtype, given[0], given[1], kept, given[2], at)
            assert_same(wanted, dare_fast.multiples(dtype, given[0], given[1], kept, given[2], at))
            found.append(wanted is None)
    assert 0 < sum(found) < len(found)


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_it_is_coded_in_the_same_bytes_with_kernels_and_without(
    dtype: str, nearest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lattice, base = LATTICES[dtype], weights(dtype, 9001)
    after, sampling = tuned(dtype, base), sampling_of("some", dtype, lowest(lattice, base))
    sampling = sampling._replace(nearest=nearest)
    coded = CODEC.encode(after.view(np.uint8), base.view(np.uint8), dtype, sampling, 77)
    mode, decoded = back(dtype, base, after, sampling, 77)
    assert mode == 2
    without_kernels(monkeypatch)
    assert CODEC.encode(after.view(np.uint8), base.view(np.uint8), dtype, sampling, 77) == coded
    assert np.array_equal(back(dtype, base, after, sampling, 77)[1], decoded)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.sampled_from(TYPES),
    st.integers(1, 3000),
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 65535), st.integers(-2, 12), st.integers(0, 127)), min_size=16, max_size=16),
    st.integers(0, 31),
    st.integers(0, 1 << 20),
    st.booleans(),
)
def test_what_is_kept_is_rounded_to_the_multiples_beside_it(
    dtype: str, n: int, first: int, levels: list[tuple[int, int, int]], low: int, seed: int, nearest: bool
) -> None:
    """Every element is the base's, or that with a multiple of the width, which is next to its change by the share."""
    lattice, base = LATTICES[dtype], weights(dtype, n, seed)
    after, low = tuned(dtype, base, seed), low if dtype == "F16" else low + lowest(lattice, base) - 15
    shares = np.array([share for share, *_ in levels], np.uint16)
    part = np.array([2.0**octave * (1 + more / 128) for _, octave, more in levels])
    sampling = Sampling(low, shares, to_bf16((units(dtype, low) * part).astype(np.float32)), nearest)
    mode, out = back(dtype, base, after, sampling, first)
    if not mode:
        assert np.array_equal(out, after)
        return
    level = lattice.levels(base, low)
    dropped = drawn_at(np.arange(n, dtype=np.uint32), first) >= thresholds(shares)[level]
    assert np.array_equal(out[dropped], base[dropped])
    width = from_bf16(sampling.widths)[level].astype(np.float64)
    start, stop, found = (as_float(each, dtype).astype(np.float64) for each in (base, after, out))
    exact = (stop - start) / steps(sampling)[level]
    rounding = 2.0 ** -(lattice.shift + 1) * np.abs(found) * 1.001 + (2.0**-25 if dtype == "F16" else 0.0)
    if (np.abs(exact)[~dropped] > MOST).any():
        return  # widths are others, so that no multiple is too large
    over = np.minimum(*(np.abs(start + times * width - found) for times in (np.floor(exact), np.ceil(exact))))
    assert (over <= rounding)[~dropped].all()
    if nearest:
        over = np.abs(start + np.rint(exact) * width - found)
        assert (over <= rounding)[~dropped & (np.abs(exact) >= 1) & (np.abs(exact) % 1 != 0.5)].all()


@settings(max_examples=examples(40), deadline=None)
@given(st.sampled_from(TYPES), st.integers(1, 2000), st.integers(0, 2**32 - 1), st.integers(0, 1 << 20))
def test_what_anything_turns_into_comes_back_or_is_near(dtype: str, n: int, first: int, seed: int) -> None:
    base, after = anything(dtype, n, seed), anything(dtype, n, seed + 1)
    mode, out = back(dtype, base, after, sampling_of("odd", dtype, 0, seed), first)
    assert mode == 2 or np.array_equal(out, after)


@pytest.mark.parametrize(
    ("share", "width", "moved"), [(1, 1, 1), (4, 1, 1), (4, 3, 1), (3, 2, 5), (64, 96, 3), (2, 9, 20)]
)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_mean_of_many_draws_is_the_task(dtype: str, share: int, width: int, moved: int) -> None:
    """Numbers that no rounding is needed of: the mean of τ is within its error, and so is its variance."""
    n, draws = 4000, 300
    base = np.full(n, as_words(np.array([1.25], np.float32), dtype)[0])
    after = base + base.dtype.type(moved)
    low = LATTICES[dtype].mask // 2
    unit = units(dtype, low)
    shares = np.full(LEVELS, SHARES // share - 1, np.uint16)
    sampling = Sampling(low, shares, to_bf16((unit * width).astype(np.float32)))
    times = np.zeros((draws, n))
    for seed in range(draws):
        mode, out = back(dtype, base, after, sampling, first_of(0, seed))
        assert mode == 2
        times[seed] = (as_float(out, dtype) - 1.25) / unit[0]
    assert np.array_equal(times, np.rint(times))
    part = (int(shares[0]) + 1) / SHARES
    fraction = moved / (width * part) % 1
    variance = moved * moved * (1 / part - 1) + part * width * width * fraction * (1 - fraction)
    assert times.mean() == pytest.approx(moved, abs=5 * (variance / times.size) ** 0.5 + 1e-9)
    assert times.var() == pytest.approx(variance, rel=0.05, abs=1e-9)
    assert np.abs(times.mean(0) - moved).max() <= 7 * (variance / draws) ** 0.5 + 1e-9, "of every element by itself"


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_safe_is_coded_without_loss(dtype: str) -> None:
    """NaN, infinities, numbers that would overflow, subnormal changes, a sign of 0: on either side, bit for bit."""
    lattice, n = LATTICES[dtype], 600
    base = weights(dtype, n)
    after, sampling = tuned(dtype, base), sampling_of("some", dtype, lowest(lattice, base))
    sampling.shares[:] = SHARES // 8
    places = np.flatnonzero(drawn_at(np.arange(n, dtype=np.uint32), 3) < thresholds(sampling.shares)[0])
    assert back(dtype, base, after, sampling, 3)[0] == 2
    infinite, minus = lattice.mask << lattice.shift, 1 << lattice.bits - 1
    some = lattice.mask // 2 << lattice.shift
    odd = [(infinite, some), (some, infinite), (infinite | 1, some), (some, infinite | minus | 1)]
    odd += [(infinite - 2, infinite - 1), (minus, 0), (0, minus)]
    odd += [(0, 1), (1, 2), (minus | 1, 1), (infinite - 1 | minus, infinite - 1)] if dtype != "F16" else []
    for before, own in odd:
        for place in places[:2]:
            spoilt, moved = base.copy(), after.copy()
            spoilt[place], moved[place] = before, own
            mode, out = back(dtype, spoilt, moved, sampling, 3)
            assert (mode, np.array_equal(out, moved)) == (0, True), (hex(before), hex(own))
    dropped = int(np.setdiff1d(np.arange(n), places)[0])
    for before, own in odd[:4]:
        spoilt, moved = base.copy(), after.copy()
        spoilt[dropped], moved[dropped] = before, own
        assert back(dtype, spoilt, moved, sampling, 3)[0] == 0, "what is infinite is not dropped either"


def test_multiples_have_an_end_and_levels_are_widened_to_keep_it() -> None:
    base = weights("BF16", 600)
    after, sampling = tuned("BF16", base, most=2), sampling_of("all", "BF16", lowest(LATTICES["BF16"], base))
    for octaves in (12, 14):
        finer = sampling._replace(widths=sampling.widths - np.uint16(octaves << 7))
        coded = CODEC.encode(after.view(np.uint8), base.view(np.uint8), "BF16", finer, 3)
        assert coded[0] == 2
        widths = np.frombuffer(coded[38:70], "<u2")
        assert (widths >= finer.widths).all()
        assert (widths > finer.widths).any() == (octaves == 14)


def test_a_zero_with_a_sign_stays_where_it_did_not_move() -> None:
    base = weights("BF16", 600)
    base[::7] = 0x8000
    after = tuned("BF16", base, most=1)
    after[::7] = 0x8000
    mode, out = back("BF16", base, after, sampling_of("some", "BF16", lowest(LATTICES["BF16"], base)), 3)
    assert mode == 2
    assert (out[::7] == 0x8000).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_subnormal_numbers_taken_for_0_change_nothing(dtype: str) -> None:
    """What is written is far from them, or is not computed with: a setting of the processor's gives the same bits."""
    lattice, base = LATTICES[dtype], weights(dtype, 4000)
    after = tuned(dtype, base)
    base[::50], after[::50] = 3, 3
    base[25::50], after[25::50] = 5, 7 if dtype == "F16" else after[25]
    for kind in ("some", "all"):
        sampling = sampling_of(kind, dtype, lowest(lattice, base))
        if dtype == "F32":  # few of the levels from a subnormal number's on have its weights
            sampling = sampling_of(kind, dtype, lattice.mask)
            sampling.widths[:] = 0x3580
        if dtype == "BF16":
            sampling.widths[0] = 0x3C00
        mode, wanted = back(dtype, base, after, sampling, 3)
        assert mode == 2
        torch.set_flush_denormal(True)
        try:
            assert np.array_equal(back(dtype, base, after, sampling, 3)[1], wanted)
        finally:
            torch.set_flush_denormal(False)


def test_fewer_are_kept_in_fewer_bytes() -> None:
    base = weights("BF16", 1 << 16)
    after, sampling = tuned("BF16", base), sampling_of("all", "BF16", lowest(LATTICES["BF16"], base))
    given, sizes = (after.view(np.uint8), base.view(np.uint8), "BF16"), []
    for octave in range(5):
        fewer = sampling._replace(shares=(sampling.shares + 1 >> octave) - 1, widths=sampling.widths + (octave << 7))
        fewer = fewer._replace(shares=np.full(LEVELS, (SHARES >> octave) - 1, np.uint16))
        sizes.append(len(CODEC.encode(*given, fewer, 1)))
    assert sizes[0] <= 1.01 * len(LatticeCodec().encode(*given)) + 150
    for before, now in pairwise(sizes):
        assert now == pytest.approx(before / 2, rel=0.1)


def test_what_is_known_of_the_draw_is_not_coded() -> None:
    """Of changes that are all of one size, less than a step, next to nothing is left to tell but signs."""
    n = 1 << 18
    base = np.full(n, 0x3F80, np.uint16)
    base[1::2] |= 0x8000
    sampling = Sampling(120, np.full(LEVELS, SHARES - 1, np.uint16), np.full(LEVELS, 0x3D00, np.uint16))
    coded = CODEC.encode((base + np.uint16(1)).view(np.uint8), base.view(np.uint8), "BF16", sampling, 1)
    assert coded[0] == 2
    moved = n / 4
    assert 8 * len(coded) == pytest.approx(moved, rel=0.1)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        *((0, mode, f"mode {mode}") for mode in (1, 4, 255)),
        (6 + 33, 0x80, "width"),
        (6 + 32 + 31, 0x7F, "7FFF"),
        (70, 0x50, "contexts"),
        (85, 0x01, "contexts"),
        (85, 0x2D, "contexts"),
    ],
)
def test_heads_that_say_what_they_must_not_are_refused(at: int, value: int, said: str) -> None:
    sampling = Sampling(100, np.full(LEVELS, 9, np.uint16), np.full(LEVELS, 0xFF, np.uint16))
    coded = bytearray(CODEC.encode(*(weights("BF16", 40).view(np.uint8),) * 2, "BF16", sampling, 0))
    coded[at] = value
    with pytest.raises(FormatError, match=said):
        CODEC.decode(bytes(coded), np.zeros(80, np.uint8), "BF16")


def test_other_types_are_refused() -> None:
    coded = CODEC.encode(*(weights("BF16", 40).view(np.uint8),) * 2, "BF16", sampling_of("all", "BF16", 100), 0)
    for dtype in ("F64", "F8_E4M3", "U16"):
        with pytest.raises(FormatError, match=f"F32, BF16, F16, not for {dtype}"):
            CODEC.decode(coded, np.zeros(80, np.uint8), dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_one_change_far_beyond_what_was_seen_makes_no_chunk_lossless(dtype: str) -> None:
    """Its level becomes wider in that chunk; what is rounded there is right on the average as before."""
    rng = np.random.default_rng(5)
    kind = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    base = torch.from_numpy(rng.standard_normal(1 << 16).astype(np.float32)).to(kind)
    task = base.clone()
    task[7] = base[7] + 64
    low = int(LATTICES[dtype].keys(as_bytes(base).view(LATTICES[dtype].word)).max()) - 15
    widths = np.full(16, to_bf16(np.array([2.0**-13], np.float32))[0], np.uint16)
    sampling = Sampling(low, np.full(16, 65535, np.uint16), widths)
    coded = DareCodec().encode(as_bytes(task), as_bytes(base), dtype, sampling, 5)
    assert coded[0] == 2
    out = as_bytes(base).copy()
    DareCodec().decode(coded, out, dtype)
    moved = torch.from_numpy(out).view(base.dtype)[7].float() - base[7].float()
    assert abs(float(moved) - 64) < 1


def wide_of(share: int, octave: int = -13, *, nearest: bool = False) -> Sampling:
    """As float32 has it: all elements are of level 0."""
    shares, widths = np.full(LEVELS, share - 1, np.uint16), to_bf16(np.full(LEVELS, 2.0**octave, np.float32))
    return Sampling(LATTICES["F32"].mask, shares, widths, nearest)


def spread(n: int, size: float, seed: int = 5) -> tuple[Words, Words]:
    """Elements, and what is up to so far beside them."""
    base = weights("F32", n)
    change = np.random.default_rng(seed).uniform(-size, size, n).astype(np.float32)
    return base, (as_float(base, "F32") + change).view("<u4")


@pytest.mark.parametrize("share", [SHARES, SHARES // 3])
@pytest.mark.usefixtures("native")
def test_beyond_a_step_the_nearest_multiple_is_taken_and_below_it_what_is_drawn(share: int) -> None:
    """A change that lies in the middle goes to the smaller one."""
    n, first = 5000, 77
    base, after = spread(n, 2.0**-9)
    base[:400] = 0
    after[:400] = as_words((np.arange(-200, 200) * 2.0**-14 * share / SHARES).astype(np.float32), "F32")
    dithered, nearest = wide_of(share), wide_of(share, nearest=True)
    kept = reference.select(LATTICES["F32"], base, nearest, np.zeros(LEVELS, np.uint8), first)
    given = "F32", base, after, kept
    found, drawn = dare_fast.multiples(*given, nearest, first), reference.multiples(*given, dithered, first)
    assert found is not None
    assert drawn is not None
    change = as_float(after, "F32")[kept.places] - as_float(base, "F32")[kept.places]
    exact = np.abs(change).astype(np.float64) / steps(nearest)[0]
    due = np.where(exact >= 1, np.ceil(exact - 0.5), np.abs(drawn)) * np.sign(change)
    assert np.array_equal(found, due)
    assert ((exact > 1) & (exact % 1 == 0.5)).sum() > 20 or share < SHARES
    assert (found != drawn).any()


def test_the_nearest_multiple_has_half_of_the_noise_and_the_same_reader() -> None:
    base, after = spread(1 << 16, 2.0**-9)
    left = []
    for nearest in (False, True):
        mode, out = back("F32", base, after, wide_of(SHARES, nearest=nearest), 3)
        assert mode == 2
        left.append(float(np.square(as_float(out, "F32") - as_float(after, "F32"), dtype=np.float64).mean()))
    assert left[0] == pytest.approx(2.0**-26 / 6, rel=0.02)
    assert left[1] == pytest.approx(2.0**-26 * (15 / 16 / 12 + 1 / 16 / 6), rel=0.02), "changes below a step are drawn"


def test_all_elements_of_float32_may_be_of_one_level() -> None:
    """Whatever their exponents are: 0 and the largest ones too. What is drawn is as it is where levels are many."""
    base, after = spread(4000, 2.0**-12)
    base[::9], after[::9] = 0, as_words(np.full(445, 2.0**-13, np.float32), "F32")
    base[1], after[1] = np.array([3e30, 3e30], np.float32).view("<u4")
    sampling = wide_of(SHARES // 2)
    kept = dare_fast.select(LATTICES["F32"], base, sampling, np.full(LEVELS, 64, np.uint8), 3)[0]
    assert not (kept.tags & 15).any()
    one = back("F32", base, after, sampling, 3)
    assert one[0] == 2
    assert np.array_equal(one[1], back("F32", base, after, sampling._replace(low=0), 3)[1]), "equal levels"
