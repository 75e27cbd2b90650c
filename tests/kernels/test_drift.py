"""Codec drift: every native variant against the reference, bit for bit, and what drift buys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import without_kernels

from tallstore.codecs import LOSSLESS
from tallstore.codecs.drift import DriftCodec
from tallstore.codecs.lattice import DRIFT
from tallstore.codecs.lattice_model import lowest, undirected
from tallstore.errors import DamagedError, FormatError
from tallstore.kernels import lattice as reference
from tallstore.kernels import lattice_fast
from tallstore.kernels.lattice import LATTICES, Words, drift_of, segments_of

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
        CODEC.decode(coded, out, dtype, origin)
        assert np.array_equal(out, task)
    if n > 4000:
        assert coded[0] == DRIFT
        assert len(coded) < 0.9 * len(LOSSLESS["lattice"].encode(task, before, dtype, (64, 0)))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
@pytest.mark.usefixtures("native")
def test_every_variant_is_the_reference(dtype: str) -> None:
    lattice, n = LATTICES[dtype], 4097
    own, start, base = chain(dtype, n)
    told = reference.prepare(lattice, own, start, lowest(lattice, start))
    shifts = np.arange(segments_of(n, 300, 17), dtype=np.uint8) % np.uint8(4)
    for rows_of in (undirected(), undirected(300, 17, shifts)):
        marks = np.array([1, 2, 100], np.uint16)
        drifted = replace(rows_of, marks=marks, drift=drift_of(lattice, start, base))
        found = lattice_fast.count_symbols(told, drifted)
        assert np.array_equal(reference.count_symbols(told, drifted), found)
    task, before, origin = as_bytes(own, start, base)
    coded = CODEC.encode(task, before, dtype, (0, 0), origin)
    assert coded[0] == DRIFT
    out = before.copy()
    CODEC.decode(coded, out, dtype, origin)
    assert np.array_equal(out, task)


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
    CODEC.decode(coded, out, "BF16", beneath)
    assert np.array_equal(out, task)


def test_it_is_refused_without_what_it_needs() -> None:
    own, start, base = chain("BF16", 5000)
    task, before, origin = as_bytes(own, start, base)
    coded = CODEC.encode(task, before, "BF16", (0, 0), origin)
    with pytest.raises(FormatError, match="mode 4"):
        CODEC.decode(coded, before.copy(), "BF16")
    with pytest.raises(FormatError, match="mode 4"):
        LOSSLESS["lattice"].decode(coded, before.copy(), "BF16", origin)
    with pytest.raises(FormatError, match="mode 4"):
        CODEC.decode(coded, before.copy(), "U16", origin)
    other = origin.copy()
    other[::2] ^= 1
    try:
        CODEC.decode(coded, out := before.copy(), "BF16", other)
    except DamagedError:
        return
    assert not np.array_equal(out, task)
