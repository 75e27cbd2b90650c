"""The codes of one chunk, from their place to numbers: read, checked, decoded; errors name the tensor.

No torch here: whoever checks an archive, and puts no tensor together, does without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn, TypeVar

import numpy as np

from tallstore import codecs
from tallstore.archive.locations import RAW, coded
from tallstore.archive.reader import Place, Reader
from tallstore.archive.verified import RecentlyUsed
from tallstore.codecs.base import Bytes, Columns, ConditionalCodec, Floats, Given, IndexedValues
from tallstore.errors import DamagedError, FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels import reference

__all__ = ["Codes"]

_READ = 1 << 22
"""Bytes of a tensor that is stored whole read, checked and handed on at a time.

They stay in the cache; with a quarter of them two threads take a third longer, since they wait for each other at the
GIL after every step.
"""
_COLUMNS = 1 << 26
"""Bytes of columns that are kept: of all tensors that are decoded by turns, as those of many tasks are to be merged."""
_T = TypeVar("_T")


class Codes:
    """Safe to use from several threads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._of_first = RecentlyUsed[Columns | None](
            _COLUMNS, lambda columns: 0 if columns is None else columns.nbytes
        )

    def values(self, place: Place, index: int, n: int, name: str) -> Floats:
        """A vector's or a delta's n values."""
        codec = codecs.find(codecs.VECTOR, coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk(place, index, name)
        return self._guard(place, name, lambda: codec.decode(data, n))

    def levels(self, place: Place, index: int, n: int, name: str) -> IndexedValues | None:
        """The same as indices into a table, from codecs that have one."""
        codec = codecs.find(codecs.VECTOR, coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk(place, index, name)
        return self._guard(place, name, lambda: codec.decode_levels(data, n))

    def symbols(self, place: Place, index: int, n: int, name: str) -> Bytes:
        """A mask's n symbols: uint8."""
        return reference.unpack(self.packed(place, index, n, name), place.entry.kind, n)

    def packed(self, place: Place, index: int, n: int, name: str) -> Bytes:
        """The same as `reference.pack` packs them."""
        kind = place.entry.kind
        codec = codecs.find(codecs.MASK, coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk(place, index, name)
        return self._guard(place, name, lambda: codec.decode_packed(data, kind, n))

    def whole_bytes(self, place: Place, index: int, name: str, out: Bytes) -> Iterator[tuple[int, int]]:
        """Write the bytes of one chunk of a tensor that is stored whole; `out` has exactly their number.

        Yields the first byte of each run and the one behind its last, when they are there. Nothing counts before the
        last one: damage shows at the end.
        """
        codec = codecs.find(codecs.WHOLE, coded(place).codec, self._reader.where(place.path))
        try:
            if codec.id == RAW:
                yield from self._reader.chunk_into(place, index, name, out.data, _READ)
            else:
                data = self._reader.chunk_here(place, index, name)
                yield from codec.decode_tiles(data, out, str(place.entry.dtype))
            self._reader.verified.add(place.path, place.chunk(index))
        except (FormatError, DamagedError) as error:
            self._raise_named(place, name, error)

    def conditional_bytes(self, place: Place, index: int, name: str, out: Bytes, origin: Bytes | None = None) -> None:
        """Turn the base's elements of one chunk, in the task's type, into the task's; in place, as bytes.

        `origin`: of a task that starts from others, what the base has, where the codec asks for that.
        """
        codec = codecs.find(codecs.CONDITIONAL[place.entry.kind], coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk_here(place, index, name)
        given = Given(origin, partial(self._columns, codec, place, name) if index else None)
        self._guard(place, name, lambda: codec.decode(data, out, str(place.entry.dtype), given))
        if not index and len(coded(place).chunks) > 1:  # others may ask for it: it is not to be read again then
            self._of_first.get((place.path, place.offset), lambda: codec.columns(data))
        self._reader.verified.add(place.path, place.chunk(index))

    def _columns(self, codec: ConditionalCodec, place: Place, name: str) -> Columns | None:
        """What a tensor's first chunk tells for the others, decoded once for those that are asked for together.

        Its bytes are not read into this thread's memory, in which those are that ask for it.
        """
        where = (place.path, place.offset)
        return self._of_first.get(where, lambda: codec.columns(self._reader.chunk(place, 0, name)))

    def read(self, place: Place, index: int, name: str) -> None:
        """Read a chunk and check it; nothing is decoded."""
        self._reader.check(place, index, name)
        if coded(place).codec == RAW:
            self._reader.verified.add(place.path, place.chunk(index))

    def check(self, place: Place, name: str) -> None:
        """Read and decode every chunk of a tensor that needs no other one, one at a time, and keep nothing."""
        kind, size = place.entry.kind, coded(place).chunk
        for index in range(len(coded(place).chunks)):
            n = min(size, place.entry.covered - index * size)
            if kind in reference.SYMBOL_BITS:
                self.packed(place, index, n, name)
            elif kind in {"vector", "delta"}:
                self.values(place, index, n, name)
            else:
                out = np.empty(n * ITEM_BYTES[str(place.entry.dtype)], np.uint8)
                for _ in self.whole_bytes(place, index, name, out):
                    pass

    def _guard(self, place: Place, name: str, work: Callable[[], _T]) -> _T:
        """Run a codec; its error gets the names that it does not know."""
        try:
            return work()
        except (FormatError, DamagedError) as error:
            self._raise_named(place, name, error)

    def _raise_named(self, place: Place, name: str, error: FormatError | DamagedError) -> NoReturn:
        where = self._reader.where(place.path)
        if str(error).startswith(where):
            raise error
        raise type(error)(f"{where}: tensor {name!r}: {error}") from error
