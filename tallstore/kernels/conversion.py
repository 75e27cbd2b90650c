"""Elements of one float type as those of another (`spec/arithmetic.md`, Rules), without torch.

Every rounding is to nearest, ties to even, and what becomes F16 or BF16 goes through F32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.kernels.reference import Bytes

__all__ = ["convert", "from_bf16", "to_bf16"]

_FLOATS: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The words of numbers, none a NaN, rounded to bfloat16."""
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Half a step, less one where the upper half is even: it carries over exactly where it must.
    upper: npt.NDArray[np.uint16] = ((words + (words >> 16 & 1) + np.uint32(0x7FFF)) >> 16).astype(np.uint16)
    return upper


def from_bf16(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The numbers of words: a bfloat16 is the upper half of a float32."""
    values: npt.NDArray[np.float32] = (words.astype(np.uint32) << 16).view(np.float32)
    return values


def convert(raw: Bytes, dtype: str, out: Bytes, to: str) -> bool:
    """Convert elements between two types, both as little-endian bytes.

    Args:
        raw: elements of `dtype`.
        dtype: F64, F32, F16 or BF16.
        out: as many elements of `to`.
        to: F64, F32, F16 or BF16.

    Returns:
        False where one of them is a NaN, whose image is not fixed: then nothing was done.
    """
    values = from_bf16(raw.view("<u2")) if dtype == "BF16" else raw.view(_FLOATS[dtype])
    if np.isnan(values).any():
        return False
    with np.errstate(over="ignore", under="ignore"):
        wide: npt.NDArray[Any] = values.astype(np.float64 if to == "F64" else np.float32)
        if to == "BF16":
            out.view("<u2")[:] = to_bf16(wide)
        else:
            out.view(_FLOATS[to])[:] = wide
    return True
