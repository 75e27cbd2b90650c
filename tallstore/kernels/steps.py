"""What a task adds to the base in one chunk, whichever backend adds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.kernels import reference
from tallstore.kernels.fill import ChunkMemory, FillSource

__all__ = ["TILE", "Run", "Steps"]

TILE = 1 << 15
"""Elements: a float32 tile of base, step and output fit a core's second-level cache. Torch runs so short operations in
the calling thread."""

Run = Callable[[Tensor, Tensor], None]
"""Writes θ̂ of a run of elements: `out`, shape (n,), the task's type D; `base`, θ0, shape (n,), any maskable type. They
may be the same memory."""


class Steps(ABC):
    """What is added to the base in one chunk. Several threads may share it."""

    def __init__(self, dtype: torch.dtype, *codes: npt.NDArray[Any]) -> None:
        """Of a chunk.

        Args:
            dtype: of the output, which decides in what type is computed.
            *codes: what the steps hold in memory.
        """
        self._wide = np.dtype(np.float64 if reference.wide(dtype) == torch.float64 else np.float32)
        self.nbytes = sum(code.nbytes for code in codes)

    @abstractmethod
    def begin(self) -> Run:
        """What writes the chunk's elements run by run, from its first on; all but the last a multiple of 8."""

    fills: bool = False
    """Whether there is `fill`."""

    def fill(self, part: ChunkMemory, source: FillSource) -> bool:
        """Write the whole chunk in one call, its base out of a source.

        Args:
            part: where it belongs, in a tensor of the task's type, which is the base's too.
            source: of the base's bytes.

        Returns:
            whether that was done; where it was not, `part` holds anything.
        """
        raise NotImplementedError
