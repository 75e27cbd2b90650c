"""What a codec is: one chunk of one tensor in, bytes out, and back. Stateless; safe to share between threads.

Every `decode` is told how much must come out, and raises FormatError or DamagedError for bytes that hold anything
else. Codecs never see names, files or whole tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.kernels import reference
from tallstore.kernels.pairs import Pairs

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Buffer = Any
"""bytes, bytearray, memoryview or a uint8 array."""


class Marks(NamedTuple):
    """Symbols as the gaps between those that are not 0: all in range."""

    number: int
    """Symbols that are not 0."""
    gaps: Bytes
    """Zeros before each of them: bytes 255 (go on), then one below 255."""
    signs: Bytes
    """Of a signed mask: a bit each, little-endian, 1 where the symbol is 2. Empty of a binary one."""


class MaskCodec(ABC):
    """Symbols (0, 1 and, in a signed mask, 2) ⇄ bytes."""

    id: ClassVar[str]

    def encode(self, symbols: Bytes, kind: str) -> bytes:
        """Code one chunk: uint8 symbols, shape (n,)."""
        return self.encode_packed(reference.pack(symbols, kind), kind, len(symbols))

    @abstractmethod
    def encode_packed(self, packed: Bytes, kind: str, n: int) -> bytes:
        """Code one chunk of n symbols, packed by `kernels.reference.pack`."""

    @abstractmethod
    def decode_packed(self, data: Buffer, kind: str, n: int) -> Bytes:
        """Give back exactly `n` symbols as `kernels.reference.pack` packs them, all of them valid for the kind."""

    def decode_marks(self, data: Buffer, kind: str, n: int) -> Marks | None:  # noqa: ARG002 - part of the interface
        """The same symbols as gaps, from codecs that have them so; None where `decode_packed` is the way."""
        return None

    def decode(self, data: Buffer, kind: str, n: int) -> Bytes:
        """The same, unpacked: uint8, shape (n,)."""
        return reference.unpack(self.decode_packed(data, kind, n), kind, n)


class IndexedValues(NamedTuple):
    """Values as indices into a table."""

    table: Floats
    """Shape (K,)."""
    packed: Bytes
    """Indices below K: one a byte, or two, the first in the low half."""
    bits: int
    """Of an index: 8 or 4."""

    def values(self, n: int) -> Floats:
        """Every index looked up: shape (n,)."""
        return self.table[self.packed] if self.bits == 8 else Pairs(self.packed, self.table).values[:n]


class VectorCodec(ABC):
    """Multi-task vector (or a task's own delta), float32 ⇄ bytes. Lossy ones are exact on what they decoded."""

    id: str

    @abstractmethod
    def encode(self, values: Floats) -> bytes:
        """Code one chunk, shape (n,), all finite."""

    @abstractmethod
    def decode(self, data: Buffer, n: int) -> Floats:
        """Give back exactly `n` float32 values."""

    def decode_levels(self, data: Buffer, n: int) -> IndexedValues | None:  # noqa: ARG002 - part of the interface
        """The same values as indices into a table, from codecs that have one."""
        return None


class WholeCodec(ABC):
    """A whole tensor's elements as bytes ⇄ coded bytes, exactly."""

    id: ClassVar[str]

    @abstractmethod
    def encode(self, raw: Bytes, dtype: str) -> bytes:
        """Code one chunk's elements: little-endian bytes of `dtype`."""

    def encode_pieces(self, raw: Bytes, dtype: str) -> Sequence[Buffer]:
        """The same bytes in pieces, one behind the other: good until this thread encodes again, or `raw` changes."""
        return [self.encode(raw, dtype)]

    @abstractmethod
    def decode(self, data: Buffer, out: Bytes, dtype: str) -> None:
        """Fill `out`, which has exactly the size that the chunk's elements take."""

    def decode_tiles(self, data: Buffer, out: Bytes, dtype: str) -> Iterator[tuple[int, int]]:
        """The same piece by piece: yields each run of bytes, first and behind its last, when it is there.

        What is done with a run at once finds it in the cache.
        """
        self.decode(data, out, dtype)
        yield 0, len(out)

    def decode_planes(self, data: Buffer, n: int, dtype: str) -> list[Bytes] | None:  # noqa: ARG002 - part of the interface
        """The same n elements as planes of bytes of equal place, rotated left by a bit, least significant first.

        From codecs that have them so; None where `decode` is the way.
        """
        return None


Row = tuple[int, int]
"""Elements of a tensor's rows, and how many of the first one lie before the chunk; 0, 0 where rows mean nothing."""
Columns = npt.NDArray[np.int8]
"""Numbers of a matrix's columns, which a tensor's first chunk tells for the others: shape (rank, width), to be read."""


class Given(NamedTuple):
    """What a conditional codec may be told beside the base's elements in the task's place."""

    origin: Bytes | None = None
    """Of a task that starts from others, what the base has: as many bytes."""
    columns: Callable[[], Columns | None] | None = None
    """Gives what the tensor's first chunk tells; None of that chunk itself."""


ALONE = Given()
"""Nothing."""


class ConditionalCodec(ABC):
    """A task's elements ⇄ coded bytes, given the base's.

    Of a task that starts from others, what those merge to is in the base's place.
    """

    id: ClassVar[str]
    needs_origin: ClassVar[bool] = False
    """Whether it is for tasks that start from others alone, and is told what the base itself has."""

    def columns(self, first: Buffer) -> Columns | None:  # noqa: ARG002 - part of the interface
        """What the first chunk of a tensor tells for those behind it, if anything."""
        return None

    @abstractmethod
    def decode(self, data: Buffer, out: Bytes, dtype: str, given: Given = ALONE) -> None:
        """Turn the base's elements into the task's, in place.

        Args:
            data: what `encode` returned.
            out: the base's elements, converted to `dtype`. Undefined after an error.
            dtype: the task's element type.
            given: see `Given`.
        """


class LosslessCodec(ConditionalCodec):
    """A conditional codec that gives back every bit."""

    @abstractmethod
    def encode(self, raw: Bytes, base: Bytes, dtype: str, row: Row = (0, 0), origin: Bytes | None = None) -> bytes:
        """Code one chunk.

        Args:
            raw: the task's elements: little-endian bytes of `dtype`.
            base: the base's elements in their place, converted to `dtype`: as many bytes.
            dtype: the task's element type.
            row: see `Row`.
            origin: see `Given`.
        """
