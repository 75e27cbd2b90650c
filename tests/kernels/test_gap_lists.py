"""Lists of gaps, made of symbols and added at: for the processor that there is, and for any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from elements import gaps_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tallstore.kernels import cpu, fast

if fast.kernels() is None:
    pytest.skip("numba is not installed: there is one path only", allow_module_level=True)

made: Any = fast.gap_kernels()
added: Any = fast.kernels()
MAKE = list(dict.fromkeys([made.packed_to_gaps, made.packed_to_gaps_anywhere]))
ADD = list(dict.fromkeys([added.add_gaps, added.add_gaps_anywhere]))


@st.composite
def symbols(draw: st.DrawFn) -> tuple[np.ndarray, str]:
    """Of a kind of mask, from none on to all, some of them in one stretch."""
    n = draw(st.sampled_from([1, 31, 32, 33, 63, 64, 65, 127, 255, 256, 257, 1000, 20_000, 70_001]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["binary", "signed"]))
    density = np.full(n, draw(st.sampled_from([0.0, 0.0005, 0.003, 0.02, 0.1, 0.5, 1.0])))
    if draw(st.booleans()):
        density[: rng.integers(n + 1)] = draw(st.sampled_from([0.0, 0.3, 1.0]))
    found = (rng.random(n) < density) * rng.integers(1, 2 if kind == "binary" else 3, n)
    return found.astype(np.uint8), kind


@settings(max_examples=150, deadline=None)
@given(symbols(), st.sampled_from(MAKE))
def test_made(case: tuple[np.ndarray, str], way: Any) -> None:
    found, kind = case
    packed = cpu.pack(found, kind)
    words = np.zeros(-(-len(packed) // 8), np.uint64)
    words.view(np.uint8)[: len(packed)] = packed
    due_gaps, due_signs = gaps_of(found)
    marks = np.count_nonzero(found)
    room = np.full(marks + len(found) // 255 + 1 + made.SLACK + 8, 77, np.uint8)
    signs = np.full(marks // 64 + 2, 77, np.uint64)
    size, count = way(room, signs, words, cpu.SYMBOL_BITS[kind])
    assert count == marks
    assert room[:size].tolist() == due_gaps.tolist()
    assert (room[-8:] == 77).all()
    if kind == "signed":
        assert signs.view(np.uint8)[: len(due_signs)].tolist() == due_signs.tolist()
    assert signs[-1] == 77


@settings(max_examples=150, deadline=None)
@given(
    symbols(),
    st.sampled_from(ADD),
    st.sampled_from([1, 64, 100, 4096, 1 << 20]),
    st.sampled_from([np.float32, np.float64]),
)
def test_added(case: tuple[np.ndarray, str], way: Any, run: int, kind: Any) -> None:
    found, sort = case
    gaps, signs = gaps_of(found)
    signs = signs if sort == "signed" else signs[:0]
    before = np.random.default_rng(len(found)).standard_normal(len(found)).astype(kind)
    before[::7] = np.float32("nan")
    before[1::7] = -0.0
    plus, minus = kind(0.3), kind(-0.7)
    step = np.array([0, plus, minus], kind)[found]
    due = np.where(found, before + step, before)
    room = np.full(len(found) + 64, 77, kind)
    out = room[32 : 32 + len(found)]
    out[:] = before
    state = np.zeros(4, np.uint64)
    for first in range(0, len(found), run):
        way(out[first : first + run], state, gaps, signs, plus, minus)
    word = np.dtype(f"u{before.itemsize}")
    assert (out.view(word) == due.view(word)).all()
    assert (room[:32] == 77).all()
    assert (room[-32:] == 77).all()
    assert state.tolist() == [len(gaps), np.count_nonzero(found), state[2], len(found)]


@pytest.mark.parametrize("way", ADD)
def test_signs_end_where_they_are_read_eight_bytes_at_a_time(way: Any) -> None:
    found = np.ones(64 * 5, np.uint8)
    found[::3] = 2
    gaps, signs = gaps_of(found)
    guarded = np.concatenate([signs, np.full(64, 0xFF, np.uint8)])[: len(signs)]
    out = np.zeros(len(found), np.float32)
    way(out, np.zeros(4, np.uint64), gaps, guarded, np.float32(1), np.float32(2))
    assert out.astype(np.uint8).tolist() == found.tolist()
