"""Masks over ones by the gaps between their marks: what is not marked is never looked at, and what is takes one sum.

Compiled (`compiled.add_gaps`); where it is not, packed symbols are the way (`tiled.MaskSteps`). The same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.kernels import cpu, fast
from tallstore.kernels.cpu import Bytes
from tallstore.kernels.fill import Part, Source, filled
from tallstore.kernels.tiled import TILE, Run, Steps

__all__ = ["GapSteps"]


class GapSteps(Steps):
    """A mask over a vector that is 1 everywhere, of one chunk."""

    def __init__(self, gaps: Bytes, signs: Bytes, kind: str, scale: float, dtype: torch.dtype) -> None:
        """Of one chunk.

        Args:
            gaps: zeros before each mark: bytes 255 (go on), then one below 255; no mark outside the chunk.
            signs: of a signed mask: a bit a mark, little-endian, 1 for −.
            kind: binary or signed.
            scale: s, exactly a float32.
            dtype: of the output.
        """
        super().__init__(dtype, gaps, signs)
        self.gaps, self.signs, self.scale = gaps, signs, scale
        self._kind, self.fills = kind, dtype in _STRAIGHT
        self._dtype = dtype

    @staticmethod
    def there() -> bool:
        """Whether the kernels are."""
        return fast.kernels() is not None

    def begin(self) -> Run:
        """As everywhere; each of these goes through the gaps by itself."""
        compiled = fast.kernels()
        assert compiled is not None
        state = np.zeros(4, np.uint64)
        codes = (state, self.gaps, self.signs)
        plus, minus = self._wide.type(self.scale), -self._wide.type(self.scale)

        def run(out: Tensor, base: Tensor) -> None:
            if base.dtype == out.dtype and out.dtype != torch.float16:
                if out.data_ptr() != base.data_ptr():
                    out.copy_(base)
                if out.dtype == torch.bfloat16:
                    compiled.add_gaps_16(out.detach().view(torch.uint16).numpy(), *codes, plus, minus, True)
                else:
                    compiled.add_gaps(out.detach().numpy(), *codes, plus, minus)
                return
            if base.dtype == out.dtype and _half(out, base, codes, plus, minus):
                return
            for a in range(0, len(out), TILE):
                wide = base[a : a + TILE].to(cpu.wide(out.dtype), copy=True)
                if bool(wide.isnan().any()):  # types change in between: what is not marked may lose its bits
                    marks = np.zeros(len(wide), np.float32)
                    compiled.add_gaps(marks, *codes, np.float32(1), np.float32(2))
                    self._by_reference(out[a : a + TILE], base[a : a + TILE], marks.astype(np.uint8))
                    continue
                compiled.add_gaps(wide.numpy(), *codes, plus, minus)
                out[a : a + TILE].copy_(wide)

        return run

    def fill(self, part: Part, source: Source) -> bool:
        """Whatever the base holds, but for a NaN of float16 at a mark."""
        plus, minus = self._wide.type(self.scale), -self._wide.type(self.scale)
        codes = (np.zeros(4, np.uint64), self.gaps, self.signs, plus, minus)
        if self._dtype in _NUMBERS:
            return filled("gaps", part, source, *codes)
        return filled("gaps_16", part, source, *codes, self._dtype == torch.bfloat16)

    def _by_reference(self, out: Tensor, base: Tensor, symbols: Bytes) -> None:
        cpu.apply_mask(out, base, torch.ones(len(out)), torch.from_numpy(symbols), self.scale)


def _half(out: Tensor, base: Tensor, codes: tuple[npt.NDArray[np.uint64], Bytes, Bytes], plus: Any, minus: Any) -> bool:
    """A run of float16; whether it was written. If not, for a NaN, `codes` and `base` are as they were."""
    before, compiled = codes[0].copy(), fast.kernels()
    own = base.clone() if out.data_ptr() == base.data_ptr() else out.copy_(base)
    assert compiled is not None
    if not compiled.add_gaps_16(own.detach().view(torch.uint16).numpy(), *codes, plus, minus, False):
        codes[0][:] = before
        return False
    if own is not out:
        out.copy_(own)
    return True


_NUMBERS = {torch.float32, torch.float64}
_STRAIGHT = {*_NUMBERS, torch.bfloat16, torch.float16}
"""Types whose elements are changed where they lie."""
