"""Whole tensors from packed codes, decoded on the device that they lie on."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tallstore.kernels import packed

__all__ = ["Kernels", "kernels_for"]


class Kernels(Protocol):
    """What decodes whole tensors of one device. See `kernels.packed` for what the arguments are."""

    def apply_packed_mask(
        self,
        out: Tensor,
        base: Tensor,
        packed: Tensor,
        kind: str,
        scales: Tensor,
        chunk: int,
        vector: Tensor | None = None,
    ) -> None:
        """θ̂ from packed symbols."""

    def apply_packed_delta(
        self, out: Tensor, base: Tensor, packed: Tensor, bits: int, tables: Tensor, chunk: int
    ) -> None:
        """θ̂ from packed indices."""


def kernels_for(device_type: str) -> Kernels:
    """The kernels for tensors on `cpu` or `cuda`."""
    if device_type == "cpu":
        return packed
    from tallstore.kernels.gpu import decode

    return decode
