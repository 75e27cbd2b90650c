"""The element types that an archive can hold, under safetensors' names. No torch here: sizes and meanings only."""

from __future__ import annotations

from tallstore.errors import FormatError

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes an element."""

MASKABLE = ("F64", "F32", "F16", "BF16")
"""The types whose task vectors can be masked; tensors of any other type are stored whole where they differ."""


def check_dtype(dtype: object, where: str) -> str:
    """Return `dtype`, or raise FormatError if it is none of the closed table."""
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise FormatError(f"{where}: element type {dtype!r} is unknown; known are {', '.join(ITEM_BYTES)}")
    return dtype
