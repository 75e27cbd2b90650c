"""Every faster path gives the reference's bits: cache-sized tiles in numpy, and every variant of the native library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FLOATS, examples
from torch import Tensor

from tallstore import codecs
from tallstore.kernels import packed as whole
from tallstore.kernels import reference
from tallstore.kernels.decoding_backends import decoding

pytestmark = pytest.mark.usefixtures("backend")

TALL = ("adaptive", "bits", "bits+zstd")
DTYPES = st.sampled_from(FLOATS)
SIZES = st.one_of(st.integers(1, 70), st.integers(1000, 9000), st.integers(32_700, 66_000), st.integers(65_536, 80_000))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def values(rng: np.random.Generator, n: int, dtype: torch.dtype, *, finite: bool = False) -> Tensor:
    """Numbers of all sizes, some of them −0, subnormal, halfway between two others, infinite or NaN."""
    plain = rng.standard_normal(n) * 10.0 ** rng.integers(-6, 3, n)
    out = torch.from_numpy(plain).to(dtype)
    odd = [0.0, -0.0, 1.0, 1.0 + 2**-9, 1e-40, -1e-45, 6e-8, 65504.0, 3e38]
    odd += [] if finite else [float("inf"), -float("inf")]
    at = torch.from_numpy(rng.permutation(n)[: n // 7])
    out[at] = torch.tensor(odd, dtype=torch.float64).to(dtype)[torch.from_numpy(rng.integers(len(odd), size=n // 7))]
    if not finite and n > 20 and rng.integers(2):
        out[rng.integers(n)] = float("nan")
        if dtype == torch.float32:
            out.view(torch.int32)[rng.integers(n)] = 0x7F800001  # a signaling NaN, which an addition would quieten
    return out


@settings(max_examples=examples(150), deadline=None)
@given(
    DTYPES,
    DTYPES,
    st.sampled_from(["binary", "signed"]),
    st.booleans(),
    SIZES,
    st.integers(10, 14),
    st.integers(0, 2**32),
)
def test_masks_equal_the_reference(
    dtype: torch.dtype, base_dtype: torch.dtype, kind: str, shared: bool, n: int, chunk_bits: int, seed: int
) -> None:
    rng, chunk = np.random.default_rng(seed), 1 << chunk_bits
    base = values(rng, n, base_dtype)
    symbols = rng.integers(0, 2 if kind == "binary" else 3, n).astype(np.uint8)
    vector = values(rng, n, torch.float32, finite=True) if shared else None
    starts = range(0, n, chunk)
    scales = torch.from_numpy(rng.standard_normal(len(starts)).astype(np.float32))
    packed = np.concatenate([reference.pack(symbols[a : a + chunk], kind) for a in starts])
    expected, found = torch.empty(n, dtype=dtype), torch.empty(n, dtype=dtype)
    for a, scale in zip(starts, scales, strict=True):
        run = slice(a, a + chunk)
        v = torch.ones(n)[run] if vector is None else vector[run]
        reference.apply_mask(expected[run], base[run], v, torch.from_numpy(symbols[run]), float(scale))
    whole.apply_packed_mask(found, base, torch.from_numpy(packed), kind, scales, chunk, vector)
    assert torch.equal(
        bits(found)[symbols.repeat(dtype.itemsize) == 0], bits(expected)[symbols.repeat(dtype.itemsize) == 0]
    )
    # A NaN that a sum gives has no fixed bits.
    both = found.isnan() & expected.isnan()
    assert torch.equal(bits(found.masked_fill(both, 0)), bits(expected.masked_fill(both, 0)))
    if dtype == base_dtype:
        whole.apply_packed_mask(base, base, torch.from_numpy(packed), kind, scales, chunk, vector)
        assert torch.equal(bits(base.masked_fill(both, 0)), bits(expected.masked_fill(both, 0)))


@settings(max_examples=examples(80), deadline=None)
@given(DTYPES, DTYPES, st.sampled_from([4, 8]), SIZES, st.integers(10, 14), st.integers(0, 2**32))
def test_deltas_equal_the_reference(
    dtype: torch.dtype, base_dtype: torch.dtype, width: int, n: int, chunk_bits: int, seed: int
) -> None:
    rng, chunk = np.random.default_rng(seed), 1 << chunk_bits
    base = values(rng, n, base_dtype)
    starts = range(0, n, chunk)
    tables = values(rng, len(starts) << width, torch.float32, finite=True).reshape(len(starts), -1)
    indices = rng.integers(0, 1 << width, n).astype(np.uint8)
    packed, expected = [], torch.empty(n, dtype=dtype)
    for a, table in zip(starts, tables, strict=True):
        own = indices[a : a + chunk]
        reference.apply_delta(expected[a : a + chunk], base[a : a + chunk], table[torch.from_numpy(own).long()])
        own = own if width == 8 else np.append(own, np.zeros(len(own) % 2, np.uint8))
        packed.append(own if width == 8 else own[0::2] | own[1::2] << 4)
    found = torch.empty(n, dtype=dtype)
    whole.apply_packed_delta(found, base, torch.from_numpy(np.concatenate(packed)), width, tables, chunk)
    both = found.isnan() & expected.isnan()
    assert torch.equal(bits(found.masked_fill(both, 0)), bits(expected.masked_fill(both, 0)))


@settings(max_examples=examples(60), deadline=None)
@given(
    st.sampled_from(TALL),
    st.sampled_from(["binary", "signed"]),
    st.integers(1, 5000),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_packed_symbols_are_the_symbols(codec: str, kind: str, n: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    symbols = (rng.random(n) < share**4).astype(np.uint8)
    if kind == "signed":
        symbols *= rng.integers(1, 3, n).astype(np.uint8)
    coded = codecs.MASK[codec].encode(symbols, kind)
    assert (codecs.MASK[codec].decode_packed(coded, kind, n) == reference.pack(symbols, kind)).all()
    assert (codecs.MASK[codec].decode(coded, kind, n) == symbols).all()


@settings(max_examples=examples(60), deadline=None)
@given(st.sampled_from(["q4", "q5", "q8"]), st.integers(1, 5000), st.floats(0, 1), st.integers(0, 2**32))
def test_levels_are_the_values(codec: str, n: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = codecs.VECTOR[codec]
    coded = found.encode((rng.standard_normal(n) * (rng.random(n) < share**2)).astype(np.float32))
    levels = found.decode_levels(coded, n)
    assert levels is not None
    indices = (
        levels.packed if levels.bits == 8 else np.stack([levels.packed & 15, levels.packed >> 4], 1).reshape(-1)[:n]
    )
    assert (levels.table[indices].view(np.uint32) == found.decode(coded, n).view(np.uint32)).all()


@settings(max_examples=examples(150), deadline=None)
@given(
    DTYPES,
    DTYPES,
    st.sampled_from(["binary", "signed"]),
    SIZES,
    st.floats(0, 1),
    st.integers(1, 5000),
    st.integers(0, 2**32),
)
def test_gaps_equal_the_reference(
    dtype: torch.dtype, base_dtype: torch.dtype, kind: str, n: int, share: float, step: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    base = values(rng, n, base_dtype)
    symbols = (rng.random(n) < share**4).astype(np.uint8)
    if kind == "signed":
        symbols *= rng.integers(1, 3, n).astype(np.uint8)
    scale = float(np.float32(rng.standard_normal()))
    expected, found = torch.empty(n, dtype=dtype), torch.empty(n, dtype=dtype)
    reference.apply_mask(expected, base, torch.ones(n), torch.from_numpy(symbols), scale)
    steps = decoding().gaps(*gaps_of(symbols, kind), kind, n, scale, dtype)
    for _ in range(2):  # every beginning is one of its own
        run = steps.begin()
        step = -(-max(step, n // 30) // 8) * 8  # many runs take long, and are no different
        for a in range(0, n, step):
            run(found[a : a + step], base[a : a + step])
        if dtype == base_dtype:  # else a NaN becomes some NaN
            kept = symbols.repeat(dtype.itemsize) == 0
            assert torch.equal(bits(found)[kept], bits(expected)[kept])
        both = found.isnan() & expected.isnan()
        assert torch.equal(bits(found.masked_fill(both, 0)), bits(expected.masked_fill(both, 0)))
    if dtype == base_dtype:
        steps.begin()(base, base)
        assert torch.equal(bits(base.masked_fill(both, 0)), bits(expected.masked_fill(both, 0)))


@pytest.mark.parametrize("scale", [2.0**-26, 2.0**-24, 1.5 * 2.0**-25, 2.0**-14, 1.0, 0.37, 32.0, 3e4, 1e30])
def test_every_float16_is_added_to_as_by_the_reference(scale: float) -> None:
    base = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    symbols = np.where(base.isnan().numpy(), 0, np.arange(1 << 16) % 2 + 1).astype(np.uint8)
    scale = float(np.float32(scale))
    expected = torch.empty_like(base)
    reference.apply_mask(expected, base, torch.ones(len(base)), torch.from_numpy(symbols), scale)
    # A NaN sends its run to the reference: those are taken out, so that all others are the backend's own.
    base, kept, symbols = base[~base.isnan()], expected[~base.isnan()], symbols[~base.isnan().numpy()]
    found = torch.empty_like(base)
    decoding().gaps(*gaps_of(symbols, "signed"), "signed", len(base), scale, torch.float16).begin()(found, base)
    assert torch.equal(bits(found), bits(kept))
    decoding().mask(reference.pack(symbols, "signed"), "signed", len(base), scale, torch.float16).begin()(found, base)
    assert torch.equal(bits(found), bits(kept))


def gaps_of(symbols: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Gaps and signs as the format has them, written down one by one."""
    gaps: list[int] = []
    marks = np.flatnonzero(symbols)
    for zeros in (np.diff(marks, prepend=-1) - 1).tolist():
        gaps += [255] * (zeros // 255) + [zeros % 255]
    packed = np.packbits(symbols[marks] == 2, bitorder="little") if kind == "signed" else np.empty(0, np.uint8)
    return np.array(gaps, np.uint8), packed
