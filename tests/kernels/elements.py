"""What the tests of kernels share: elements of every sort, and what it means that two tensors are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SIZES = st.sampled_from([1, 2, 7, 8, 9, 1023, 1024, 1025, 2047, 2051, 3072, 4099])
"""Around whole bytes, whole blocks and whole chunks."""

_SPECIAL = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    float("inf"),
    float("-inf"),
    float("nan"),
    3e38,
    -3e38,
    65504.0,
    65520.0,
    1e-45,
    -1e-40,
)
_PAYLOADS = {
    torch.float32: (0x7FC12345, -0x3ABCDF, 0x7F800001, 1, 0x7FFFFF, 0x00800000),
    torch.float64: (0x7FF8123456789ABC, 0x7FF0000000000001, -0x7123456789ABD, 1, 0xFFFFFFFFFFFFF),
    torch.float16: (0x7E01, 0x7C01, -0x1FF, 1, 0x3FF, 0x400),
    torch.bfloat16: (0x7FC1, 0x7F81, -0x3F, 1, 0x7F, 0x80),
}
"""Quiet and signalling NaNs of either sign, the smallest and the largest subnormal, the smallest normal number."""


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(WORDS[tensor.element_size()])


def special(dtype: torch.dtype) -> Tensor:
    words = torch.tensor(_PAYLOADS[dtype], dtype=torch.int64).to(WORDS[dtype.itemsize])
    return torch.cat([torch.tensor(_SPECIAL, dtype=torch.float64).to(dtype), words.view(dtype)])


def anything(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Ordinary values, values of any size, any bits at all, and special ones, mixed. Shape (n,)."""
    g = torch.Generator().manual_seed(seed)
    ordinary = torch.randn(n, generator=g, dtype=torch.float64)
    spread = ordinary * 2.0 ** torch.randint(-150, 128, (n,), generator=g)
    raw = torch.randint(-(1 << 63), (1 << 63) - 1, (n,), generator=g).view(WORDS[dtype.itemsize])[:n].view(dtype)
    odd = special(dtype)[torch.randint(0, len(special(dtype)), (n,), generator=g)]
    which = torch.randint(0, 4, (n,), generator=g)
    return torch.stack([ordinary.to(dtype), spread.to(dtype), raw, odd])[which, torch.arange(n)]


def assert_same(found: Tensor, wanted: Tensor, *, passed: Tensor | None = None) -> None:
    """Equal in every bit, but that one NaN is as good as another where elements did not merely pass through."""
    found = found.cpu()
    assert found.dtype == wanted.dtype
    differ = bits(found) != bits(wanted)
    both_nan = found.isnan() & wanted.isnan()
    if passed is not None:
        both_nan &= ~passed
    wrong = differ & ~both_nan
    assert not wrong.any(), (wrong.nonzero()[:4].flatten().tolist(), found[wrong][:4], wanted[wrong][:4])


def gaps_of(symbols: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Gaps and packed signs of symbols, as `spec/codecs/adaptive.md` says."""
    marks = np.flatnonzero(symbols)
    zeros = np.diff(marks, prepend=-1) - 1
    gaps = [byte for gap in zeros for byte in (*(255,) * (gap // 255), gap % 255)]
    return np.array(gaps, np.uint8), np.packbits(symbols[marks] == 2, bitorder="little")
