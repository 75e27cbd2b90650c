"""Decoding on a GPU gives the bits of `kernels.reference`, whatever the types, the sizes and the elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from elements import DTYPES, SIZES, anything, assert_same, bits
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples
from torch import Tensor

from tallstore.kernels import reference

pytest.importorskip("triton")
from tallstore.kernels.gpu.decode import apply_packed_delta, apply_packed_mask

CHUNK = 1024
SEEDS = st.integers(0, 2**32)


def chunks(n: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


def pack_nibbles(indices: Tensor) -> Tensor:
    even = torch.nn.functional.pad(indices, (0, len(indices) % 2)).view(-1, 2)
    return even[:, 0] | even[:, 1] << 4


def by_cpu(base: Tensor, dtype: torch.dtype, vector: Tensor, symbols: Tensor, scales: Tensor) -> Tensor:
    out = torch.empty(len(base), dtype=dtype)
    for cut, scale in zip(chunks(len(base)), scales.tolist(), strict=True):
        reference.apply_mask(out[cut], base[cut], vector[cut], symbols[cut], scale)
    return out


def symbols_and_scales(n: int, kind: str, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    symbols = torch.randint(0, 2 if kind == "binary" else 3, (n,), generator=g).to(torch.uint8)
    scales = torch.rand(len(chunks(n)), generator=g) * 2
    scales[:: 1 + seed % 3] = 1.0
    return symbols, scales


def packed_by_chunk(symbols: Tensor, kind: str) -> Tensor:
    return torch.from_numpy(
        np.concatenate([reference.pack(symbols[cut].numpy(), kind) for cut in chunks(len(symbols))])
    )


@settings(max_examples=examples(80), deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from(["binary", "signed"]), SIZES, SEEDS, st.data())
def test_masks(device: Any, dtype: Any, base_dtype: Any, kind: str, n: int, seed: int, data: st.DataObject) -> None:
    base = anything(n, base_dtype, seed)
    symbols, scales = symbols_and_scales(n, kind, seed)
    how = data.draw(st.sampled_from(["ones", "floats", "levels"]))
    vector, given_vector, tables = torch.ones(n), None, None
    if how == "floats":
        vector = anything(n, torch.float32, seed + 1).nan_to_num()
        given_vector = vector.to(device)
    elif how == "levels":
        tables = anything(16 * len(chunks(n)), torch.float32, seed + 2).nan_to_num().view(-1, 16)
        indices = torch.randint(0, 16, (n,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        vector = tables[torch.arange(n) // CHUNK, indices.long()]
        given_vector, tables = pack_nibbles(indices).to(device), tables.to(device)
    there = base.clone().to(device)
    in_place = dtype == base_dtype and data.draw(st.booleans())
    out = there if in_place else torch.empty(n, dtype=dtype, device=device)
    packed = packed_by_chunk(symbols, kind).to(device)
    apply_packed_mask(out, there, packed, kind, scales.to(device), CHUNK, given_vector, tables)
    passed = (symbols == 0) & (dtype == base_dtype)
    assert_same(out, by_cpu(base, dtype, vector, symbols, scales), passed=passed)


@settings(max_examples=examples(40), deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from([4, 8]), SIZES, SEEDS)
def test_deltas(device: Any, dtype: Any, base_dtype: Any, width: int, n: int, seed: int) -> None:
    base = anything(n, base_dtype, seed)
    tables = anything(len(chunks(n)) << width, torch.float32, seed + 1).nan_to_num().view(-1, 1 << width)
    indices = torch.randint(0, 1 << width, (n,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = indices if width == 8 else pack_nibbles(indices)
    out = torch.empty(n, dtype=dtype, device=device)
    apply_packed_delta(out, base.to(device), packed.to(device), width, tables.to(device), CHUNK)
    wanted = torch.empty(n, dtype=dtype)
    reference.apply_delta(wanted, base, tables[torch.arange(n) // CHUNK, indices.long()])
    assert_same(out, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_ties_are_rounded_to_even(device: Any, dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).float()
    every = every[every.isfinite()].sort().values
    # Halfway between neighbours, and just to either side of it.
    halves = ((every[1:].double() + every[:-1].double()) / 2).float()
    halves = halves[::5].contiguous()
    values = torch.cat([halves, *(halves.nextafter(torch.tensor(end)) for end in (-torch.inf, torch.inf))])
    n = len(values)
    out, base = torch.empty(n, dtype=dtype, device=device), torch.zeros(n, dtype=dtype, device=device)
    packed = torch.full((-(-n // 8),), 255, dtype=torch.uint8, device=device)
    scales = torch.ones(len(chunks(n)), device=device)
    apply_packed_mask(out, base, packed, "binary", scales, CHUNK, values.to(device))
    wanted = (values + 0.0).to(dtype)
    assert_same(out, wanted)
    assert (bits(wanted)[: len(halves)] & 1 == 0).float().mean() > 0.99, "these are ties"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_product_and_sum_are_rounded_one_by_one(device: Any, dtype: torch.dtype) -> None:
    n = 2000
    g = torch.Generator().manual_seed(3)
    base, vector = torch.randn(n, generator=g, dtype=torch.float64).to(dtype), torch.randn(n, generator=g)
    scales = torch.tensor([0.7, 1.1])
    symbols = torch.ones(n, dtype=torch.uint8)
    wanted = by_cpu(base, dtype, vector, symbols, scales)
    step = scales.double()[torch.arange(n) // CHUNK] * vector.double()
    if dtype == torch.float32:
        assert not torch.equal((base.double() + step).float(), wanted), "a fused multiply-add differs somewhere"
    out = torch.empty(n, dtype=dtype, device=device)
    packed = packed_by_chunk(symbols, "binary").to(device)
    apply_packed_mask(out, base.to(device), packed, "binary", scales.to(device), CHUNK, vector.to(device))
    assert_same(out, wanted)


@pytest.mark.parametrize("kind", ["binary", "signed"])
def test_tensors_may_begin_anywhere(device: Any, kind: str) -> None:
    n = 3001
    base, vector = anything(n + 3, torch.float16, 1)[3:], anything(n + 1, torch.float32, 2).nan_to_num()[1:]
    symbols, scales = symbols_and_scales(n, kind, 5)
    packed = torch.cat([torch.zeros(1, dtype=torch.uint8), packed_by_chunk(symbols, kind)]).to(device)[1:]
    memory = torch.full((n + 10,), 7.0, dtype=torch.float16, device=device)
    apply_packed_mask(memory[5:-5], base.to(device), packed, kind, scales.to(device), CHUNK, vector.to(device))
    assert_same(memory[5:-5], by_cpu(base, torch.float16, vector, symbols, scales), passed=symbols == 0)
    assert (memory[:5] == 7).all()
    assert (memory[-5:] == 7).all()


def test_no_elements(device: Any) -> None:
    nothing = torch.empty(0, device=device)
    none = torch.empty(0, dtype=torch.uint8, device=device)
    apply_packed_mask(nothing, nothing, none, "binary", nothing, CHUNK)
    apply_packed_delta(nothing, nothing, none, 4, nothing.view(0, 16), CHUNK)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs the memory of a GPU")
def test_more_elements_than_32_bits_count(device: Any) -> None:
    n, chunk = (1 << 31) + 4099, 1 << 20
    base = torch.zeros(n, dtype=torch.bfloat16, device=device)
    packed = torch.full((-(-n // 8),), 0b01010101, dtype=torch.uint8, device=device)
    apply_packed_mask(base, base, packed, "binary", torch.ones(-(-n // chunk), device=device), chunk)
    for cut in (slice(0, 4096), slice((1 << 31) - 4096, 1 << 31), slice(1 << 31, n)):
        found = base[cut].cpu()
        assert_same(found, (torch.arange(len(found)) % 2 == 0).to(torch.bfloat16))
