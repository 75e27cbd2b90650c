"""A product of thin matrices, added: every native variant and the reference against whole numbers of 64 bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tallstore.kernels.dare import TYPES
from tallstore.kernels.lattice import LATTICES, Words
from tallstore.kernels.low_rank import LARGEST, MOST_RANK, MOST_SHIFT, LowRank, add_product

KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAN = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}
SCALES = (2.0**-12, 3e-5, 1.0, 2.0**-100, 2.0**-149, 3e38)
"""As they are written, and what no writer should: products that are subnormal, and that overflow."""
SHAPES = (
    (40, 1, 0),
    (101, 3, 2),
    (257, 16, 5),
    (511, 255, 254),
    (800, 257, 1),
    (1500, 600, 300),
    (37, 64, 9),
    (900, 65, 64),
    (900, 127, 1),
    (900, 129, 60),
)
"""Elements, a row's, and those of the first row that are gone: around 64 columns that are worked on at a time."""
ODD = (0, 0x8000, 1, 0x8001, 0x007F, 0x03FF, 0x7C00, 0xFC00, 0x7C01, 0xFE55, 0x7F80, 0xFF80, 0x7F81, 0xFFFF, 0x7F7F)
"""Zeros, subnormal numbers, infinities and NaN of both narrow types, and the largest; of float32 they are its upper bits."""


def anything(dtype: str, n: int, seed: int) -> Words:
    """Any bits, the odd ones among them."""
    rng, bits, word = np.random.default_rng(seed), LATTICES[dtype].bits, LATTICES[dtype].word
    words = rng.integers(0, 1 << bits, n).astype(word)
    odd = np.array(ODD, word)
    if bits > 16:
        odd = np.concatenate([odd << word.type(16), odd << word.type(16) | word.type(0xFFFF), odd])
    words[::3] = np.resize(odd, len(words[::3]))
    return words


def torch_of(dtype: str, words: Words) -> torch.Tensor:
    """As numbers of the type."""
    return torch.from_numpy(words.view(f"i{words.itemsize}")).view(KINDS[dtype])


def words_of(dtype: str, tensor: torch.Tensor) -> Words:
    """And back."""
    word = LATTICES[dtype].word
    found: Words = tensor.view(torch.int16 if word.itemsize == 2 else torch.int32).numpy().view(word).copy()
    return found


def matrix(rank: int, n: int, width: int, gone: int, scale: float, seed: int = 0) -> LowRank:
    """Of any numbers, a quarter of them 0 and some the largest; of the last row and of the last column all are 0."""
    rng = np.random.default_rng([seed, rank, n])
    parts = []
    for count in (-(-(gone + n) // width), width):
        numbers = rng.integers(-LARGEST, LARGEST + 1, (rank, count)) * (rng.random((rank, count)) < 0.75)
        numbers[rng.random((rank, count)) < 0.05] = LARGEST
        if count > 1:
            numbers[:, -1] = 0
        parts.append(numbers.astype(np.int8))
    shifts = rng.integers(0, MOST_SHIFT + 1, rank).astype(np.uint8)
    return LowRank(np.float32(scale), shifts, parts[0], parts[1], gone)


def sums(of: LowRank, n: int) -> np.ndarray:
    """P of n elements, in whole numbers of 64 bits."""
    row, column = np.divmod(of.gone + np.arange(n), of.columns.shape[1])
    rows, columns = of.rows.astype(np.int64)[:, row], of.columns.astype(np.int64)[:, column]
    found: np.ndarray = (rows * columns << of.shifts.astype(np.int64)[:, None]).sum(0)
    return found


def wanted(dtype: str, words: Words, of: LowRank) -> Words:
    """By torch's conversions."""
    before = torch_of(dtype, words).float().numpy()
    added = sums(of, len(words))
    with np.errstate(all="ignore"):
        moved = before + of.scale * added.astype(np.float32)
    found = words_of(dtype, torch.from_numpy(moved).to(KINDS[dtype]))
    found[np.isnan(moved)] = NAN[dtype]
    return np.where(added == 0, words, found)


def ways(dtype: str, words: Words, of: LowRank) -> Iterator[Words]:
    """What the variant in use makes of it, and what the reference does."""
    assert add_product.is_native(dtype, words, of)
    for function in (add_product, add_product.reference):
        out = words.copy()
        function(dtype, out, of)
        yield out


@pytest.mark.parametrize("rank", range(1, MOST_RANK + 1))
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_every_variant_is_what_whole_numbers_give(dtype: str, rank: int) -> None:
    for seed, (n, width, gone) in enumerate(SHAPES):
        scale = SCALES[(rank + seed) % len(SCALES)]
        words, of = anything(dtype, n, seed), matrix(rank, n, width, gone, scale, seed)
        due = wanted(dtype, words, of)
        for found in ways(dtype, words, of):
            assert np.array_equal(found, due)


@pytest.mark.parametrize(("n", "width", "gone"), [(150_001, 3, 1), (150_001, 70_000, 69_999), (140_000, 65_537, 0)])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_long_chunks_and_long_rows(dtype: str, n: int, width: int, gone: int) -> None:
    """Beyond what the reference takes at a time."""
    words, of = anything(dtype, n, 1), matrix(2, n, width, gone, 1e-4)
    due = wanted(dtype, words, of)
    assert (due != words).any()
    for found in ways(dtype, words, of):
        assert np.array_equal(found, due)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_a_sum_of_the_largest_numbers_is_exact_to_the_last_unit(dtype: str, sign: int) -> None:
    """Of all 64 components, a unit in near sixteen million: the base's element takes away all but that."""
    last = np.arange(-LARGEST, LARGEST + 1)
    large = 16 * (61 * LARGEST**2 + 127 * 122 + 61)
    assert large == 244 << 16
    columns = np.full((MOST_RANK, len(last)), LARGEST)
    columns[61], columns[62], columns[63] = 122, 61, sign * last
    rows = np.full((MOST_RANK, 1), sign * LARGEST)
    rows[62], rows[63] = sign, 1
    shifts = np.array([MOST_SHIFT] * 63 + [0], np.uint8)
    of = LowRank(np.float32(2.0**-8), shifts, rows.astype(np.int8), columns.astype(np.int8), 0)
    assert np.array_equal(sums(of, len(last)), sign * (large + last))
    start = torch.full((len(last),), -sign * large / 256, dtype=KINDS[dtype])
    assert (start.double() * 256 == -sign * large).all(), "the type has that number"
    words = words_of(dtype, start)
    for found in ways(dtype, words, of):
        left = torch_of(dtype, found).double()
        assert (left * 256).tolist() == (sign * last).tolist()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_the_largest_sum_there_is(dtype: str) -> None:
    """Every number ±127, every shift the largest: below 2^24, and rounded once."""
    rows, columns = np.full((MOST_RANK, 2), LARGEST, np.int8), np.full((MOST_RANK, 300), LARGEST, np.int8)
    rows[:, 1] = -LARGEST
    of = LowRank(np.float32(2.0**-9), np.full(MOST_RANK, MOST_SHIFT, np.uint8), rows, columns, 0)
    most = MOST_RANK * LARGEST**2 << MOST_SHIFT
    assert most < 1 << 24
    zeros = np.zeros(600, LATTICES[dtype].word)
    due = torch.tensor([most, -most], dtype=torch.float64).mul(2.0**-9).to(KINDS[dtype]).tolist()
    for found in ways(dtype, zeros, of):
        values = torch_of(dtype, found)
        assert set(values[:300].tolist()) == {due[0]}
        assert set(values[300:].tolist()) == {due[1]}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_where_the_sum_is_0_every_element_stays_bit_for_bit(dtype: str) -> None:
    """Whatever it is, NaN with their payload too: numbers are 0, or components cancel. A NaN that is added to is quiet."""
    lattice = LATTICES[dtype]
    every = np.arange(1 << 16).astype(lattice.word)
    if lattice.bits > 16:
        every = every << np.uint32(16) | every % 2 * (every * np.uint32(0x9E37) % np.uint32(1 << 16))
    numbers = np.random.default_rng(3).integers(1, LARGEST + 1, 256).astype(np.int8)
    nothing = np.zeros((2, 256), np.int8)
    against = np.stack([numbers, -numbers])
    alike = np.stack([numbers, numbers])
    shifts, scale = np.array([3, 3], np.uint8), np.float32(0.5)
    for rows, columns in ((nothing, alike), (alike, nothing), (against, alike)):
        for found in ways(dtype, every, LowRank(scale, shifts, rows, columns, 0)):
            assert np.array_equal(found, every)
    infinite, size = lattice.mask << lattice.shift, every & lattice.word.type((1 << lattice.bits - 1) - 1)
    for found in ways(dtype, every, LowRank(scale, shifts, alike, alike, 0)):
        assert set(found[size > infinite].tolist()) == {NAN[dtype]}
        assert (size == infinite).any()
        assert (found[size == infinite] == every[size == infinite]).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_subnormal_numbers_taken_for_0_change_nothing(dtype: str) -> None:
    """With scales as they should be, a setting of the processor's gives the same bits."""
    words = anything(dtype, 3000, 2)
    for scale in (2.0**-100, 2.0**-60, 1e-5):
        of = matrix(5, len(words), 77, 3, scale)
        due = wanted(dtype, words, of)
        torch.set_flush_denormal(True)
        try:
            found = list(ways(dtype, words, of))
        finally:
            torch.set_flush_denormal(False)
        assert [np.array_equal(each, due) for each in found] == [True, True]


@pytest.mark.parametrize("dtype", TYPES)
def test_words_that_are_not_one_run_go_to_the_reference(dtype: str) -> None:
    words, of = anything(dtype, 400, 4), matrix(3, 200, 20, 0, 1e-3)
    due = wanted(dtype, words[::2].copy(), of)
    apart = words.copy()[::2]
    assert not add_product.is_native(dtype, apart, of)
    add_product(dtype, apart, of)
    assert np.array_equal(apart, due)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("native")
def test_factors_may_lie_in_memory_as_they_like(dtype: str) -> None:
    words, of = anything(dtype, 500, 5), matrix(4, 500, 25, 7, 1e-3)
    due = wanted(dtype, words, of)
    turned = of._replace(rows=np.asfortranarray(of.rows), columns=np.asfortranarray(of.columns))
    for found in ways(dtype, words, turned):
        assert np.array_equal(found, due)
