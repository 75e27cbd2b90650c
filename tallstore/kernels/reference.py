"""The truth: what a decoder computes, written to be read. Specification: `spec/arithmetic.md`.

    θ̂ = round_D( f32(θ0) + f32(s·v) )   where the symbol is 1 (and − where it is 2)
    θ̂ = round_D( θ0 )                   where it is 0: θ0 itself, bit for bit, when D is the base's type

Products and sums are float32, rounded once each, never fused; float64 throughout when D is float64.

Torch is loaded by what computes with it: codes are read and checked without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]

SYMBOL_BITS = {"binary": 1, "signed": 2}
"""Bits a packed symbol takes, by kind of mask."""

_FOUR = (
    np.stack([(np.arange(256) >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1).astype(np.uint8).view(np.uint32)[:, 0]
)
"""The four symbols of every byte, as one word: looked up four times as fast as a row of a table."""


def packed_size(kind: str, n: int) -> int:
    """Bytes that n packed symbols take."""
    return -(-n * SYMBOL_BITS[kind] // 8)


def pack(symbols: Bytes, kind: str) -> Bytes:
    """Pack uint8 symbols, shape (N,), into little-endian bits; the last byte is filled with zeros."""
    if kind == "binary":
        return np.packbits(symbols, bitorder="little")
    padded = np.zeros(-(-len(symbols) // 4) * 4, np.uint8)
    padded[: len(symbols)] = symbols
    four = padded.reshape(-1, 4)
    packed: Bytes = (four[:, 0] | four[:, 1] << 2 | four[:, 2] << 4 | four[:, 3] << 6).astype(np.uint8)
    return packed


def unpack(packed: Bytes, kind: str, n: int) -> Bytes:
    """The inverse of `pack`: uint8 symbols, shape (n,)."""
    if kind == "binary":
        return np.unpackbits(packed, count=n, bitorder="little")
    return _FOUR[packed].view(np.uint8)[:n]


def packed_is_valid(packed: Bytes, kind: str, n: int) -> bool:
    """Whether packed symbols are ones a writer may write: no symbol 3, zeros behind the last."""
    bits = n * SYMBOL_BITS[kind]
    if bits % 8 and packed[-1] >> (bits % 8):
        return False
    return kind == "binary" or not np.any(packed & (packed >> 1) & 0x55)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which tensors of type `dtype` are computed."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32


def apply_mask(out: Tensor, base: Tensor, vector: Tensor, symbols: Tensor, scale: float = 1.0) -> None:
    """Write θ̂ into `out`.

    Args:
        out: shape (N,), the task's type D. May be `base` itself.
        base: θ0, shape (N,), any maskable type.
        vector: v, shape (N,), float32.
        symbols: shape (N,), uint8: 0, 1 or 2.
        scale: s, exactly a float32.
    """
    import torch

    kind = wide(out.dtype)
    start = base.to(kind)
    step = vector.to(kind) * torch.tensor(scale, dtype=kind)
    moved = torch.where(symbols == 2, start - step, start + step)
    out.copy_(torch.where(symbols == 0, base.to(out.dtype), moved.to(out.dtype)))


def difference(original: Bytes, decoded: Bytes, item: int) -> Bytes:
    """What turns decoded elements into the original's: their difference as integers, zigzag, little-endian words.

    d = original − decoded modulo 2^w, read as signed; stored is 2d where d ≥ 0 and −2d − 1 where d < 0: near values
    become small numbers, whose upper bytes are zero. Both inputs are bytes of elements of `item` bytes.
    """
    word = np.dtype(f"<u{item}")
    d = (original.view(word) - decoded.view(word)).view(f"<i{item}")
    zigzag: Bytes = ((d << 1) ^ (d >> (8 * item - 1))).view(np.uint8)
    return zigzag


def undo_difference(stored: Bytes, decoded: Bytes, item: int) -> Bytes:
    """The inverse of `difference`: the original's bytes."""
    word = np.dtype(f"<u{item}")
    z = stored.view(word)
    d = (z >> 1) ^ (~(z & 1) + 1)
    original: Bytes = (decoded.view(word) + d.astype(word, copy=False)).view(np.uint8)
    return original


def apply_delta(out: Tensor, base: Tensor, delta: Tensor) -> None:
    """Write round_D(f32(θ0) + d) into `out`; d is float32, shape (N,)."""
    kind = wide(out.dtype)
    out.copy_((base.to(kind) + delta.to(kind)).to(out.dtype))
