"""The element types that an archive can hold, under safetensors' names. No torch here: sizes and meanings only.

Types of fewer than eight bits are packed without gaps, and nothing addresses a single element of theirs: wherever
elements are counted to cut, read or store a tensor, it is their bytes that are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tallstore.errors import FormatError

ITEM_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits per element."""

PACKED = frozenset(dtype for dtype, bits in ITEM_BITS.items() if bits < 8)
"""Types whose elements are counted by their bytes."""

ITEM_BYTES = {dtype: max(1, bits // 8) for dtype, bits in ITEM_BITS.items()}
"""Bytes per element as elements are counted: 1 for packed types."""

MASKABLE = ("F64", "F32", "F16", "BF16")
"""The types whose task vectors can be masked; tensors of any other type are stored without loss where they differ."""


def check_dtype(dtype: object, where: str) -> str:
    """Return `dtype`, or raise FormatError if it is none of the closed table."""
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise FormatError(f"{where}: element type {dtype!r} is unknown; known are {', '.join(ITEM_BYTES)}")
    return dtype


def count(dtype: str | None, shape: Sequence[int]) -> int:
    """Elements of a tensor as they are counted: bytes of packed types, which end with a whole one."""
    elements = math.prod(shape)
    return elements * ITEM_BITS[dtype] // 8 if dtype in PACKED else elements


def check_count(dtype: str, shape: Sequence[int], where: str) -> int:
    """The same; raises FormatError for elements of a packed type that do not fill their last byte."""
    if dtype in PACKED and math.prod(shape) * ITEM_BITS[dtype] % 8:
        raise FormatError(f"{where}: elements of {dtype} of shape {list(shape)} do not fill whole bytes")
    return count(dtype, shape)


def size_of(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    return count(dtype, shape) * ITEM_BYTES[dtype]
