"""What a codec is: one chunk of one tensor in, bytes out, and back. Stateless; safe to share between threads.

Every `decode` is told how much must come out, and raises FormatError or DamagedError for bytes that hold anything
else. Codecs never see names, files or whole tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Buffer = Any
"""bytes, bytearray, memoryview or a uint8 array."""


class MaskCodec(ABC):
    """Symbols (0, 1 and, in a signed mask, 2) ⇄ bytes."""

    id: ClassVar[str]

    @abstractmethod
    def encode(self, symbols: Bytes, kind: str) -> bytes:
        """Code one chunk: uint8 symbols, shape (n,)."""

    @abstractmethod
    def decode(self, data: Buffer, kind: str, n: int) -> Bytes:
        """Give back exactly `n` symbols, all of them valid for the kind."""


class VectorCodec(ABC):
    """Multi-task vector (or a task's own delta), float32 ⇄ bytes. Lossy ones are exact on what they decoded."""

    id: str

    @abstractmethod
    def encode(self, values: Floats) -> bytes:
        """Code one chunk, shape (n,), all finite."""

    @abstractmethod
    def decode(self, data: Buffer, n: int) -> Floats:
        """Give back exactly `n` float32 values."""


class WholeCodec(ABC):
    """A whole tensor's elements as bytes ⇄ coded bytes, exactly."""

    id: ClassVar[str]

    @abstractmethod
    def encode(self, raw: Bytes, dtype: str) -> bytes:
        """Code one chunk's elements: little-endian bytes of `dtype`."""

    @abstractmethod
    def decode(self, data: Buffer, out: Bytes, dtype: str) -> None:
        """Fill `out`, which has exactly the size that the chunk's elements take."""
