"""From a task's entries to tensors: which ranges are read, which codec opens them, which kernel puts them together.

Every tensor is cut into jobs of one chunk each. A job reads, checks, decodes and writes its own slice of the output,
so jobs run side by side and memory beyond the output stays at a few chunks.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.archive.packed import Packed
from tallstore.archive.reader import Place, Reader
from tallstore.archive.room import bytes_of, room_for
from tallstore.checkpoints import Checkpoint
from tallstore.codecs.base import Bytes, Floats, Levels
from tallstore.errors import (
    BaseNeededError,
    DamagedError,
    FormatError,
    NoSuchTensorError,
    WrongBaseError,
)
from tallstore.format.dtypes import ITEM_BYTES, MASKABLE
from tallstore.format.manifest import Manifest
from tallstore.format.part import Coded, Entry
from tallstore.kernels import cpu
from tallstore.kernels.tiled import DeltaSteps, MaskSteps, Steps, ValueSteps
from tallstore.tensors import TORCH, as_bytes, empty

RAW, ONES = "raw", "ones"
"""Codecs of which no bytes need decoding."""
_KEPT = 1 << 29
"""Elements up to which decoded masks are kept between checking and writing them: at most 128 MiB of signed symbols."""
_READ = 1 << 19
"""Bytes of a base read, checked and changed at a time: they stay in a core's second-level cache."""
Job = Callable[[], object]
_T = TypeVar("_T")
_Array = npt.NDArray[Any]


class Decoder:
    """Decodes tensors of one archive. Safe to use from several threads."""

    def __init__(self, reader: Reader, base: Checkpoint | None, threads: int | None) -> None:
        self._reader = reader
        self._manifest: Manifest = reader.manifest
        self._given = base
        self._threads = threads or os.cpu_count() or 1
        self._base_places: dict[str, Place] | None = None
        self._vector_places: dict[str, dict[str, Place]] = {}
        self._task_places: dict[str, dict[str, dict[str, Place]]] = {}

    def task(self, task: str, part: str = "mask") -> Mapping[str, Place]:
        """The places of a task's tensors in its parts of one kind, in the checkpoint's order."""
        kinds = self._task_places.setdefault(task, {})
        if part not in kinds:
            kinds[part] = self._reader.places(self._manifest.tasks[task].parts.get(part, ()), part, task)
        return kinds[part]

    def vectors(self, group: str) -> Mapping[str, Place]:
        """The places of a group's multi-task vector, by base tensor."""
        if group not in self._vector_places:
            parts = next(g.parts for g in self._manifest.groups if g.id == group)
            self._vector_places[group] = self._reader.places(parts, "vector", group)
        return self._vector_places[group]

    def tensors(self, task: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Decode tensors of a task: fresh CPU tensors, tied ones sharing memory."""
        places = self.task(task)
        names = list(names)
        ties = {name: self._source(task, name) for name in names}
        own = dict.fromkeys(ties.values())
        for name in own:
            self._check(task, name)
            if places[name].entry.base is not None:
                self.check_base(str(places[name].entry.base))
        with room_for(bytes_of(places[name] for name in own), f"{self._reader.store.url}: task {task!r}"):
            out = {name: empty(str(places[name].entry.dtype), places[name].entry.numel) for name in own}
        self._run([job for name, flat in out.items() for job in self._jobs(task, name, flat)])
        shaped = {name: flat.reshape(places[name].entry.shape or ()) for name, flat in out.items()}
        return {name: shaped[ties[name]] for name in names}

    def base_is_raw(self, task: str) -> bool:
        """Whether what a task takes from the base is stored as it is, so that it cannot fail to decode once checked."""
        if self._given is not None or self._manifest.base.storage != "embed":
            return True
        used = {str(p.entry.base) for p in self.task(task).values() if p.entry.base is not None}
        return all(_coded(self._base_place(name)).codec == RAW for name in used)

    def prepare(self, task: str, names: Iterable[str]) -> dict[tuple[str, int], Steps]:
        """Check all that `write` will read of some tensors. Returns what it decoded, if that is not too much."""
        kept: dict[tuple[str, int], Steps] = {}
        names = list(names)
        places = self.task(task)
        keep = sum(places[name].entry.numel for name in names) <= _KEPT
        jobs: list[Job] = []
        for name in dict.fromkeys(self._source(task, name) for name in names):
            self._check(task, name)
            jobs += self._checks(task, name, kept if keep else None)
        self._run(jobs)
        return kept

    def write(
        self, task: str, out: Mapping[str, Tensor], prepared: Mapping[tuple[str, int], Steps] | None = None
    ) -> None:
        """Decode tensors of a task into flat, contiguous CPU tensors of their types."""
        self._run(
            [
                job
                for name, flat in out.items()
                for job in self._jobs(task, self._source(task, name), flat, prepared or {})
            ]
        )

    def _source(self, task: str, name: str) -> str:
        return self._tied(task, name) if self.task(task)[name].entry.kind == "tied" else name

    def _checks(self, task: str, name: str, kept: dict[tuple[str, int], Steps] | None) -> list[Job]:
        """Jobs that read and check everything that a tensor needs."""
        place = self.task(task)[name]
        entry = place.entry
        jobs: list[Job] = []
        if entry.kind == "private" or entry.covered < entry.numel:
            jobs.append(partial(self._check_chunks, self.task(task, "private")[name], name))
        if entry.kind == "private":
            return jobs
        base = str(entry.base)
        if self._given is None and self._manifest.base.storage == "embed":
            start = self._base_place(base)
            jobs += [partial(self._reader.chunk, start, i, base) for i in range(len(_coded(start).chunks))]
        else:
            jobs.append(partial(self._given_tensor, base))
        if entry.kind == "base":
            return jobs
        vector = None if entry.kind == "delta" else self.vectors(self._manifest.tasks[task].group)[base]

        def steps(index: int) -> None:
            found = self._steps(place, vector, index, name)
            if kept is not None:
                kept[name, index] = found

        return jobs + [partial(steps, index) for index in range(len(_coded(place).chunks))]

    def packed(self, task: str, name: str) -> Packed | None:
        """What a task adds to the base in one of its tensors, still packed; None where it adds nothing."""
        place = self.task(task)[name]
        entry = place.entry
        if entry.coded is None or not entry.covered:
            return None
        size = entry.coded.chunk
        runs = [(i, min(size, entry.covered - i * size)) for i in range(len(entry.coded.chunks))]
        if entry.kind in cpu.SYMBOL_BITS:
            symbols = np.concatenate([self._packed_chunk(place, i, n, name) for i, n in runs])
            scales = torch.tensor(entry.scales if entry.scales is not None else [1.0] * len(runs))
            return Packed(entry.kind, torch.from_numpy(symbols), cpu.SYMBOL_BITS[entry.kind], size, scales=scales)
        found = [self._levels_chunk(place, i, n, name) for i, n in runs]
        levels = [each for each in found if each is not None]
        if len(levels) < len(found):
            values = np.concatenate([self._delta_chunk(place, i, n, name) for i, n in runs])
            return Packed("values", torch.from_numpy(values), 32, size)
        bits = max(each.bits for each in levels)
        tables = np.zeros((len(levels), 1 << bits), np.float32)
        for row, each in zip(tables, levels, strict=True):
            row[: len(each.table)] = each.table
        codes = [
            each.packed if each.bits == bits else np.stack([each.packed & 15, each.packed >> 4], 1).reshape(-1)[:n]
            for each, (_, n) in zip(levels, runs, strict=True)
        ]
        return Packed("levels", torch.from_numpy(np.concatenate(codes)), bits, size, tables=torch.from_numpy(tables))

    def vector_of(self, task: str, name: str) -> tuple[str, str] | None:
        """Group and base tensor of the vector that a tensor's mask is over; None where it has none, or v is 1."""
        entry = self.task(task)[name].entry
        if entry.kind not in cpu.SYMBOL_BITS:
            return None
        group, base = self._manifest.tasks[task].group, str(entry.base)
        return None if _coded(self.vectors(group)[base]).codec == ONES else (group, base)

    def exact_tensors(self, task: str, names: Iterable[str]) -> dict[str, Tensor]:
        """The same, bit for bit what was packed: what the masks lost is put back from the task's exact part."""
        out = self.tensors(task, names)
        places = self.task(task, "exact")
        done: set[int] = set()
        jobs: list[Job] = []
        for name, tensor in out.items():
            entry = self.task(task)[name].entry
            source = self._tied(task, name) if entry.kind == "tied" else name
            entry = self.task(task)[source].entry
            if entry.kind not in {"binary", "signed", "delta"} or id(tensor) in done:
                continue
            done.add(id(tensor))
            place = places.get(source)
            if place is None or place.entry.numel != entry.covered:
                raise FormatError(
                    f"{self._reader.store.url}: task {task!r}: tensor {source!r} is not in its exact part"
                )
            jobs += self._exact_jobs(place, source, tensor.reshape(-1)[: entry.covered])
        self._run(jobs)
        return out

    def _exact_jobs(self, place: Place, name: str, out: Tensor) -> list[Job]:
        dtype, size, item = str(place.entry.dtype), _coded(place).chunk, out.element_size()
        if ITEM_BYTES[dtype] != item:
            raise FormatError(
                f"{self._reader.where(place.path)}: tensor {name!r}: differences of {dtype} do not fit it"
            )

        def job(index: int) -> None:
            part = out[index * size : (index + 1) * size]
            stored = empty(dtype, len(part))
            self._whole_chunk(place, index, name, stored)
            as_bytes(part)[:] = cpu.undo_difference(as_bytes(stored), as_bytes(part), item)

        return [partial(job, index) for index in range(len(_coded(place).chunks))]

    def base_tensor(self, name: str) -> Tensor:
        """A base tensor, whole."""
        if name not in self._manifest.base.tensors:
            raise NoSuchTensorError(f"{self._reader.store.url}: the base has no tensor {name!r}")
        self.check_base(name)
        facts = self._manifest.base.tensors[name]
        out = empty(facts.dtype, int(np.prod(facts.shape, dtype=np.int64)))
        self._run(self._base_jobs(name, out))
        return out.reshape(facts.shape)

    def vector_tensor(self, group: str, name: str) -> Tensor:
        """The multi-task vector for a base tensor: float32, zeros where no task moved."""
        facts = self._manifest.base.tensors[name]
        out = torch.zeros(int(np.prod(facts.shape, dtype=np.int64)), dtype=torch.float32)
        place = self.vectors(group).get(name)
        if place is not None:
            self._check_vector(place, name)
            size = _coded(place).chunk

            def job(index: int) -> None:
                part = out[index * size : (index + 1) * size]
                part.copy_(torch.from_numpy(self._vector_chunk(place, index, len(part), name)))

            self._run([partial(job, index) for index in range(len(_coded(place).chunks))])
        return out.reshape(facts.shape)

    def delta(self, task: str, name: str) -> Tensor:
        """A task's own quantized task vector: float32 in the tensor's shape; 0 where rows are its own."""
        place = self.task(task)[name]
        entry, size = place.entry, _coded(place).chunk
        out = torch.zeros(entry.numel, dtype=torch.float32)
        for index in range(len(_coded(place).chunks)):
            n = min(size, entry.covered - index * size)
            out[index * size : index * size + n] = torch.from_numpy(self._delta_chunk(place, index, n, name))
        return out.reshape(entry.shape or ())

    def symbols(self, task: str, name: str) -> Tensor:
        """A task's mask for a tensor: uint8 symbols in the tensor's shape; 0 where rows are its own."""
        place = self.task(task)[name]
        entry = place.entry
        out = np.zeros(entry.numel, np.uint8)
        if entry.kind in cpu.SYMBOL_BITS:
            size = _coded(place).chunk
            for index in range(len(_coded(place).chunks)):
                n = min(size, entry.covered - index * size)
                out[index * size : index * size + n] = self._symbol_chunk(place, index, n, name)
        return torch.from_numpy(out).reshape(entry.shape or ())

    @property
    def threads(self) -> int:
        """How many chunks are worked on at a time."""
        return self._threads

    def vector_range(self, group: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a group's vector for a base tensor, which it has; `start` begins a chunk."""
        place = self.vectors(group)[name]
        self._check_vector(place, name)
        return torch.from_numpy(self._range(place, name, start, stop, self._vector_chunk))

    def symbol_range(self, task: str, name: str, start: int, stop: int) -> Bytes:
        """Elements [start, stop) of a task's mask, which it has for this tensor; `start` begins a chunk."""
        return self._range(self.task(task)[name], name, start, stop, self._symbol_chunk)

    def delta_range(self, task: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor's own delta, which it has; `start` begins a chunk."""
        place = self.task(task)[name]
        return torch.from_numpy(self._range(place, name, start, stop, self._delta_chunk))

    def private_range(self, task: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor that a task stores whole."""
        return self._whole_range(self.task(task, "private")[name], name, start, stop)

    def base_range(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a base tensor."""
        if self._manifest.base.storage != "embed" or self._given is not None:
            return self._given_tensor(name)[start:stop]
        return self._whole_range(self._base_place(name), name, start, stop)

    def _range(self, place: Place, name: str, start: int, stop: int, read: Callable[..., _Array]) -> _Array:
        """Whole chunks, decoded one after the other, in fresh memory; `stop` may cut the last one short."""
        size, total = _coded(place).chunk, place.entry.covered
        pieces = [read(place, at // size, min(size, total - at), name) for at in range(start, stop, size)]
        return np.concatenate(pieces)[: stop - start]

    def _run(self, jobs: list[Job]) -> None:
        """Run jobs side by side; the first error wins."""
        if self._threads == 1 or len(jobs) < 2:
            for job in jobs:
                job()
            return
        with ThreadPoolExecutor(self._threads, "tallstore-decode") as pool:
            futures = [pool.submit(job) for job in jobs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _tied(self, task: str, name: str) -> str:
        target = self.task(task)[name].entry.to
        where = f"{self._reader.store.url}: task {task!r}: tensor {name!r}"
        if target is None or target not in self.task(task) or self.task(task)[target].entry.kind == "tied":
            raise FormatError(f"{where}: is tied to {target!r}, which is no tensor of its own")
        return target

    def _jobs(
        self, task: str, name: str, out: Tensor, prepared: Mapping[tuple[str, int], Steps] = MappingProxyType({})
    ) -> list[Job]:
        place = self.task(task)[name]
        entry = place.entry
        if entry.kind == "private":
            return self._private_jobs(task, name, entry, out)
        jobs = self._moved_jobs(task, name, place, out[: entry.covered], prepared)
        if entry.covered < entry.numel:
            jobs += self._private_jobs(task, name, entry, out[entry.covered :])
        return jobs

    def _private_jobs(self, task: str, name: str, entry: Entry, out: Tensor) -> list[Job]:
        place = self.task(task, "private").get(name)
        if place is None or place.entry.dtype != entry.dtype or place.entry.numel != out.numel():
            raise FormatError(f"{self._reader.store.url}: task {task!r}: tensor {name!r} is not in its private part")
        return self._whole_jobs(place, name, out)

    def _whole_jobs(self, place: Place, name: str, out: Tensor) -> list[Job]:
        size = _coded(place).chunk
        return [
            partial(self._whole_chunk, place, index, name, out[index * size : (index + 1) * size])
            for index in range(len(_coded(place).chunks))
        ]

    def _moved_jobs(
        self, task: str, name: str, place: Place, out: Tensor, prepared: Mapping[tuple[str, int], Steps]
    ) -> list[Job]:
        entry = place.entry
        base = self._base_facts(task, name, entry)
        if entry.kind == "base":
            return self._copy_jobs(base, out)
        size = _coded(place).chunk
        vector = None
        if entry.kind != "delta":
            vector = self.vectors(self._manifest.tasks[task].group).get(base)
            if vector is None:
                raise FormatError(f"{self._reader.where(place.path)}: tensor {name!r}: the vector has no {base!r}")
            self._check_vector(vector, base)
            if _coded(vector).chunk != size:
                raise FormatError(f"{self._reader.where(place.path)}: tensor {name!r}: its chunks are not its vector's")

        def job(index: int, start: Tensor | None = None) -> None:
            a, b = index * size, min((index + 1) * size, entry.covered)
            part = out[a:b]
            steps = prepared.get((name, index)) or self._steps(place, vector, index, name)
            if start is not None:
                steps.apply(part, start[a:b])
                return
            for first, before in self._base_tiles(base, a, b, part):
                steps.apply(part[first : first + len(before)], before, first)

        indices = range(len(_coded(place).chunks))
        if self._given is None:
            return [partial(job, index) for index in indices]

        def all_at_once() -> None:
            start = self._given_tensor(base)
            for index in indices:
                job(index, start)

        return [all_at_once]

    def _steps(self, place: Place, vector: Place | None, index: int, name: str) -> Steps:
        """What is added to the base in one chunk of a masked tensor, or one with a delta of its own."""
        entry = place.entry
        n = min(_coded(place).chunk, entry.covered - index * _coded(place).chunk)
        dtype = TORCH[str(entry.dtype)]
        if vector is None:
            levels = self._levels_chunk(place, index, n, name)
            if levels is None:
                return ValueSteps(self._delta_chunk(place, index, n, name), dtype)
            return DeltaSteps(levels.packed, levels.bits, levels.table, dtype)
        values = None
        if _coded(vector).codec != ONES or _coded(vector).size:
            whole = min(_coded(vector).chunk, vector.entry.numel - index * _coded(vector).chunk)
            values = self._vector_chunk(vector, index, whole, str(entry.base))[:n]
        scale = entry.scales[index] if entry.scales is not None else 1.0
        return MaskSteps(self._packed_chunk(place, index, n, name), entry.kind, scale, dtype, values)

    def _base_tiles(self, name: str, a: int, b: int, out: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Elements [a, b) of an embedded base tensor, run by run while they are in the cache, with their places from a.

        They lie where they were read, in `out` if that has the base's type, or in memory of their own.
        """
        if self._manifest.base.storage != "embed":
            self._given_tensor(name)
        place = self._base_place(name)
        dtype, size = str(place.entry.dtype), _coded(place).chunk
        item = ITEM_BYTES[dtype]
        target = out if out.dtype == TORCH[dtype] else empty(dtype, b - a)
        for index in range(a // size, -(-b // size)):
            start, stop = index * size, min((index + 1) * size, place.entry.numel)
            if a <= start and stop <= b and _coded(place).codec == RAW:
                for low, run in self._raw_runs(place, index, name, (stop - start) * item):
                    yield start - a + low // item, run.view(TORCH[dtype])
            elif a <= start and stop <= b:
                at = start - a
                for low, high in self._whole_tiles(place, index, name, target[at : stop - a]):
                    yield at + low // item, target[at + low // item : at + high // item]
            else:
                piece = empty(dtype, stop - start)
                self._whole_chunk(place, index, name, piece)
                low, high = max(a, start), min(b, stop)
                target[low - a : high - a] = piece[low - start : high - start]
                yield low - a, target[low - a : high - a]

    def _raw_runs(self, place: Place, index: int, name: str, size: int) -> Iterator[tuple[int, Tensor]]:
        """Bytes of a chunk that is stored as it is, where they were read."""
        try:
            for at, run in self._reader.chunk_runs(place, index, name, size, _READ):
                found = np.frombuffer(run, np.uint8)
                yield at, torch.from_numpy(found if found.flags.writeable else found.copy())
        except (FormatError, DamagedError) as error:
            self._raise_named(place, name, error)

    def _base_facts(self, task: str, name: str, entry: Entry) -> str:
        """The base tensor's name, its shape and the entry's checked against each other."""
        where = f"{self._reader.store.url}: task {task!r}: tensor {name!r}"
        facts = self._manifest.base.tensors.get(str(entry.base))
        if facts is None:
            raise FormatError(f"{where}: the base has no tensor {entry.base!r}")
        shape = entry.shape or ()
        fits = facts.shape == shape
        if entry.rows is not None:
            fits = bool(shape and facts.shape) and facts.shape[1:] == shape[1:] and entry.rows <= facts.shape[0]
        if not fits:
            raise FormatError(f"{where}: shape {list(shape)} does not come from the base's {list(facts.shape)}")
        if not {facts.dtype, str(entry.dtype)} <= set(MASKABLE) and (entry.kind, entry.dtype) != ("base", facts.dtype):
            raise FormatError(
                f"{where}: a {entry.kind} entry of {entry.dtype} cannot come from the base's {facts.dtype}"
            )
        return str(entry.base)

    def _check_vector(self, place: Place, name: str) -> None:
        if name not in self._manifest.base.tensors or place.entry.shape != self._manifest.base.tensors[name].shape:
            raise FormatError(f"{self._reader.where(place.path)}: tensor {name!r} has not the base's shape")

    def _copy_jobs(self, base: str, out: Tensor) -> list[Job]:
        facts = self._manifest.base.tensors[base]
        if self._given is None and out.dtype == TORCH[facts.dtype]:
            return self._base_jobs(base, out)

        def job() -> None:
            out.copy_(self.base_tensor(base).reshape(-1)[: len(out)])

        return [job]

    def _base_place(self, name: str) -> Place:
        if self._base_places is None:
            self._base_places = self._reader.places(self._manifest.base.parts, "base", "")
        facts = self._manifest.base.tensors[name]
        place = self._base_places.get(name)
        if place is not None and place.entry.kind == "tied":
            place = self._base_places.get(str(place.entry.to))
        if place is None or (place.entry.dtype, place.entry.shape) != (facts.dtype, facts.shape):
            raise FormatError(f"{self._reader.store.url}: the base part has no tensor {name!r} as the manifest says")
        return place

    def _base_jobs(self, name: str, out: Tensor) -> list[Job]:
        """Jobs that write the leading elements of a base tensor, as many as `out` has, in the base's own type."""
        if self._given is None and self._manifest.base.storage == "embed":
            place = self._base_place(name)
            size = _coded(place).chunk

            def job(a: int, b: int) -> None:
                self._base_range(name, a, b, out[a:b])

            return [partial(job, a, min(a + size, len(out))) for a in range(0, len(out), size)]

        def whole() -> None:
            out.copy_(self._given_tensor(name)[: len(out)])

        return [whole]

    def _base_range(self, name: str, a: int, b: int, out: Tensor) -> None:
        """Elements [a, b) of an embedded base tensor into `out`, which has the base's type."""
        if self._manifest.base.storage != "embed":
            self._given_tensor(name)
        self._whole_range(self._base_place(name), name, a, b, out)

    def _whole_range(self, place: Place, name: str, a: int, b: int, out: Tensor | None = None) -> Tensor:
        """Elements [a, b) of a tensor that is stored whole; into `out` if that has its type, else into new memory."""
        dtype, size = str(place.entry.dtype), _coded(place).chunk
        target = out if out is not None and out.dtype == TORCH[dtype] else empty(dtype, b - a)
        for index in range(a // size, -(-b // size)):
            start, stop = index * size, min((index + 1) * size, place.entry.numel)
            if a <= start and stop <= b:
                self._whole_chunk(place, index, name, target[start - a : stop - a])
            else:
                piece = empty(dtype, stop - start)
                self._whole_chunk(place, index, name, piece)
                low, high = max(a, start), min(b, stop)
                target[low - a : high - a] = piece[low - start : high - start]
        return target

    def check_base(self, name: str) -> None:
        """Raise for a base tensor that cannot be had, or is of another type or shape, before memory is taken for it."""
        if self._given is None and self._manifest.base.storage == "embed":
            self._base_place(name)
            return
        facts = self._manifest.base.tensors[name]
        if self._given is None:
            raise BaseNeededError(base_needed(self._reader.store.url, self._manifest))
        info = self._given.tensors.get(name)
        if info is None or (info.dtype, info.shape) != (facts.dtype, facts.shape):
            has = f"{info.dtype} {list(info.shape)}" if info else "nothing"
            raise WrongBaseError(
                f"{self._given.where}: not the base of {self._reader.store.url}: for tensor {name!r} it has {has}, "
                f"and {facts.dtype} {list(facts.shape)} is due"
            )

    def _given_tensor(self, name: str) -> Tensor:
        """A tensor of the base that the caller gave, checked against the archive's identity of it."""
        self.check_base(name)
        assert self._given is not None
        facts = self._manifest.base.tensors[name]
        flat = self._given.read(name, 0, math.prod(facts.shape))
        if hashlib.sha256(as_bytes(flat).data).hexdigest() != facts.sha256:
            raise WrongBaseError(
                f"{self._given.where}: not the base of {self._reader.store.url}: tensor {name!r} differs "
                "(another version of it, perhaps); give the base that the zoo was packed with"
            )
        return flat

    def _whole_chunk(self, place: Place, index: int, name: str, out: Tensor) -> None:
        for _ in self._whole_tiles(place, index, name, out):
            pass

    def _whole_tiles(self, place: Place, index: int, name: str, out: Tensor) -> Iterator[tuple[int, int]]:
        """Write one chunk of a tensor that is stored whole; yields each run of bytes when it is there."""
        codec = codecs.find(codecs.WHOLE, _coded(place).codec, self._reader.where(place.path))
        target = as_bytes(out)
        try:
            if codec.id == RAW:
                for at, run in self._reader.chunk_runs(place, index, name, len(target), _READ):
                    np.copyto(target[at : at + len(run)], np.frombuffer(run, np.uint8))
                    yield at, at + len(run)
            else:
                data = self._reader.chunk(place, index, name)
                yield from codec.decode_tiles(data, target, str(place.entry.dtype))
        except (FormatError, DamagedError) as error:
            self._raise_named(place, name, error)

    def _vector_chunk(self, place: Place, index: int, n: int, name: str) -> Floats:
        codec = codecs.find(codecs.VECTOR, _coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk(place, index, name)
        return self._guard(place, name, lambda: codec.decode(data, n))

    _delta_chunk = _vector_chunk

    def _symbol_chunk(self, place: Place, index: int, n: int, name: str) -> Bytes:
        kind = place.entry.kind
        codec = codecs.find(codecs.MASK, _coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk(place, index, name)
        return self._guard(place, name, lambda: codec.decode(data, kind, n))

    def _packed_chunk(self, place: Place, index: int, n: int, name: str) -> Bytes:
        kind = place.entry.kind
        codec = codecs.find(codecs.MASK, _coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk(place, index, name)
        return self._guard(place, name, lambda: codec.decode_packed(data, kind, n))

    def _levels_chunk(self, place: Place, index: int, n: int, name: str) -> Levels | None:
        codec = codecs.find(codecs.VECTOR, _coded(place).codec, self._reader.where(place.path))
        data = self._reader.chunk(place, index, name)
        return self._guard(place, name, lambda: codec.decode_levels(data, n))

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

    def check(self, task: str) -> None:
        """Raise for any entry of a task that does not fit the archive, without reading coded bytes."""
        for name, place in self.task(task).items():
            if place.entry.kind == "tied":
                self._tied(task, name)
            else:
                self._check(task, name)

    def check_codes(self, task: str) -> None:
        """Read and decode every chunk of a task's own parts, one at a time, and put nothing together."""
        for part in ("mask", "private", "exact"):
            for name, place in self.task(task, part).items():
                if place.entry.coded is not None:
                    self._check_chunks(place, name)

    def check_vector(self, group: str) -> None:
        """Read and decode every chunk of a group's vector."""
        for name, place in self.vectors(group).items():
            self._check_vector(place, name)
            self._check_chunks(place, name)

    def _check_chunks(self, place: Place, name: str) -> None:
        kind, size = place.entry.kind, _coded(place).chunk
        for index in range(len(_coded(place).chunks)):
            n = min(size, place.entry.covered - index * size)
            if kind in cpu.SYMBOL_BITS:
                self._symbol_chunk(place, index, n, name)
            elif kind in {"vector", "delta"}:
                self._vector_chunk(place, index, n, name)
            else:
                self._whole_chunk(place, index, name, empty(str(place.entry.dtype), n))

    def _check(self, task: str, name: str) -> None:
        """Raise for an entry that does not fit the archive, before memory is taken for it."""
        entry = self.task(task)[name].entry
        self._jobs(task, name, torch.empty(entry.numel, dtype=TORCH[str(entry.dtype)], device="meta"))


def base_needed(url: str, manifest: Manifest) -> str:
    """What to say when a referenced base was not given."""
    source = manifest.base.source
    known = f" It came from {source['repo']} at commit {source.get('commit', '?')}." if source.get("repo") else ""
    return f"{url}: holds no base, only references it: give it with base=… (--base).{known}"


def _coded(place: Place) -> Coded:
    assert place.entry.coded is not None  # the format gives every kind that is read here its coded bytes
    return place.entry.coded
