"""A task's share of one tensor that is coded given the base's, kept as it is coded, in memory, to switch by.

Every chunk was decoded once when it was kept, so that applying it cannot fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from tallstore.codecs import ConditionalCodec
from tallstore.codecs.base import Bytes, Given
from tallstore.tensors import NAME, as_bytes

__all__ = ["CodedConditional"]


@dataclass(frozen=True)
class CodedConditional:
    """Coded chunks of N elements. Given `resident.PackedTensor`, and used as it is."""

    codec: ConditionalCodec
    codes: Tensor
    """Coded bytes of all chunks: uint8."""
    ends: tuple[int, ...]
    """Where each chunk ends in them."""
    chunk: int
    """Elements a chunk: a power of two."""

    @property
    def tensors(self) -> list[Tensor]:
        """All memory."""
        return [self.codes]

    def to(self, move: Callable[[Tensor], Tensor]) -> CodedConditional:  # noqa: ARG002 - the processor decodes it
        """The same: it stays in host memory."""
        return replace(self)

    def apply(self, out: Tensor, base: Tensor, start: int) -> None:
        """Write a run of elements that begins and ends where chunks do, or ends with the tensor.

        Args:
            out: shape (n,), the task's type.
            base: θ0, shape (n,), on the same device.
            start: the run's first element.
        """
        here = out if out.device.type == "cpu" else torch.empty(len(out), dtype=out.dtype)
        here.copy_(base)
        columns = cache(lambda: self.codec.columns(self._coded(0)))
        for at in range(0, len(out), self.chunk):
            index = (start + at) // self.chunk
            given = Given(columns=columns if index else None)
            self.codec.decode(self._coded(index), as_bytes(here[at : at + self.chunk]), NAME[out.dtype], given)
        if here is not out:
            out.copy_(here)

    def _coded(self, index: int) -> Bytes:
        """A chunk."""
        found: Bytes = self.codes[self.ends[index - 1] if index else 0 : self.ends[index]].numpy()
        return found
