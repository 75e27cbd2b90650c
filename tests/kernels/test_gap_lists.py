"""Lists of gaps, made of symbols and added at, in every variant of the native library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from elements import gaps_of
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from tallstore.kernels import reference
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.native import encode

pytestmark = pytest.mark.usefixtures("native")


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


@settings(max_examples=examples(150), deadline=None)
@given(symbols())
def test_made(case: tuple[np.ndarray, str]) -> None:
    found, kind = case
    packed = reference.pack(found, kind)
    due_gaps, due_signs = gaps_of(found)
    marks = int(np.count_nonzero(found))
    assert encode.bits_on(packed) == marks
    gaps, signs = encode.packed_to_gaps(packed, len(found), marks, reference.SYMBOL_BITS[kind])
    assert gaps.tolist() == due_gaps.tolist()
    assert signs.tolist() == (due_signs.tolist() if kind == "signed" else [])


@settings(max_examples=examples(100), deadline=None)
@given(symbols(), st.sampled_from([1, 64, 100, 4096, 1 << 20]), st.sampled_from([np.float32, np.float64]))
def test_added(case: tuple[np.ndarray, str], run: int, sort: Any) -> None:
    found, kind = case
    gaps, signs = gaps_of(found)
    before = np.random.default_rng(len(found)).standard_normal(len(found)).astype(sort)
    before[::7] = np.float32("nan")
    before[1::7] = -0.0
    scale = float(np.float32(0.3))
    due = np.where(found, before + np.array([0, scale, -scale], sort)[found], before)
    room = torch.full((len(found) + 64,), 77.0, dtype=torch.from_numpy(before).dtype)
    out = room[32 : 32 + len(found)]
    out.copy_(torch.from_numpy(before))
    own = signs if kind == "signed" else signs[:0]
    add = decoding().gaps(gaps, own, kind, len(found), scale, out.dtype).begin()
    for first in range(0, len(found), run):
        add(out[first : first + run], out[first : first + run])
    word = np.dtype(f"u{before.itemsize}")
    assert (out.numpy().view(word) == due.view(word)).all()
    assert (room[:32] == 77).all()
    assert (room[-32:] == 77).all()
