"""Numbers with a known dither: every native variant against the reference, bit for bit, within its memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from tallstore.kernels.known_dither import (
    BINS,
    CLASSES,
    EXPONENT,
    RUN,
    Numbers,
    count_bins,
    pack_numbers,
    pick,
    put_back,
    take_out,
    unpack_numbers,
)
from tallstore.kernels.place_hash import DRAWN, drawn_at
from tallstore.kernels.reference import Bytes, pack

SIZES = (0, 1, 3, 4, 7, 8, 15, 16, 63, 64, 65, 128, 1000, 1024, 4097, 20001)
"""Around bytes, words and blocks of the kernels."""
FIRST = (0, 77, 0xFFFFFFC0)
FORMS = ((12, 16), (0, 1), (24, 1), (23, 2), (20, 16), (20, 7), (19, 16), (16, 3), (22, 3))
"""shift, classes"""


def numbers_of(n: int, most: int = 127, share: float = 0.3, seed: int = 0) -> Numbers:
    rng = np.random.default_rng(n + seed)
    return (rng.integers(-most, most + 1, n) * (rng.random(n) < share)).astype(np.int8)


def live_of(n: int, block: int, seed: int = 0) -> Bytes:
    """Flags of blocks; nothing is behind the last one."""
    return np.packbits(np.random.default_rng(n + seed).random(-(-n >> block)) < 0.6, bitorder="little")


def lives(n: int) -> list[tuple[Bytes, int]]:
    return [(np.zeros(0, np.uint8), 0), *((live_of(n, block), block) for block in (6, 7, 10, 24))]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("native")
def test_numbers_are_packed_and_unpacked_as_the_reference_does(n: int) -> None:
    for share in (0.0, 0.1, 1.0):
        numbers = numbers_of(n, 1, share)
        packed = pack_numbers(numbers)
        assert np.array_equal(packed, pack_numbers.reference(numbers))
        assert np.array_equal(packed, pack(np.where(numbers < 0, 2, numbers).astype(np.uint8), "signed"))
        assert np.array_equal(unpack_numbers(packed, n), numbers)
        assert np.array_equal(unpack_numbers.reference(packed, n), numbers)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("native")
def test_bins_are_counted_as_the_reference_does(n: int) -> None:
    for first in FIRST:
        for one_in in (1, 3, 16):
            numbers = numbers_of(n)
            found = count_bins(numbers, first, one_in)
            assert np.array_equal(found, count_bins.reference(numbers, first, one_in))
            assert len(found) == BINS
        assert count_bins(numbers, first, 1).sum() == np.count_nonzero(numbers)


def test_a_run_of_every_so_many_is_counted() -> None:
    numbers = np.ones(5 * RUN, np.int8)
    assert count_bins(numbers, 5, 3).sum() == 2 * RUN
    assert count_bins.reference(numbers, 5, 3).sum() == 2 * RUN


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("native")
def test_what_is_coded_is_what_the_reference_codes(n: int) -> None:
    for first in FIRST:
        for shift, classes in FORMS:
            for live, block in lives(n):
                bits, words = pick(n, first, shift, classes, live, block)
                wanted, right = pick.reference(n, first, shift, classes, live, block)
                assert np.array_equal(bits, wanted)
                assert np.array_equal(words, right)
                numbers = numbers_of(n, seed=shift)
                after, rest = take_out(numbers, bits, words)
                expected = take_out.reference(numbers, bits, words)
                assert np.array_equal(after, expected[0])
                assert np.array_equal(rest, expected[1])
                back, again = rest.copy(), rest.copy()
                assert put_back(back, bits, words, after, 127)
                assert put_back.reference(again, bits, words, after, 127)
                assert np.array_equal(back, numbers)
                assert np.array_equal(again, numbers)


def test_the_reference_codes_the_first_classes_of_live_blocks() -> None:
    n, first = 700, 0xFFFFFF00
    drawn = drawn_at(np.arange(n, dtype=np.uint32), first)
    live = np.array([0b1010], np.uint8)
    bits, words = pick.reference(n, first, 20, 5, live, 8)
    coded = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    assert coded.tolist() == [i for i in range(n) if drawn[i] < 5 << 20 and i >> 8 in {1, 3}]
    assert words.tolist() == [((int(drawn[i]) >> 20) + 1) << EXPONENT for i in coded]
    assert words.max() <= CLASSES << EXPONENT
    everything, every = pick.reference(n, first, DRAWN, 1, np.zeros(0, np.uint8), 0)
    assert (len(every), set(every.tolist())) == (n, {1 << EXPONENT})
    assert np.unpackbits(everything).sum() == n


@pytest.mark.parametrize("n", [1, 64, 65, 1000])
@pytest.mark.usefixtures("native")
def test_what_is_too_large_or_there_twice_is_found_wherever_it_is(n: int) -> None:
    bits, words = pick(n, 5, 20, 9, np.zeros(0, np.uint8), 0)
    coded = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:n])
    rest = np.zeros(n, np.int8)
    for put in (put_back, put_back.reference):
        assert put(rest.copy(), bits, words, words, 0)
        for at in range(len(coded)):
            for by in (1, -1, 128, -128, 256, 0x7FFF, -0x8000):
                after = words.copy()
                after[at] += np.uint16(by % 65536)
                for most in (0, 1, 127):
                    assert put(rest.copy(), bits, words, after, most) == (abs(by) <= most)
            for there in (1, -1):
                twice = rest.copy()
                twice[coded[at]] = there
                assert not put(twice, bits, words, words, 127), "whatever its own number is"


@settings(max_examples=examples(100), deadline=None)
@given(
    st.integers(0, 700), st.integers(0, 2**32 - 1), st.integers(0, DRAWN), st.integers(1, CLASSES), st.integers(0, 24)
)
def test_any_form_is_the_reference(n: int, first: int, shift: int, classes: int, block: int) -> None:
    live = live_of(n, block) if block >= 6 else np.zeros(0, np.uint8)
    found, wanted = (each(n, first, shift, classes, live, block) for each in (pick, pick.reference))
    assert np.array_equal(found[0], wanted[0])
    assert np.array_equal(found[1], wanted[1])
