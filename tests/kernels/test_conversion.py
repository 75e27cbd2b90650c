"""Conversions without torch are torch's, bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tallstore.codecs import VECTOR
from tallstore.kernels.conversion import convert, to_bf16
from tallstore.tensors import TORCH, convert_bytes

FLOATS = ("F64", "F32", "F16", "BF16")


def bits(seed: int) -> npt.NDArray[np.uint32]:
    """Float32 words: every upper half, with lower halves about the middle and any other."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    anything = np.random.default_rng(seed).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    return np.concatenate([*(upper | np.uint32(each) for each in lower), anything])


def numbers(dtype: str) -> npt.NDArray[np.uint8]:
    """Bytes of elements of a type, none a NaN: of 16 bits all that there are."""
    if dtype in {"F16", "BF16"}:
        tensor = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16)).view(TORCH[dtype])
    elif dtype == "F32":
        tensor = torch.from_numpy(bits(1)).view(torch.float32)
    else:
        single = torch.from_numpy(bits(2)).view(torch.float32).double()
        # Near what F32 and F16 round to, far beyond both, and about F64's own smallest.
        tensor = torch.cat([single * factor for factor in (1, 1 + 2**-30, 1 - 2**-40, 1e200, 1e-290)])
    kept = tensor[~tensor.isnan()].contiguous()
    found: npt.NDArray[np.uint8] = kept.view(torch.uint8).numpy()
    return found.copy()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("to", FLOATS)
def test_every_pair_of_types(dtype: str, to: str) -> None:
    raw = numbers(dtype)
    size = len(raw) // TORCH[dtype].itemsize * TORCH[to].itemsize
    ours, theirs = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    assert convert(raw, dtype, ours, to)
    convert_bytes(raw, dtype, theirs, to)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_is_left_to_others(dtype: str) -> None:
    raw = torch.tensor([1, float("nan")], dtype=TORCH[dtype]).view(torch.uint8).numpy()
    out = np.zeros(8, np.uint8)
    assert not convert(raw, dtype, out, "F32")
    assert not out.any()


def test_a_vector_of_bfloat16_is_rounded_as_torch_does() -> None:
    values = bits(3).view(np.float32)
    values = values[np.isfinite(values)]
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(to_bf16(values), wanted)
    assert VECTOR["bf16"].encode(values[::2]) == wanted[::2].tobytes()
