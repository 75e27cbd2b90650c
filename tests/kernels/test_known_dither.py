"""Numbers with a known dither: every native variant against the reference, bit for bit, within its memory."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from tallstore.kernels.known_dither import (
    BINS,
    BLOCK,
    CLASSES,
    EXPONENT,
    RUN,
    Numbers,
    choose_classes,
    count_bins,
    pack_numbers,
    pick,
    put_back,
    take_marks,
    take_numbers,
    unpack_numbers,
)
from tallstore.kernels.lattice import DIRECT, LATTICES, prepare
from tallstore.kernels.lattice_fast import SPARE
from tallstore.kernels.native import known_dither as native
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
            numbers = numbers_of(n, 1)
            packed = pack_numbers(numbers)
            found = count_bins(packed, n, first, one_in)
            assert np.array_equal(found, count_bins.reference(packed, n, first, one_in))
            assert len(found) == BINS
        assert count_bins(packed, n, first, 1).sum() == np.count_nonzero(numbers)


def test_a_run_of_every_so_many_is_counted() -> None:
    packed = pack_numbers(np.ones(5 * RUN, np.int8))
    assert count_bins(packed, 5 * RUN, 5, 3).sum() == 2 * RUN
    assert count_bins.reference(packed, 5 * RUN, 5, 3).sum() == 2 * RUN


@pytest.mark.usefixtures("native")
def test_as_much_of_the_dither_is_coded_as_the_reference_chooses() -> None:
    """Of counts of all shapes, whole and scaled, down to none, and of few elements."""
    rng, bins, chosen = np.random.default_rng(3), np.arange(BINS) / BINS, set()
    for _ in range(examples(1000)):
        among = int(2 ** rng.uniform(0, 24))
        shape = (bins < rng.random(), np.exp(-bins * rng.uniform(0, 300)), (1 - bins) ** rng.uniform(0, 9))[
            rng.integers(3)
        ]
        counts = rng.poisson(among / BINS * rng.choice((0, 0.01, 0.3, 1)) * shape).astype(np.float64)
        counts *= rng.choice((1.0, 1 << 20, 17.003)) if rng.random() < 0.5 else 1.0
        found = choose_classes(counts, among)
        assert found == choose_classes.reference(counts, among)
        chosen.add(found)
    assert choose_classes(np.zeros(BINS), 0) == choose_classes.reference(np.zeros(BINS), 0)
    assert len(chosen) > 20


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
                at = places(bits, n)
                after, rest = words + numbers[at].astype(np.uint16), np.where(at, np.int8(0), numbers)
                back, again = rest.copy(), rest.copy()
                assert put_back(back, bits, words, after, 127)
                assert put_back.reference(again, bits, words, after, 127)
                assert np.array_equal(back, numbers)
                assert np.array_equal(again, numbers)


def places(bits: Bytes, n: int) -> npt.NDArray[np.bool_]:
    """Whether each element is coded."""
    return np.unpackbits(bits, count=n, bitorder="little").view(bool)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("native")
def test_what_is_taken_out_is_what_lattice_makes_of_words(n: int) -> None:
    """Of the words that a decoder begins with, moved by the numbers; the others stay where they are."""
    lattice = LATTICES["BF16"]
    for first, live in itertools.product(FIRST, (np.zeros(0, np.uint8), live_of(n, BLOCK))):
        for low, (shift, classes) in itertools.product((0, 1), FORMS):
            marks, numbers = numbers_of(n, 1, seed=shift), numbers_of(n, DIRECT - 1)
            packed = pack_numbers(marks)
            bits, words = pick.reference(n, first, shift, classes, live, BLOCK)
            at = places(bits, n)
            for take in (take_marks, take_marks.reference):
                symbols, levels, rest = take(packed, n, first, shift, classes, low, live)
                wanted = prepare(lattice, words + marks[at].astype(np.uint16), words, low)
                assert np.array_equal(symbols, wanted.symbols)
                assert np.array_equal(levels, wanted.levels)
                assert np.array_equal(rest, pack_numbers(np.where(at, np.int8(0), marks)))
            for each in (take_numbers, take_numbers.reference):
                symbols, levels = each(numbers, first, shift, classes, low, live)
                wanted = prepare(lattice, words + numbers[at].astype(np.uint16), words, low)
                assert np.array_equal(symbols, wanted.symbols)
                assert np.array_equal(levels, wanted.levels)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("native")
def test_taking_out_stays_within_its_memory(n: int) -> None:
    """Up to `SPARE` elements behind the last are written, and of what is left as many bytes as it takes."""
    symbols, levels, rest = (np.full(size + 64, 0x5A, np.uint8) for size in (n + SPARE, n + SPARE, -(-n // 4)))
    packed, numbers = pack_numbers(numbers_of(n, 1)), numbers_of(n)
    kernels, out = native._kernels(), [each.ctypes.data for each in (symbols, levels, rest)]
    assert kernels.take_out(*out, packed.ctypes.data, None, n, 77, 20, CLASSES, 1, None) == n
    assert kernels.take_out(*out[:2], None, None, numbers.ctypes.data, n, 77, 20, CLASSES, 1, None) == n
    for each in (symbols, levels, rest):
        assert (each[-64:] == 0x5A).all()


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
    packed, live = pack_numbers(numbers_of(n, 1, seed=shift)), live_of(n, BLOCK) if block % 2 else live[:0]
    taken, right = (each(packed, n, first, shift, classes, n % 2, live) for each in (take_marks, take_marks.reference))
    for one, other in zip(taken, right, strict=True):
        assert np.array_equal(one, other)
