"""One chunk of one tensor, from its place into tensors: what `codes` gives, and what is added to the base."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from tallstore import codecs
from tallstore.archive.chunk_codes import Codes
from tallstore.archive.locations import ONES, RAW, coded
from tallstore.archive.reader import Place
from tallstore.archive.resident_conditional import CodedConditional
from tallstore.codecs.base import ALONE, Floats, Given
from tallstore.codecs.dare import Apart, DareCodec
from tallstore.errors import FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels import reference
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.fill import ChunkMemory, FillSource
from tallstore.kernels.pairs import Pairs
from tallstore.kernels.steps import Steps
from tallstore.tensors import TORCH, as_bytes, empty

__all__ = ["ChunkReader"]


class ChunkReader(Codes):
    """Safe to use from several threads."""

    def steps(self, place: Place, vector: Place | None, index: int, name: str) -> Steps:
        """What is added to the base in one chunk of a masked tensor, or one with a delta of its own.

        Args:
            place: the task's tensor.
            vector: what its mask is over; None for a delta.
            index: of the chunk.
            name: the tensor's.
        """
        steps = self._steps(place, vector, index, name)
        for each in (place, vector):
            if each is not None and each.offset is not None:
                self._reader.verified.add(each.path, each.chunk(index))
        return steps

    def whole_is_verified(self, place: Place) -> bool:
        """Whether every chunk of a tensor stored whole was decoded once, of a file that has not changed since."""
        return not self.unverified(place)

    def unverified(self, place: Place) -> list[int]:
        """The other chunks of such a tensor."""
        return [index for index in range(len(coded(place).chunks)) if not self._is_verified(place, index)]

    def steps_are_verified(self, place: Place, vector: Place | None, index: int) -> bool:
        """Whether there were such steps once, in this process, in files that have not changed since."""
        return all(
            self._is_verified(each, index) for each in (place, vector) if each is not None and each.offset is not None
        )

    def _is_verified(self, place: Place, index: int) -> bool:
        return self._reader.verified.contains(place.path, place.chunk(index))

    def _steps(self, place: Place, vector: Place | None, index: int, name: str) -> Steps:
        entry = place.entry
        n = min(coded(place).chunk, entry.covered - index * coded(place).chunk)
        dtype, backend = TORCH[str(entry.dtype)], decoding()
        if vector is None:
            levels = self.levels(place, index, n, name)
            if levels is None:
                return backend.values(self.values(place, index, n, name), dtype)
            return backend.levels(levels.packed, levels.bits, n, levels.table, dtype)
        scale = entry.scales[index] if entry.scales is not None else 1.0
        if coded(vector).codec == ONES and not coded(vector).size:
            return self._marks(place, index, n, name, scale)
        whole = min(coded(vector).chunk, vector.entry.numel - index * coded(vector).chunk)
        over = self._over(vector, index, whole, str(entry.base))
        return backend.mask(self.packed(place, index, n, name), entry.kind, n, scale, dtype, over)

    def _over(self, vector: Place, index: int, n: int, name: str) -> Floats | Pairs:
        """A chunk of n elements of a vector, as it is looked up the quickest."""
        levels = self.levels(vector, index, n, name)
        if levels is None:
            return self.values(vector, index, n, name)
        return Pairs(levels.packed, levels.table) if levels.bits == 4 else levels.table[levels.packed]

    def _marks(self, place: Place, index: int, n: int, name: str, scale: float) -> Steps:
        """A mask over ones: by its gaps, if that is how it is coded and the backend takes them so."""
        kind, dtype = place.entry.kind, TORCH[str(place.entry.dtype)]
        codec = codecs.find(codecs.MASK, coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk(place, index, name)
        backend = decoding()
        marks = self._guard(place, name, lambda: codec.decode_marks(data, kind, n)) if backend.by_gaps else None
        if marks is not None:
            return backend.gaps(marks.gaps, marks.signs, kind, n, scale, dtype)
        return backend.mask(self._guard(place, name, lambda: codec.decode_packed(data, kind, n)), kind, n, scale, dtype)

    def whole(self, place: Place, index: int, name: str, out: Tensor) -> None:
        """Write one chunk of a tensor that is stored whole; `out` has its type and exactly its elements."""
        target = decoding().target(out)
        if target is None or not self.filled(place, index, name, target.part(0, out.numel())):
            for _ in self.whole_runs(place, index, name, out):
                pass

    def filled(self, place: Place, index: int, name: str, part: ChunkMemory, steps: Steps | None = None) -> bool:
        """Write one chunk of a tensor that is stored whole, with the steps of a task's chunk added, in one call.

        Args:
            place: the tensor's.
            index: of the chunk.
            name: the tensor's.
            part: where exactly the chunk's elements belong, in a tensor of its type, which is the task's too.
            steps: what is added; None for nothing.

        Returns:
            whether that was done, and all was right. If not, whatever the reason, the general way tells or mends it.
        """
        if steps is not None and not steps.fills:
            return False
        raw = coded(place).codec == RAW
        if raw:
            source = self._reader.source(place, index) if coded(place).chunks.length(index) == part.nbytes else None
        else:
            source = self._planes(place, index, name, part.n)
        if source is None:
            return False
        done = steps.fill(part, source) if steps is not None else decoding().whole(part, source)
        if not done or (raw and not self._reader.holds(place, index, source)):
            return False
        self._reader.verified.add(place.path, place.chunk(index))
        return True

    def _planes(self, place: Place, index: int, name: str, n: int) -> FillSource | None:
        """A chunk of n elements as planes, if it is coded so."""
        codec = codecs.find(codecs.WHOLE, coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk_here(place, index, name)
        planes = self._guard(place, name, lambda: codec.decode_planes(data, n, str(place.entry.dtype)))
        return None if planes is None else decoding().planes(planes)

    def whole_runs(self, place: Place, index: int, name: str, out: Tensor) -> Iterator[tuple[int, int]]:
        """The same run by run: see `whole_bytes`."""
        return self.whole_bytes(place, index, name, as_bytes(out))

    def restore(self, place: Place, index: int, name: str, out: Tensor, first: int = 0) -> None:
        """Undo what masks lost in one chunk, or in elements of it from `first` on, by a task's exact part."""
        dtype, item = str(place.entry.dtype), out.element_size()
        if ITEM_BYTES[dtype] != item:
            raise FormatError(
                f"{self._reader.where(place.path)}: tensor {name!r}: differences of {dtype} do not fit it"
            )
        size = coded(place).chunk
        stored = empty(dtype, min(size, place.entry.covered - index * size))
        self.whole(place, index, name, stored)
        lost = as_bytes(stored[first : first + len(out)])
        as_bytes(out)[:] = reference.undo_difference(lost, as_bytes(out), item)

    def conditional(self, place: Place, index: int, name: str, out: Tensor, origin: Tensor | None = None) -> None:
        """Turn the base's elements of one chunk, in the task's type, into the task's: see `conditional_bytes`."""
        self.conditional_bytes(place, index, name, as_bytes(out), None if origin is None else as_bytes(origin))

    def coded_conditional(self, place: Place, name: str) -> CodedConditional:
        """All chunks of a tensor that is coded given the base's, as they are."""
        codec = codecs.find(codecs.CONDITIONAL[place.entry.kind], coded(place).codec, self._reader.where(place.path))
        chunks = self._whole_chunks(place, name)
        codes = torch.frombuffer(bytearray(b"".join(chunks)), dtype=torch.uint8)
        return CodedConditional(codec, codes, tuple(accumulate(map(len, chunks))), coded(place).chunk)

    def chunks_apart(self, place: Place, name: str) -> list[Apart] | None:
        """All chunks of such a tensor, taken apart; None where one of them cannot be."""
        codec = codecs.find(codecs.CONDITIONAL[place.entry.kind], coded(place).codec, self._reader.where(place.path))
        if not isinstance(codec, DareCodec):
            return None
        size, found = coded(place).chunk, list[Apart]()
        given = Given(columns=partial(self._columns, codec, place, name))
        for index, data in enumerate(self._whole_chunks(place, name)):
            n, dtype = min(size, place.entry.covered - index * size), str(place.entry.dtype)
            took = partial(codec.apart, data, n, dtype, given if index else ALONE)
            each = self._guard(place, name, took)
            if each is None:
                return None
            found.append(each)
        return found

    def _whole_chunks(self, place: Place, name: str) -> list[bytes]:
        """As they are coded, in memory of their own."""
        return [bytes(self._reader.chunk(place, index, name)) for index in range(len(coded(place).chunks))]
