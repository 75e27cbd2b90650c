"""The second reader's numbers, written from `spec/arithmetic.md` alone: element types, rounding, and what is refused."""

from __future__ import annotations

import numpy as np

BYTES = {
    "F4": 1, "F6_E2M3": 1, "F6_E3M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Of packed types, whose elements are counted by their bytes."""
ROTATED = {"F64", "F32", "F16", "BF16"}
LEVELS = {"q8": 256, "q5": 32, "q4": 16}
SYMBOL_BITS = {"binary": 1, "signed": 2}


class Refused(Exception):
    """What was read is not what the specification allows."""


def must(holds: object, text: str) -> None:
    if not holds:
        raise Refused(text)


def to_work(data: bytes, dtype: str, work: type) -> np.ndarray:
    """W(x)"""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).astype(work)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(work)


def rounded(values: np.ndarray, dtype: str) -> bytes:
    """round_D(x)"""
    if dtype == "BF16":
        words = values.view(np.uint32)
        upper, lower = words >> np.uint32(16), words & np.uint32(0xFFFF)
        up = (lower > 0x8000) | ((lower == 0x8000) & (upper & np.uint32(1) == 1))
        return (upper + up).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def kept(data: bytes, base_dtype: str, dtype: str) -> bytes:
    """The base's element: bit for bit, or in another type."""
    if dtype == base_dtype:
        return data
    return rounded(to_work(data, base_dtype, np.float64 if dtype == "F64" else np.float32), dtype)


def chosen(symbols: np.ndarray, zero: bytes, other: bytes, dtype: str) -> bytes:
    """Elements of `zero` where the symbol is 0, else of `other`."""
    left, right = (np.frombuffer(data, np.uint8).reshape(-1, BYTES[dtype]) for data in (zero, other))
    return np.where(symbols[:, None] == 0, left, right).tobytes()


def restored(decoded: bytes, coded: bytes, size: int) -> bytes:
    """codecs/difference.md"""
    out = bytearray()
    for at in range(0, len(coded), size):
        z = int.from_bytes(coded[at : at + size], "little")
        d = z // 2 if z % 2 == 0 else -(z // 2) - 1
        out += ((int.from_bytes(decoded[at : at + size], "little") + d) % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(out) + decoded[len(coded) :]


def summed(rows: list[np.ndarray]) -> np.ndarray:
    """From left to right, beginning with the first."""
    total = rows[0].copy()
    for row in rows[1:]:
        total = total + row
    return total
