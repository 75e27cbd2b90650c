"""The base's elements, wherever they come from: the archive itself, or the checkpoint that the caller gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from tallstore.archive.chunk_reader import ChunkReader
from tallstore.archive.locations import RAW, Places, coded
from tallstore.archive.reader import Reader
from tallstore.checkpoints import Checkpoint
from tallstore.codecs.base import Bytes
from tallstore.errors import BaseNeededError, WrongBaseError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.manifest import BaseTensor, Manifest
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.steps import Steps
from tallstore.tensors import TORCH, as_bytes, empty

__all__ = ["BaseElements", "base_needed"]

Job = Callable[[], object]
Filler = Callable[..., bool]
"""Takes a chunk's index, and what a task adds in it; returns whether it was written. See `ChunkReader.filled`."""


class BaseElements:
    """Checked by the hash of each chunk where the base is in the archive, of each tensor where it was given."""

    def __init__(self, reader: Reader, places: Places, chunks: ChunkReader, given: Checkpoint | None) -> None:
        self._reader, self._places, self._chunks, self._given = reader, places, chunks, given
        self._manifest: Manifest = reader.manifest

    @property
    def given(self) -> bool:
        """Whether the caller gave it: it is then read a tensor at a time."""
        return self._given is not None

    def ties(self) -> dict[str, str]:
        """Tensors that share the memory of another one → that one, as far as archive or checkpoint know."""
        if self._given is not None:
            return dict(self._given.ties)
        if not self.embedded:
            return {}
        places = self._reader.places(self._manifest.base.parts, "base", "")
        return {name: str(place.entry.to) for name, place in places.items() if place.entry.kind == "tied"}

    @property
    def embedded(self) -> bool:
        """Whether it is read from the archive."""
        return self._given is None and self._manifest.base.storage == "embed"

    def facts(self, name: str) -> BaseTensor:
        """What the manifest says of a tensor."""
        return self._manifest.base.tensors[name]

    def cannot_fail(self, name: str) -> bool:
        """Whether a tensor cannot fail to decode once it was checked: it is stored as it is, or was decoded before."""
        if not self.embedded:
            return True
        place = self._places.base(name)
        return coded(place).codec == RAW or self._chunks.whole_is_verified(place)

    @property
    def resident(self) -> bool:
        """Whether the base was given, is in memory, and needs no check: to read a tensor takes nothing."""
        return self._given is not None and self._given.resident

    def checks(self, name: str) -> list[Job]:
        """Jobs that read a tensor and check it, and decode nothing."""
        if not self.embedded:
            return [lambda: self.tensor(name)]
        place = self._places.base(name)

        return [partial(self._chunks.read, place, index, name) for index in self._chunks.unverified(place)]

    def check(self, name: str) -> None:
        """Raise for a tensor that cannot be had, or is of another type or shape, before memory is taken for it."""
        if self.embedded:
            self._places.base(name)
            return
        facts = self.facts(name)
        if self._given is None:
            raise BaseNeededError(base_needed(self._reader.store.url, self._manifest))
        info = self._given.tensors.get(name)
        if info is None or (info.dtype, info.shape) != (facts.dtype, facts.shape):
            has = f"{info.dtype} {list(info.shape)}" if info else "nothing"
            raise WrongBaseError(
                f"{self._given.where}: not the base of {self._reader.store.url}: for tensor {name!r} it has {has}, "
                f"expected {facts.dtype} {list(facts.shape)}"
            )

    def tensor(self, name: str) -> Tensor:
        """A tensor of the base that the caller gave, flat, checked against the archive's identity of it."""
        self.check(name)
        assert self._given is not None
        facts = self.facts(name)
        flat = self._given.read(name, 0, facts.numel)
        if not self._given.matches(flat, facts.sha256):
            raise WrongBaseError(
                f"{self._given.where}: not the base of {self._reader.store.url}: tensor {name!r} differs "
                "(another version of it, perhaps); give the base that the zoo was packed with"
            )
        return flat

    def span(self, name: str) -> int:
        """Elements that are read at once: a chunk, or the whole tensor."""
        return coded(self._places.base(name)).chunk if self.embedded else max(1, self.facts(name).numel)

    def fill(self, name: str, a: int, b: int, out: Tensor) -> None:
        """Elements [a, b) into `out`, which has the base's type."""
        if self.embedded:
            if self._is_chunk(name, a, b) and out.dtype == TORCH[self.facts(name).dtype]:
                place = self._places.base(name)
                self._chunks.whole(place, a // coded(place).chunk, name, out)
                return
            for first, stop, here in self.runs(name, a, b, out):
                if here.data_ptr() != out[first:stop].data_ptr():
                    out[first:stop] = here
        else:
            _copy(out, self.tensor(name)[a:b])

    def _is_chunk(self, name: str, a: int, b: int) -> bool:
        """Whether elements [a, b) of an embedded tensor are one whole chunk."""
        size = coded(self._places.base(name)).chunk
        return not a % size and a < b == min(a + size, self.facts(name).numel)

    def converted(self, name: str, a: int, out: Tensor, given: Tensor | None = None) -> None:
        """Elements from `a` on, as many as `out` has, converted to its type.

        `given`: the whole tensor, where it was given.
        """
        if given is not None:
            _copy(out, given[a : a + len(out)])
            return
        dtype = self.facts(name).dtype
        part = out if out.dtype == TORCH[dtype] else empty(dtype, len(out))
        self.fill(name, a, a + len(out), part)
        if part is not out:
            out.copy_(part)

    def bytes_into(self, name: str, a: int, out: Bytes, dtype: str) -> None:
        """The same, as bytes of elements of `dtype`."""
        self.converted(name, a, torch.from_numpy(out).view(TORCH[dtype]))

    def apply(self, name: str, a: int, out: Tensor, steps: Steps, given: Tensor | None = None) -> None:
        """Elements from `a` on, as many as `out` has, with the steps of a task's chunk added, in the task's type.

        `given`: the whole tensor, where it was given.
        """
        if given is not None:
            steps.begin()(out, given[a : a + len(out)])
            return
        run = steps.begin()
        for first, stop, before in self.runs(name, a, a + len(out), out):
            run(out[first:stop], before)

    def filler(self, name: str, chunk: int, out: Tensor) -> Filler | None:
        """What writes chunks of so many elements into a tensor in one call each; None where there is no such way.

        `out`: flat: the base tensor's leading elements, in a task's type.
        """
        if not self.embedded:
            return None
        place = self._places.base(name)
        if coded(place).chunk != chunk or out.dtype != TORCH[str(place.entry.dtype)]:
            return None
        target, total, there = decoding().target(out), place.entry.numel, out.numel()
        if target is None:
            return None

        def fill(index: int, steps: Steps | None = None) -> bool:
            a, b = index * chunk, min((index + 1) * chunk, total)
            return b <= there and self._chunks.filled(place, index, name, target.part(a, b), steps)

        return fill

    def runs(self, name: str, a: int, b: int, out: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Elements [a, b) of an embedded tensor, run by run while they are in the cache.

        Args:
            name: the tensor's.
            a: first element.
            b: the one behind the last.
            out: shape (b − a,). Where it has the base's type, elements are put straight into it.

        Yields:
            where a run begins and ends, counted from a, and its elements: part of `out`, or memory of their own.
        """
        place = self._places.base(name)
        dtype, size = str(place.entry.dtype), coded(place).chunk
        item, target = ITEM_BYTES[dtype], out if out.dtype == TORCH[dtype] else None
        for index in range(a // size, -(-b // size)):
            start, stop = index * size, min((index + 1) * size, place.entry.numel)
            low, high = max(a, start), min(b, stop)
            whole = (low, high) == (start, stop)
            piece = target[low - a : high - a] if target is not None and whole else empty(dtype, stop - start)
            if whole:
                for first, last in self._chunks.whole_runs(place, index, name, piece):
                    yield low - a + first // item, low - a + last // item, piece[first // item : last // item]
                continue
            self._chunks.whole(place, index, name, piece)
            yield low - a, high - a, piece[low - start : high - start]


def _copy(out: Tensor, values: Tensor) -> None:
    """Copy elements by this thread alone: torch would start a team of threads for each of those that decode."""
    if out.dtype == values.dtype and out.is_contiguous() and values.is_contiguous():
        as_bytes(out)[...] = as_bytes(values)
    else:
        out.copy_(values)


def base_needed(url: str, manifest: Manifest) -> str:
    """What to say when a referenced base was not given."""
    source = manifest.base.source
    known = f" It came from {source['repo']} at commit {source.get('commit', '?')}." if source.get("repo") else ""
    return f"{url}: holds no base, only references it: give it with base=… (--base).{known}"
