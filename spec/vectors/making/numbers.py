"""Tensors as bytes, deterministic noise, and the arithmetic of `spec/arithmetic.md` over numpy integers and floats."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
BYTES = {
    "F4": 1, "F6_E2M3": 1, "F6_E3M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Of packed types, whose elements are counted by their bytes."""
NEWER = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
"""Types of version 1.1."""


@dataclass(frozen=True)
class Tensor:
    """Element type, shape and bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape) * BITS.get(self.dtype, 8) // 8

    def cut(self, start: int, stop: int) -> bytes:
        """The bytes of some elements."""
        return self.data[start * BYTES[self.dtype] : stop * BYTES[self.dtype]]


def noise_bytes(seed: str, n: int) -> bytes:
    """Bytes that depend on the seed alone."""
    return hashlib.shake_256(seed.encode()).digest(n)


def noise(seed: str, n: int, low: int = 110, high: int = 126) -> npt.NDArray[np.float32]:
    """Finite float32 with all bits of the mantissa in use; biased exponents from `low` to `high`."""
    words = np.frombuffer(noise_bytes(seed, 4 * n), "<u4").copy()
    exponents = (words >> 9) % np.uint32(high - low + 1) + np.uint32(low)
    return ((words & np.uint32(0x807FFFFF)) | exponents << np.uint32(23)).view(np.float32)


def symbols(seed: str, n: int, kind: str, share: float = 0.4) -> npt.NDArray[np.uint8]:
    """Symbols of which about `share` are marks."""
    rolls = np.frombuffer(noise_bytes(seed, 2 * n), "<u2")
    marks = rolls < share * 65536
    signs = np.frombuffer(noise_bytes(seed + "±", n), np.uint8) & 1
    return (marks * (1 + signs if kind == "signed" else 1)).astype(np.uint8)


def floats(dtype: str, values: npt.ArrayLike, shape: Sequence[int] | None = None) -> Tensor:
    """A float tensor from numbers, rounded."""
    array = np.asarray(values)
    data = narrow(dtype, array.astype(np.float64 if dtype == "F64" else np.float32).reshape(-1))
    return Tensor(dtype, tuple(array.shape if shape is None else shape), data)


def bits(dtype: str, words: Sequence[int], shape: Sequence[int] | None = None) -> Tensor:
    """A tensor from its elements' bits."""
    data = b"".join(word.to_bytes(BYTES[dtype], "little") for word in words)
    return Tensor(dtype, (len(words),) if shape is None else tuple(shape), data)


def wide(dtype: str, data: bytes, work: str) -> Array:
    """W(x): elements as float32, or as float64 where `work` is F64."""
    kind = np.float64 if work == "F64" else np.float32
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).astype(kind)
    with np.errstate(all="ignore"):
        return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(kind)


def narrow(dtype: str, values: Array) -> bytes:
    """round_D(x): float32 (float64 where D is F64) to the bytes of D."""
    if dtype == "BF16":
        words = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype("<u2").tobytes()
    with np.errstate(all="ignore"):
        return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def converted(base: Tensor, dtype: str, count: int | None = None) -> bytes:
    """Leading elements of a base tensor in another type, or as they are."""
    data = base.cut(0, base.numel if count is None else count)
    return data if dtype == base.dtype else narrow(dtype, wide(base.dtype, data, dtype))


def masked(
    base: Tensor, dtype: str, vector: npt.ArrayLike, marks: npt.NDArray[np.uint8], scales: npt.ArrayLike = 1.0
) -> bytes:
    """θ̂ of as many leading elements as there are symbols. `scales`: one number, or one for each element."""
    n = len(marks)
    start = wide(base.dtype, base.cut(0, n), dtype)
    kind = start.dtype.type
    with np.errstate(all="ignore"):
        step = np.asarray(vector, np.float32)[:n].astype(kind) * np.asarray(scales, np.float32).astype(kind)
        moved = np.where(marks == 2, start - step, start + step)
    size = BYTES[dtype]
    kept = np.frombuffer(converted(base, dtype, n), np.uint8).reshape(n, size)
    new = np.frombuffer(narrow(dtype, moved), np.uint8).reshape(n, size)
    return np.where((marks == 0)[:, None], kept, new).tobytes()


def shifted(base: Tensor, dtype: str, delta: npt.ArrayLike) -> bytes:
    """θ̂ of a `delta` entry."""
    values = np.asarray(delta, np.float32)
    start = wide(base.dtype, base.cut(0, len(values)), dtype)
    with np.errstate(all="ignore"):
        return narrow(dtype, start + values.astype(start.dtype))
