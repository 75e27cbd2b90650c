"""A base in fewer bits: its matrices rounded to bfloat16 as they are read.

An archive that keeps such a base has no other: its identity is that of the rounded tensors, and so is the θ0 of every
formula. What fine-tuning changed is still told from the base as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tallstore.checkpoints.base import Checkpoint, TensorInfo
from tallstore.checkpoints.quantized import find_quantized

__all__ = ["RoundedBase"]

_WIDE = {"F32", "F64"}
_LEAST = 4096
"""Elements from which on a tensor of two axes or more is rounded. Norms and biases matter more than their bytes."""
_FAR = 2.0**100
"""Magnitudes above this, NaN and Inf keep their tensor as it is: they could come out as other numbers than went in."""
_PIECE = 1 << 22


class RoundedBase(Checkpoint):
    """Another checkpoint's tensors, those that are large and of 32 or 64 bits in bfloat16 (nearest, ties to even)."""

    def __init__(self, origin: Checkpoint) -> None:
        self.origin = origin
        """The base as it was given."""
        self.where, self.ties, self.source = origin.where, origin.ties, origin.source
        self.files, self.left_out, self.layout = origin.files, origin.left_out, origin.layout
        self.model, self.far = origin.model, origin.far
        quantized = find_quantized(origin)
        kept: frozenset[str] = frozenset() if quantized is None else quantized.tensors
        self._rounded = frozenset(name for name in origin.tensors if name not in kept and self._can_be(name))
        self.tensors = {
            name: TensorInfo("BF16", info.shape) if name in self._rounded else info
            for name, info in origin.tensors.items()
        }

    def read(self, name: str, start: int, stop: int) -> Tensor:
        weights = self.origin.read(name, start, stop)
        return weights.to(torch.bfloat16) if name in self._rounded else weights

    def fingerprint(self) -> str:
        return f"bf16 of {self.origin.fingerprint()}"

    def close(self) -> None:
        self.origin.close()

    def _can_be(self, name: str) -> bool:
        info = self.origin.tensors[name]
        if info.dtype not in _WIDE or len(info.shape) < 2 or info.numel < _LEAST:
            return False
        for start in range(0, info.numel, _PIECE):
            low, high = self.origin.read(name, start, min(start + _PIECE, info.numel)).aminmax()
            if not (float(low) >= -_FAR and float(high) <= _FAR):  # a NaN is neither
                return False
        return True
