"""How coherent rows are is the same by the native library and by the reference, to the last bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from tallstore.kernels.native import encode
from tallstore.kernels.native_types import BFLOAT16, FLOAT16, FLOAT32
from tallstore.recipes.coherence import BITS, gain, gain_of

pytestmark = pytest.mark.usefixtures("native")

FORMS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
SIZES = [0.0, 2.0**-149, 2.0**-130, 2.0**-20, 1.0, 2.0**14, 2.0**120, float("inf"), float("nan")]


def found(base: torch.Tensor, weights: torch.Tensor, firsts: list[int], n: int) -> float:
    rows = torch.stack([base[first : first + n] for first in firsts]).float().numpy()
    bits = weights.view(torch.uint8).numpy()
    row = encode.NativeRow(FORMS[weights.dtype], data=bits)
    sums = encode.coherence(row, np.array(firsts, np.int64), rows, BITS)
    assert sums is not None
    return gain_of(n, *sums)


@settings(max_examples=examples(150), deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 200),
    st.sampled_from(list(FORMS)),
    st.sampled_from(SIZES),
    st.integers(0, 2**32 - 1),
)
def test_gain(count: int, n: int, kind: torch.dtype, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lean = rng.normal(size=(count + 3, 1)) * rng.normal(size=n) * rng.choice([0.0, 0.1, 3.0])
    tau = (rng.normal(size=(count + 3, n)) + lean) * rng.choice([0.0, 1.0], (count + 3, 1), p=[0.3, 0.7])
    base = torch.from_numpy(rng.normal(size=tau.size) * rng.choice([0.0, 1.0])).to(kind)
    weights = (base.double() + torch.from_numpy(tau.reshape(-1)) * size).to(kind)
    firsts = sorted(rng.choice(count + 3, count, replace=False) * n)
    picked = [slice(first, first + n) for first in firsts]
    own = torch.stack([weights[each].float() - base[each].float() for each in picked]).numpy()
    assert found(base, weights, [int(first) for first in firsts], n) == gain(own)


def test_a_file_that_ends_within_rows(tmp_path: Path) -> None:
    path = tmp_path / "row"
    path.write_bytes(np.ones(100, np.float32).tobytes())
    handle = os.open(path, os.O_RDONLY)
    try:
        row, base = encode.NativeRow(FLOAT32, handle, 0), np.zeros((2, 50), np.float32)
        assert encode.coherence(row, np.array([0, 50]), base, BITS) is not None
        assert encode.coherence(row, np.array([0, 51]), base, BITS) is None
    finally:
        os.close(handle)
