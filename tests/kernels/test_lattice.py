"""Codec lattice: its reference against plain arithmetic, and every native variant against the reference, bit for bit."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tallstore.codecs import LOSSLESS, WHOLE
from tallstore.codecs.lattice import _told, written
from tallstore.codecs.lattice_model import choose, estimate, lanes_for, lowest, undirected
from tallstore.errors import DamagedError, FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels import lattice as reference
from tallstore.kernels import lattice_choices, lattice_fast
from tallstore.kernels.lattice import (
    LARGEST,
    LATTICES,
    LEVELS,
    Lattice,
    LatticeSymbols,
    Model,
    Prepared,
    Rows,
    frequencies,
    segments_of,
)
from tallstore.kernels.lattice_choices import FINEST, MOST_ROWS, both_signs
from tallstore.kernels.native import build, library

CODEC = LOSSLESS["lattice"]
SIZES = (1, 7, 31, 32, 33, 1000, 4097, 70001)


def rows(dtype: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A base and a task as words: most steps small, by exponent; some large, some of another sign."""
    lattice, rng = LATTICES[dtype], np.random.default_rng(seed)
    exponent = np.minimum(rng.geometric(0.4, n), lattice.mask)
    top = lattice.mask * 2 // 3 + 1
    mantissa = rng.integers(0, 1 << lattice.shift, n)
    words = np.maximum(top - exponent, 0) << lattice.shift | mantissa | rng.integers(0, 2, n) << (lattice.bits - 1)
    base = words.astype(lattice.word)
    step = np.rint(rng.normal(0, 1, n) * 2.0 ** (exponent - 3.5) * (1 + 3 * (np.arange(n) // 300 % 2)))
    step = np.where(rng.random(n) < 0.002, rng.integers(-(2**30), 2**30, n), step)
    return lattice.turned(lattice.turned(base) + step.astype(np.int64).astype(lattice.word)), base


def segmented(n: int, rank: int) -> Rows:
    """Segments of 300 elements, the first of 17, with odd shifts and as many directions."""
    rng = np.random.default_rng(rank)
    segments = segments_of(n, 300, 17)
    across = rng.integers(-LARGEST, LARGEST + 1, (segments, rank)).astype(np.int8)
    along = rng.integers(-LARGEST, LARGEST + 1, (rank, 300)).astype(np.int8)
    shifts = (np.arange(segments) % 7).astype(np.uint8)
    marks = np.array([1, 20, 40] if rank else [], np.uint16)
    return Rows(width=300, first=17, shifts=shifts, across=across, along=along, marks=marks)


def forced(told: Prepared, low: int, rows_of: Rows) -> Model:
    """A model with these rows, whether they pay or not: two tables, in which every symbol has a weight."""
    rng = np.random.default_rng(1)
    weights = rng.integers(20, 40, (2, 2 * int(np.abs(told.symbols).max()) + 1)).astype(np.uint8)
    weights = weights if len(rows_of.along) else both_signs(weights[:, ::2])
    table = rng.integers(0, 2, (rows_of.grades, 16 + int(rows_of.shifts.max()))).astype(np.uint8)
    return Model(bits=12, low=low, rows=rows_of, table=table, weights=weights)


def together(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A base and a task in bf16, most of whose elements moved as the product of two vectors says."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.05, shape).astype(np.float32).view(np.uint32) >> 16
    pull = np.outer(rng.normal(0, 1, shape[0]), rng.normal(0, 1, shape[1])) + rng.normal(0, 0.3, shape)
    base = base.astype(np.uint16).reshape(-1)
    lattice = LATTICES["BF16"]
    step = np.rint(np.sign(pull) * rng.exponential(1.0, shape)).astype(np.int64).reshape(-1)
    return lattice.turned(lattice.turned(base) + step.astype(np.uint16)), base


@pytest.fixture(params=["plain", "avx2", "avx512", "neon"])
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Each variant of the native library in place of the one that would be chosen."""
    path = build.library_path()
    if not path.exists():
        pytest.skip("the native library is not built: python -m tallstore.kernels.native.build")
    try:
        found = library.open_library(path, request.param)
    except library._UnusableError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "chosen", lambda: found)
        yield request.param


@pytest.mark.parametrize("dtype", LATTICES)
def test_turned_words_ascend_with_the_value(dtype: str) -> None:
    lattice = LATTICES[dtype]
    sign = 1 << (lattice.bits - 1)
    words = np.array([sign | 5, sign | 1, sign, 0, 1, 5], lattice.word)
    signed = lattice.turned(words).view(words.dtype.str.replace("u", "i")).astype(int)
    assert signed.tolist() == [-6, -2, -1, 0, 1, 5]
    assert np.array_equal(lattice.turned(lattice.turned(words)), words)


def test_symbols_of_magnitudes() -> None:
    sizes = np.array([0, 1, 15, 16, 23, 24, 31, 32, 48, 2**15, 2**31])
    symbols, left = reference.magnitudes_of(sizes)
    assert symbols.tolist() == [0, 1, 15, 16, 16, 17, 17, 18, 19, 38, 70]
    assert left.tolist() == [0, 0, 0, 3, 3, 3, 3, 4, 4, 14, 30]
    every = np.arange(1 << 16)
    symbols, left = reference.magnitudes_of(every)
    assert np.array_equal(reference.least_of(symbols) + (every & ((1 << left) - 1)), every)


def test_frequencies_of_weights() -> None:
    weights = np.array([[20, 8, 8, 4, 4], [0, 5, 5, 0, 0], [3, 0, 0, 0, 0]], np.uint8)
    found = frequencies(weights, 8)
    # 20 stands for 128, 8 for 16, 4 for 8: of 128 + 2·16 + 2·8 = 176.
    assert found.tolist() == [[256 - 2 * 23 - 2 * 11, 23, 23, 11, 11], [0, 128, 128, 0, 0], [256, 0, 0, 0, 0]]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", LATTICES)
def test_it_comes_back(dtype: str, n: int) -> None:
    after, base = rows(dtype, n)
    for row in ((0, 0), (64, 0), (300, 17)):
        coded = CODEC.encode(after.view(np.uint8), base.view(np.uint8), dtype, row)
        out = base.copy()
        CODEC.decode(coded, out.view(np.uint8), dtype)
        assert np.array_equal(out, after)


@pytest.mark.parametrize("n", [1 << 15, 70001])
def test_small_symbols_are_counted_as_any_others_are(n: int, variant: str) -> None:
    """By pairs, but for blocks that hold a larger one, or end on an odd one; in contexts up to the last."""
    assert variant
    rng = np.random.default_rng(n)
    symbols = rng.integers(-1, 2, n).astype(np.int8)
    symbols[5000], symbols[9000] = 2, -70
    told = Prepared(symbols, rng.integers(0, LEVELS, n).astype(np.uint8), np.zeros(0, np.uint8))
    shifts = rng.integers(0, 16, segments_of(n, 300, 17)).astype(np.uint8)
    for rows_of in (undirected(), undirected(300, 17, shifts)):
        assert np.array_equal(reference.count_symbols(told, rows_of), lattice_fast.count_symbols(told, rows_of))


@pytest.mark.parametrize(("n", "rank"), [*((n, 0) for n in SIZES), *itertools.product((1000, 4097), (1, 3, 4, 8))])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
def test_every_variant_is_the_reference(dtype: str, n: int, rank: int, variant: str) -> None:
    lattice = LATTICES[dtype]
    after, base = rows(dtype, n, 3)
    low = lowest(lattice, base)
    told, same = reference.prepare(lattice, after, base, low), lattice_fast.prepare(lattice, after, base, low)
    for name in ("symbols", "levels", "extra"):
        assert np.array_equal(getattr(told, name), getattr(same, name)), name
    rows_of = segmented(n, rank) if n > 300 else undirected()
    if rows_of.width:
        counts = reference.count_segments(told, 300, 17, 3)
        assert np.array_equal(counts, lattice_fast.count_segments(told, 300, 17, 3))
    if rank and rows_of.width:
        assert np.array_equal(reference.project(told, rows_of), lattice_fast.project(told, rows_of))
    found = lattice_fast.count_symbols(told, rows_of)
    assert np.array_equal(reference.count_symbols(told, rows_of), found)
    for signed in (False, True):
        some = found.reshape(-1, found.shape[2])[:, :: 1 if signed else 2]
        wanted, same_tables = lattice_choices.tables(some, signed=signed), lattice_fast.tables(some, signed=signed)
        assert all(np.array_equal(a, b) for a, b in zip(wanted, same_tables, strict=True))
    if rows_of.width:
        assert np.array_equal(lattice_choices.shifts(counts), lattice_fast.shifts(counts))
        begin = np.random.default_rng(2).integers(-FINEST, FINEST + 1, (max(rank, 1), 300))
        some_rows = told.symbols[17 : 17 + n // 400 * 300].reshape(-1, 300)[:MOST_ROWS]
        wanted = lattice_choices.along(begin, some_rows, 2)
        assert np.array_equal(wanted, lattice_fast.along_rows(begin, some_rows, 2))
    model = choose(told, low, (300, 283) if n > 300 else (0, 0))
    if rows_of.width:
        model = forced(told, low, rows_of)
    for lanes in (8, 32, 128, 256):
        steps, mine = reference.encode(told, model, lanes), lattice_fast.encode(told, model, lanes)
        assert np.array_equal(steps.states, mine.states)
        assert np.array_equal(steps.words, mine.words)
        for decode in _BOTH:
            out = base.copy()
            decode(lattice, out, model, steps)
            assert np.array_equal(out, after)


@pytest.mark.parametrize("bits", [9, 10, 12])
@pytest.mark.parametrize(
    ("tables", "largest"), [(1, 1), (16, 1), (21, 1), (22, 1), (17, 7), (51, 2), (16, 9), (64, 70)]
)
def test_few_tables_and_many_are_coded_as_the_reference_does(
    tables: int, largest: int, bits: int, variant: str
) -> None:
    """Up to 64 frequencies in all, 256, and more; some of them 1, some nearly all."""
    assert variant
    rng, n, weights = np.random.default_rng(tables), 9001, np.full((tables, 2 * largest + 1), 1, np.uint8)
    weights[:, 0] = rng.integers(1, 28, tables)
    levels = rng.integers(0, LEVELS, n).astype(np.uint8)
    symbols = (rng.integers(-largest, largest + 1, n) * (rng.random(n) < 0.3)).astype(np.int8)
    table = rng.integers(0, tables, (1, LEVELS)).astype(np.uint8)
    model = Model(bits=bits, low=0, rows=undirected(), table=table, weights=weights)
    share = frequencies(weights, bits)
    symbols[(share[table[0, levels], reference.places(symbols)]) == 0] = 0
    for lanes, some in itertools.product((8, 16, 32, 128, 256), (n, 31, 32, 4096)):
        told = Prepared(symbols[:some], levels[:some], np.zeros(0, np.uint8))
        wanted, found = reference.encode(told, model, lanes), lattice_fast.encode(told, model, lanes)
        assert np.array_equal(wanted.states, found.states)
        assert np.array_equal(wanted.words, found.words)


def test_directions_pay_where_elements_moved_together() -> None:
    after, base = together((600, 400))
    lattice = LATTICES["BF16"]
    low = lowest(lattice, base)
    model = choose(reference.prepare(lattice, after, base, low), low, (400, 0))
    assert len(model.rows.along) > 0
    coded = CODEC.encode(after.view(np.uint8), base.view(np.uint8), "BF16", (400, 0))
    flat = CODEC.encode(after.view(np.uint8), base.view(np.uint8), "BF16")
    assert len(coded) < 0.93 * len(flat)
    for part in (slice(0, None), slice(150, None), slice(399, 100_000)):
        some, few = after[part].copy(), base[part].copy()
        coded = CODEC.encode(some.view(np.uint8), few.view(np.uint8), "BF16", (400, part.start))
        CODEC.decode(coded, few.view(np.uint8), "BF16")
        assert np.array_equal(some, few)


def test_directions_are_left_out_where_they_say_nothing() -> None:
    after, base = rows("BF16", 1 << 17)
    low = lowest(LATTICES["BF16"], base)
    model = choose(reference.prepare(LATTICES["BF16"], after, base, low), low, (512, 0))
    assert len(model.rows.along) == 0


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E5M2"])
def test_spoilt_streams_give_the_same_answer_everywhere(dtype: str, variant: str) -> None:
    lattice, rng = LATTICES[dtype], np.random.default_rng(5)
    after, base = rows(dtype, 3000, 4)
    low = lowest(lattice, base)
    told = reference.prepare(lattice, after, base, low)
    model = choose(told, low, (100, 0))
    steps = reference.encode(told, model, lanes_for(told.symbols))
    for turn in range(40):
        states, words, extra = steps.states.copy(), steps.words.copy(), steps.extra.copy()
        if turn % 4 == 0:
            states[rng.integers(len(states))] = rng.integers(0, 2**32)
        elif turn % 4 == 1:
            words[rng.integers(len(words))] ^= 1 << rng.integers(16)
        elif turn % 4 == 2:
            words = words[: rng.integers(len(words))]
        else:
            extra = extra[: rng.integers(len(extra))] if turn % 8 == 3 else np.append(extra, np.uint8(0))
        answers = [_answer(decode, lattice, base, model, states, words, extra) for decode in _BOTH]
        assert answers[0] == answers[1]


def decoded_at_speed(lattice: Lattice, words: np.ndarray, model: Model, steps: LatticeSymbols) -> None:
    """What `reference.decode` does, by the native kernel."""
    coded = np.frombuffer(written(steps, model), np.uint8)
    assert lattice_fast.decode(lattice, words, coded, np.frombuffer(_told(model), np.uint8))


_BOTH = (reference.decode, decoded_at_speed)


def _answer(decode, lattice: Lattice, base, model, states, words, extra) -> str:  # type: ignore[no-untyped-def]
    out = base.copy()
    try:
        decode(lattice, out, model, LatticeSymbols(states, words, extra))
    except DamagedError as error:
        return str(error)
    return out.tobytes().hex()


@pytest.mark.parametrize("moved", ["apart", "together"])
def test_what_is_cut_or_changed_is_refused_or_decodes_to_as_many_elements(moved: str) -> None:
    rng = np.random.default_rng(6)
    after, base = rows("BF16", 5000) if moved == "apart" else together((200, 300))
    coded = CODEC.encode(after.view(np.uint8), base.view(np.uint8), "BF16", (100 if moved == "apart" else 300, 0))
    assert coded[0] == 3
    for turn in range(400):
        data = bytearray(coded)
        if turn < 100:
            data = data[: rng.integers(len(data))]
        else:
            data[rng.integers(60 if turn < 300 else len(data))] ^= 1 << rng.integers(8)
        out = base.copy()
        try:
            CODEC.decode(bytes(data), out.view(np.uint8), "BF16")
        except (FormatError, DamagedError):
            continue
        assert len(out) == len(base)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
def test_an_estimate_is_near_to_what_it_takes(dtype: str) -> None:
    after, base = rows(dtype, 1 << 17)
    coded = CODEC.encode(after.view(np.uint8), base.view(np.uint8), dtype)
    found = estimate(LATTICES[dtype], after[: 1 << 14], base[: 1 << 14])
    assert found == pytest.approx(8 * len(coded) / len(base), rel=0.05)


def test_an_estimate_knows_what_rows_have_in_common() -> None:
    shape = (900, 400)
    after, base = together(shape)
    coded = CODEC.encode(after.view(np.uint8), base.view(np.uint8), "BF16", (shape[1], 0))
    some = [each.reshape(shape)[::14].reshape(-1) for each in (after, base)]
    wanted = 8 * len(coded) / len(base)
    assert estimate(LATTICES["BF16"], *some, len(base), shape[1]) == pytest.approx(wanted, rel=0.06)
    assert estimate(LATTICES["BF16"], *some, len(base)) > 1.1 * wanted


ODD = {
    "negated": lambda base, lattice: base ^ lattice.word.type(1 << (lattice.bits - 1)),
    "every bit turned over": lambda base, lattice: ~base,
    "other exponents": lambda base, lattice: base ^ lattice.word.type(1 << lattice.shift),
    "ones in every bit": lambda base, lattice: np.full_like(base, -1 & ((1 << lattice.bits) - 1)),
    "negative zeros": lambda base, lattice: np.full_like(base, 1 << (lattice.bits - 1)),
    "subnormal": lambda base, lattice: base & lattice.word.type((1 << lattice.shift) - 1),
    "random": lambda base, lattice: (
        np.random.default_rng(9).integers(0, 1 << lattice.bits, len(base)).astype(lattice.word)
    ),
}
"""What a task may be, of a base: bits of NaN, of infinities and of all else among them."""


@pytest.mark.parametrize("n", [50, 5000, 1 << 17])
@pytest.mark.parametrize("change", ODD)
@pytest.mark.parametrize("dtype", LATTICES)
def test_odd_numbers_come_back_and_take_no_more_than_the_plain_codec(dtype: str, change: str, n: int) -> None:
    lattice = LATTICES[dtype]
    base = np.random.default_rng(8).integers(0, 1 << lattice.bits, n).astype(lattice.word)
    after = ODD[change](base, lattice)
    coded = CODEC.encode(after.view(np.uint8), base.view(np.uint8), dtype, (n // 10, 3))
    assert len(coded) <= 1 + len(WHOLE["planes+zstd"].encode(after.view(np.uint8), dtype))
    CODEC.decode(coded, base.view(np.uint8), dtype)
    assert np.array_equal(base, after)


@pytest.mark.parametrize("dtype", ["F64", "I8", "U16", "C64"])
def test_types_without_a_lattice(dtype: str) -> None:
    rng = np.random.default_rng(7)
    base = rng.integers(0, 256, 800 * ITEM_BYTES[dtype], np.uint8)
    after = base.copy()
    after[::50] += 1
    coded = CODEC.encode(after, base, dtype)
    out = base.copy()
    CODEC.decode(coded, out, dtype)
    assert np.array_equal(out, after)
    with pytest.raises(FormatError, match="mode 3"):
        CODEC.decode(bytes([3]) + coded[1:], out, dtype)


def test_the_table_of_kernels_is_the_library_s() -> None:
    path = build.library_path()
    if not path.exists():
        pytest.skip("the native library is not built: python -m tallstore.kernels.native.build")
    handle = ctypes.CDLL(str(path))
    assert all(hasattr(handle, f"ts_{name}_plain") for name in lattice_fast.KERNELS)
