"""Codec drift: every native variant against the reference, bit for bit, and what drift buys."""

from __future__ import annotations

import numpy as np
import pytest
from support import without_kernels

from tallstore.codecs import LOSSLESS
from tallstore.codecs.base import Given
from tallstore.codecs.drift import DRIFT, DriftCodec, written
from tallstore.codecs.drift_model import choose
from tallstore.codecs.lattice_model import lowest
from tallstore.errors import DamagedError, FormatError
from tallstore.kernels import drift as reference
from tallstore.kernels import drift_choices, drift_fast
from tallstore.kernels.drift import STILL, DriftModel
from tallstore.kernels.lattice import LATTICES, Words, drift_of, prepare, segments_of

CODEC = DriftCodec()
SIZES = (40, 1000, 4097, 20001)


def chain(dtype: str, n: int) -> tuple[Words, Words, Words]:
    """An earlier checkpoint, the later one that it is coded against, and the base that both come from."""
    lattice, rng = LATTICES[dtype], np.random.default_rng(n)
    base = rng.integers(0, 1 << lattice.bits, n, dtype=np.uint64).astype(lattice.word)
    steps = np.rint(rng.laplace(0, 2, n)).astype(np.int64)
    steps[::97] *= 50
    later = lattice.turned(lattice.turned(base) + steps.astype(lattice.word))
    between = np.where(np.random.default_rng(n).random(n) < 0.5, base, later).astype(base.dtype)
    return between, later, base


def as_bytes(*words: Words) -> tuple[np.ndarray, ...]:
    return tuple(each.view(np.uint8) for each in words)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", LATTICES)
def test_it_comes_back_from_the_same_bytes_everywhere(dtype: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own, start, base = chain(dtype, n)
    task, before, origin = as_bytes(own, start, base)
    coded = CODEC.encode(task, before, dtype, (64, 0), origin)
    for native in (True, False):
        if not native:
            without_kernels(monkeypatch)
            assert CODEC.encode(task, before, dtype, (64, 0), origin) == coded
        out = before.copy()
        CODEC.decode(coded, out, dtype, Given(origin))
        assert np.array_equal(out, task)
    if n > 4000:
        assert coded[0] == DRIFT
        assert len(coded) < 0.9 * len(LOSSLESS["lattice"].encode(task, before, dtype, (64, 0)))


GRADES = np.array([0, 0, 1, 2, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 7, 7], np.uint8)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
@pytest.mark.usefixtures("native")
def test_every_variant_is_the_reference(dtype: str) -> None:
    lattice, n = LATTICES[dtype], 9001
    own, start, base = chain(dtype, n)
    steps = prepare(lattice, own, start, lowest(lattice, start))
    for unit in (0, 2):
        wanted, told = (each.tell(lattice, start, base, unit, GRADES) for each in (reference, drift_fast))
        assert np.array_equal(wanted.grade, told.grade)
        assert np.array_equal(wanted.negative, told.negative)
        for width, first in ((0, 0), (300, 17)):
            segments = segments_of(n, width, first)
            shifts = np.arange(segments, dtype=np.uint8) % np.uint8(4)
            counts = reference.count_symbols(steps, told, width, first, shifts)
            assert np.array_equal(counts, drift_fast.count_symbols(steps, told, width, first, shifts))
            if width:
                for one_in in (1, 3):
                    some = reference.count_still(steps, told, width, first, one_in)
                    assert np.array_equal(some, drift_fast.count_still(steps, told, width, first, one_in))
            rows = counts[counts.any(1)][:64]
            expected, joined = drift_choices.join(rows), drift_fast.join(rows)
            assert np.array_equal(expected[0], joined[0])
            assert expected[1] == joined[1]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F8_E5M2"])
@pytest.mark.usefixtures("native")
def test_still_elements_and_exceptions(dtype: str) -> None:
    """Half of all contexts are still, whatever moved there is an exception; lanes of all numbers, segments and none."""
    lattice, n = LATTICES[dtype], 9001
    own, start, base = chain(dtype, n)
    steps, rng = prepare(lattice, own, start, lowest(lattice, start)), np.random.default_rng(3)
    every = 2 * int(np.abs(steps.symbols).max()) + 1
    for lanes, (width, first), share in (
        (8, (0, 0), 0.5),
        (64, (300, 17), 0.5),
        (256, (0, 0), 1.0),
        (16, (50, 50), 0.0),
    ):
        segments = segments_of(n, width, first)
        shifts = np.arange(segments, dtype=np.uint8) % np.uint8(3)
        weights = np.full((3, every), 20, np.uint8)
        weights[1, 1:] = 0
        model = DriftModel(
            bits=10,
            low=lowest(lattice, start),
            unit=0,
            grades=GRADES,
            width=width,
            first=first,
            shifts=shifts,
            table=np.where(rng.random(128 + int(shifts.max())) < share, 1, rng.choice([0, 2])).astype(np.uint8),
            weights=weights,
        )
        told = drift_fast.tell(lattice, start, base, 0, GRADES)
        wanted = reference.encode(steps, told, model, lanes)
        found = drift_fast.encode(steps, told, model, lanes, len(wanted.places))
        for name in ("states", "words", "extra", "places", "odd"):
            assert np.array_equal(getattr(wanted, name), getattr(found, name)), name
        assert len(wanted.places) > 0 or not share
        assert len(wanted.words) > 0 or share == 1
        coded, (task, before, origin) = written(wanted, model), as_bytes(own, start, base)
        CODEC.decode(coded, out := before.copy(), dtype, Given(origin))
        assert np.array_equal(out, task)
        words = start.copy()
        reference.decode(lattice, words, base, model, wanted)
        assert np.array_equal(words, own)


def test_what_hardly_moves_is_still() -> None:
    """One in ten thousand elements of large numbers moved: those are exceptions, and all others take next to nothing."""
    lattice, n = LATTICES["BF16"], 300_000
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, n).astype(np.float32).view(np.uint32) >> 16
    base = np.where(np.arange(n) % 2, base, base - (6 << 7)).astype(np.uint16)
    start = np.where(np.arange(n) % 2, base, base + rng.integers(0, 3, n)).astype(np.uint16)
    own = np.where(np.arange(n) % 2, start, start + rng.integers(0, 2, n)).astype(np.uint16)
    own[1::20_000] += 1
    chosen = choose(lattice, own, start, base, (1000, 0))
    assert chosen is not None
    assert STILL in reference.still_of(chosen.model)
    assert chosen.exceptions >= 10
    task, before, origin = as_bytes(own, start, base)
    coded = CODEC.encode(task, before, "BF16", (1000, 0), origin)
    assert coded[0] == DRIFT
    assert 8 * len(coded) < 1.25 * n / 2
    CODEC.decode(coded, before, "BF16", Given(origin))
    assert np.array_equal(before, task)


def test_drift_of_the_ends_of_a_type() -> None:
    """The largest distances: from the least number to the greatest, and back."""
    lattice = LATTICES["BF16"]
    words = np.array([0x7F7F, 0xFF7F, 0x0000, 0x8000, 0x7FFF, 0xFFFF], np.uint16)
    origin = np.array([0xFF7F, 0x7F7F, 0x8000, 0x0000, 0xFFFF, 0x7FFF], np.uint16)
    assert drift_of(lattice, words, origin).tolist() == [65279 - 65536, 65536 - 65279, 1, -1, -1, 1]
    start = np.tile(words, 900)
    own, base = np.tile(origin, 900), np.tile(np.roll(words, 1), 900)
    task, before, beneath = as_bytes(own, start, base)
    coded, out = CODEC.encode(task, before, "BF16", (0, 0), beneath), before.copy()
    CODEC.decode(coded, out, "BF16", Given(beneath))
    assert np.array_equal(out, task)


def test_it_is_refused_without_what_it_needs() -> None:
    own, start, base = chain("BF16", 5000)
    task, before, origin = as_bytes(own, start, base)
    coded = CODEC.encode(task, before, "BF16", (0, 0), origin)
    with pytest.raises(FormatError, match="mode 4"):
        CODEC.decode(coded, before.copy(), "BF16")
    with pytest.raises(FormatError, match="mode 4"):
        LOSSLESS["lattice"].decode(coded, before.copy(), "BF16", Given(origin))
    with pytest.raises(FormatError, match="mode 4"):
        CODEC.decode(coded, before.copy(), "U16", Given(origin))
    other = origin.copy()
    other[::2] ^= 1
    try:
        CODEC.decode(coded, out := before.copy(), "BF16", Given(other))
    except DamagedError:
        return
    assert not np.array_equal(out, task)
