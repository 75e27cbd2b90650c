"""From an archive to what a mixed batch is computed from: each task's tensors in the model's own places, packed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tallstore.archive.binding import Binding, bind, shapes_of, tensors_of, untold
from tallstore.archive.decode import Decoder
from tallstore.archive.load_into import check_overlaps, converted, touched
from tallstore.archive.resident import PackedTensor
from tallstore.archive.resident_conditional import CodedConditional
from tallstore.errors import ModelMismatchError
from tallstore.format.part import CONDITIONAL_KINDS
from tallstore.kernels import reference
from tallstore.kernels.device_rows import DeviceVector
from tallstore.kernels.packed_rows import SharedVector
from tallstore.kernels.products import form_for, placed
from tallstore.kernels.row_packing import LevelChunk, pack_rows, unpacked
from tallstore.serving.low_rank import LowRankRows
from tallstore.serving.tensors import DecodedTensor, OwnTensor, RowsTensor, Shelf, StoredTensor
from tallstore.tensors import TORCH

__all__ = ["PreparedTensors", "prepare"]

_CHUNK = 1 << 20
"""Elements that are compared with the base's at once."""
_SMALL = 4096
"""Elements up to which a tensor is stored decoded, whatever its shape."""
_NARROW = {torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""Types whose steps are counted, and integers of their size."""
_FEW_STEPS = 256
"""Different steps that bytes can tell."""
_SPARSE = 1 / 8
"""Share of elements that move up to which more are told in two bytes each."""


@dataclass
class PreparedTensors:
    """What a model's tensors are for each task."""

    tensors: dict[int, list[OwnTensor | None]] = field(default_factory=dict)
    """By the identity of the model's tensor: for each task; None for the base's."""
    bases: dict[str, str] = field(default_factory=dict)
    """The model's tensors that must hold the base's → the base's names of them."""
    made: dict[tuple[str, str, str], OwnTensor | None] = field(default_factory=dict)
    """By task, its tensor, and the model's: what was made, which copies of that task's share."""
    vectors: dict[tuple[str, str], SharedVector] = field(default_factory=dict)
    """Multi-task vectors by group and base tensor."""
    on_device: dict[int, DeviceVector] = field(default_factory=dict)
    """The same on the model's device, by the identity of those, where that is not the processor."""

    @property
    def vector_bytes(self) -> int:
        """Memory of the vectors."""
        here = sum(each.nbytes for each in self.vectors.values())
        return here + sum(each.nbytes for each in self.on_device.values())


def prepare(
    decoder: Decoder, model: nn.Module, tasks: Mapping[str, bool], shelf: Shelf, url: str, *, write: bool = False
) -> PreparedTensors:
    """Read and check all that the tasks need. The model is only looked at.

    Args:
        decoder: to which adapters are the models that they make.
        model: the model.
        tasks: by name, whether each is an adapter.
        shelf: where what is decoded is kept.
        url: of the archive, for messages.
        write: write the base into the model, where it does not hold it; when all else was done.

    Raises:
        ModelMismatchError: names or shapes differ, or the model does not hold the base.
        ArchiveError: something is damaged.
    """
    out = PreparedTensors()
    own = tensors_of(model)
    bindings = {}
    adapters = {task for task, is_one in tasks.items() if is_one}
    for task in tasks:
        places = decoder.task(task)
        free = [n for n, place in places.items() if place.entry.kind == "private" or place.entry.start is not None]
        bindings[task] = bind(model, shapes_of(places), task, free, partly=True)
        if task not in adapters:
            out.bases.update(_untold(decoder, task, bindings[task], own))
        decoder.check(task)
    for number, task in enumerate(tasks):
        each = _Preparing(decoder, task, bindings[task], own, shelf, out, made=task in adapters)
        for name, tensor in each.tensors():
            out.tensors.setdefault(id(own[name]), [None] * len(tasks))[number] = tensor
    _check_base(decoder, own, out.bases, url, write=write)
    return out


@dataclass(frozen=True)
class _Preparing:
    """One task's tensors in the places of a model's."""

    decoder: Decoder
    task: str
    binding: Binding
    own: Mapping[str, Tensor]
    shelf: Shelf
    out: PreparedTensors
    made: bool
    """Whether its tensors are made of an adapter's."""

    def tensors(self) -> Iterator[tuple[str, OwnTensor]]:
        """Those that are not the base's, by the model's names."""
        binding, places, own = self.binding, self.decoder.task(self.task), self.own
        again = check_overlaps(self.decoder, self.task, binding)
        parts: dict[str, list[str]] = {}
        for name in places:
            if name in again or name in binding.ignored or name not in binding.views:
                continue
            owner = binding.owners[name]
            source = str(places[name].entry.to) if places[name].entry.kind == "tied" else name
            entry = places[source].entry
            free = entry.kind == "private" or entry.start is not None
            if not own[owner].is_contiguous() or not (free or binding.views[name].shape == own[owner].shape):
                parts.setdefault(owner, []).append(name)
                continue
            task, origin = self._origin(source)
            from_base = self.decoder.task(task)[origin].entry.base
            if from_base is not None:
                self.out.bases[owner] = str(from_base)
            key = (task, origin, owner)
            if key not in self.out.made:
                self.out.made[key] = replace(self, task=task)._tensor(origin, own[owner])
            made = self.out.made[key]
            if made is not None:
                yield owner, made
        for owner, names in parts.items():
            yield owner, self._of_parts(names, own[owner])
        if binding.groups:
            converted(binding, self.decoder.tensors(self.task, binding.converted), own, self.task)
            for name in (binding.targets[target] for group in binding.groups for target in group.targets):
                yield name, DecodedTensor(tuple(own[name].shape), partial(self._converted, name), self.shelf)

    def _origin(self, name: str) -> tuple[str, str]:
        """Whose tensor one of the task's is: another task's, where it is that one's as it is."""
        task = self.task
        while not self.made:
            entry = self.decoder.task(task)[name].entry
            if entry.start is None or entry.coded is not None:
                break
            ground = self.decoder.places.start_of(task, name)
            _, relative, source = ground.members[0]
            other = self.decoder.task(relative)[source].entry
            if not ground.copied or (other.dtype, other.shape) != (entry.dtype, entry.shape):
                break
            task, name = relative, source
        return task, name

    def _tensor(self, name: str, own: Tensor) -> OwnTensor | None:
        """One of the task's tensors, in the smallest form that can be computed from; None for the base's."""
        decoder, entry = self.decoder, self.decoder.task(self.task)[name].entry
        shape, dtype = tuple(entry.shape or ()), TORCH[str(entry.dtype)]
        decoded = partial(self._decoded, name)
        if entry.start is not None:
            return self._of_relatives(name, own)
        if entry.kind == "base" and entry.covered == entry.numel and not self._rounds(str(entry.base), dtype):
            return None
        if entry.kind == "private" and self.made:
            return DecodedTensor(shape, decoded, self.shelf)
        if entry.kind == "private" or len(shape) < 2 or entry.numel <= _SMALL:
            return StoredTensor(decoded(own))
        if self._rounds(str(entry.base), dtype):
            return DecodedTensor(shape, decoded, self.shelf)
        width = entry.numel // max(shape[0], 1)
        rows = entry.covered // max(width, 1)
        tail = None if entry.covered == entry.numel else decoded(own)[rows:].clone()
        packed = decoder.packed(self.task, name)
        if packed is None:  # only rows of its own
            nothing = torch.zeros(-(-entry.covered // 8), dtype=torch.uint8)
            packed = PackedTensor("binary", nothing, 1, 1 << 20)
        base = partial(self._base, str(entry.base), entry.covered, dtype)
        vector = self._vector(name) if isinstance(packed, PackedTensor) else None
        levels = _chunks(packed, entry.covered, dtype, base, alone=vector is None)
        product = packed.product if isinstance(packed, PackedTensor) else None
        added = None if product is None else LowRankRows.of(product.to(lambda t: t.to(own.device)), rows, width)
        if dtype not in _NARROW and entry.kind in CONDITIONAL_KINDS:
            levels = levels if own.dtype == dtype and (added is None) == (product is None) else None
        if levels is None and not _holds(own.dtype, decoder.base_dtype(str(entry.base))):
            return DecodedTensor(shape, decoded, self.shelf)
        form = form_for(own.device)
        if levels is None or (form is not None and isinstance(packed, CodedConditional)):
            applied = partial(_applied, packed, dtype, tail)
            return DecodedTensor(shape, applied, self.shelf, tuple(packed.tensors))
        steps = isinstance(packed, CodedConditional)
        made = pack_rows(levels, (rows, width), dtype, packed.chunk, steps=steps, vector=vector, form=form)
        return RowsTensor(shape, placed(made, own.device, self.out.on_device), tail, added)

    def _of_relatives(self, name: str, own: Tensor) -> OwnTensor:
        """One that builds on other tasks' tensors: by how far its elements are from the base's, where they can tell."""
        decoder, entry = self.decoder, self.decoder.task(self.task)[name].entry
        shape, dtype = tuple(entry.shape or ()), TORCH[str(entry.dtype)]
        decoded = partial(self._decoded, name)
        if len(shape) < 2 or entry.numel <= _SMALL:
            return StoredTensor(decoded(own))
        counted = dtype in _NARROW and entry.base is not None and entry.covered == entry.numel
        if counted and decoder.base_dtype(str(entry.base)) == dtype and form_for(own.device) is None:
            after, size = decoder.tensors(self.task, [name])[name].reshape(-1), _CHUNK
            levels = _steps(
                lambda a, before: after[a : a + len(before)], self._base(str(entry.base), len(after), dtype), size
            )
            if levels is not None:
                return RowsTensor(shape, pack_rows(levels, _matrix(shape), dtype, size, steps=True))
        return DecodedTensor(shape, decoded, self.shelf)

    def _rounds(self, base: str, dtype: torch.dtype) -> bool:
        """Whether elements that a task does not move are not the model's all the same: they are rounded to its type."""
        return not _holds(dtype, self.decoder.base_dtype(base))

    def _base(self, name: str, n: int, dtype: torch.dtype) -> Tensor:
        return self.decoder.base_tensor(name).reshape(-1)[:n].to(dtype)

    def _vector(self, name: str) -> SharedVector | None:
        """The vector that a mask is over; None where that is 1."""
        key, held = self.decoder.vector_of(self.task, name), self.out.vectors
        if key is None:
            return None
        if key not in held:
            packed = self.decoder.packed_vector(*key)
            tables = None if packed.tables is None else packed.tables.numpy()
            held[key] = SharedVector(codes=packed.codes.numpy(), bits=packed.bits, tables=tables, chunk=packed.chunk)
        return held[key]

    def _decoded(self, name: str, own: Tensor) -> Tensor:
        """A tensor in the type of the model's."""
        return self.decoder.tensors(self.task, [name])[name].to(own.device, own.dtype)

    def _of_parts(self, names: Sequence[str], own: Tensor) -> DecodedTensor:
        """A tensor of the model that several of the task's are parts of, or that lies in memory in another way."""
        views = {name: self.binding.views[name] for name in names}
        first = own.storage_offset()
        places = {n: (tuple(v.shape), v.stride(), int(v.storage_offset() - first)) for n, v in views.items()}

        def make(base: Tensor) -> Tensor:
            out = base.clone(memory_format=torch.preserve_format)
            for name, value in self.decoder.tensors(self.task, names).items():
                shape, stride, offset = places[name]
                out.as_strided(shape, stride, offset).copy_(value)
            return out

        return DecodedTensor(tuple(own.shape), make, self.shelf)

    def _converted(self, name: str, own: Tensor) -> Tensor:
        """A tensor that the library makes of several of the task's."""
        made = self.binding.convert(self.decoder.tensors(self.task, self.binding.converted))
        return made[name].to(own.device, own.dtype)


def _holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether one type has every number of another."""
    wide = {torch.float64: 2, torch.float32: 1}
    return dtype == other or wide.get(dtype, 0) > wide.get(other, 0)


def _chunks(
    packed: PackedTensor | CodedConditional, n: int, dtype: torch.dtype, base: Callable[[], Tensor], *, alone: bool
) -> Iterator[LevelChunk] | None:
    """Levels of every element, chunk by chunk; None where they are no levels. alone: no vector is needed."""
    if isinstance(packed, CodedConditional):
        return _steps(partial(_after, packed), base(), packed.chunk) if dtype in _NARROW else None
    if packed.kind == "values" or dtype not in {torch.float32, torch.float64, *_NARROW}:
        return None
    return _levels(packed, n, base() if dtype in _NARROW and alone else None)


def _levels(packed: PackedTensor, n: int, base: Tensor | None) -> Iterator[LevelChunk]:
    """`base`: of a narrow type, whose elements marks may leave as they are: such marks are left out."""
    codes = packed.codes.numpy()
    for index, a in enumerate(range(0, n, packed.chunk)):
        b = min(a + packed.chunk, n)
        own = codes[a * packed.bits // 8 : -(-b * packed.bits // 8)]
        if packed.tables is not None:
            levels, table = unpacked(own, packed.bits, b - a), packed.tables[index].numpy()
        else:
            scale = 1.0 if packed.scales is None else float(packed.scales[index])
            levels = reference.unpack(own, packed.kind, b - a)
            table = np.array([0, scale, -scale][: 1 + packed.bits], np.float32)
        if base is not None and not table.all():
            before = base[a:b]
            after = torch.empty_like(before)
            packed.apply(after, before, a)
            levels = np.where((after == before).numpy(), np.uint8(table.tolist().index(0)), levels)
        yield LevelChunk(levels, table)


def _after(packed: CodedConditional, a: int, before: Tensor) -> Tensor:
    """A task's elements from `a` on, given the base's."""
    after = torch.empty_like(before)
    packed.apply(after, before, a)
    return after


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows, and elements of each."""
    return shape[0], math.prod(shape[1:])


def _steps(after: Callable[[int, Tensor], Tensor], base: Tensor, size: int) -> Iterator[LevelChunk] | None:
    """Units in the last place by which elements differ; None where they take less memory as they are coded.

    Args:
        after: a task's elements from a place on, given the base's there.
        base: shape (n,).
        size: elements a chunk.
    """
    word = _NARROW[base.dtype]
    chunks: list[tuple[Tensor, Tensor]] = []
    used, marks = {0}, 0
    for a in range(0, len(base), size):
        before = base[a : a + size]
        moved = _ordered(after(a, before).view(word)) - _ordered(before.view(word))
        places = torch.nonzero(moved).reshape(-1)
        used |= set(torch.unique(moved[places]).tolist())
        marks += len(places)
        if len(used) > _FEW_STEPS and marks > _SPARSE * len(base):
            return None
        chunks.append((places, moved[places]))
    every = torch.tensor([0, *sorted(used - {0})])
    table = every.numpy().astype(np.float32)
    order = torch.tensor(sorted(used))
    number = torch.where(order < 0, torch.arange(1, len(order) + 1), torch.arange(len(order)))
    number[order == 0] = 0
    sizes = (min(size, len(base) - a) for a in range(0, len(base), size))
    kind: type[np.unsignedinteger[Any]] = np.uint8 if len(used) <= _FEW_STEPS else np.uint16

    def chunk(size: int, places: Tensor, moved: Tensor) -> LevelChunk:
        codes = np.zeros(size, kind)
        codes[places.numpy()] = number[torch.searchsorted(order, moved.long())].numpy()
        return LevelChunk(codes, table)

    return (chunk(size, places, moved) for size, (places, moved) in zip(sizes, chunks, strict=True))


def _ordered(words: Tensor) -> Tensor:
    """Bits of floats as integers that grow with them."""
    wide = words.to(torch.int32)
    return torch.where(wide < 0, wide ^ 0x7FFF, wide)


def _applied(packed: PackedTensor | CodedConditional, dtype: torch.dtype, tail: Tensor | None, own: Tensor) -> Tensor:
    """What codes make of the model's tensor, the base's."""
    covered = own.numel() - (0 if tail is None else tail.numel())
    base = own.reshape(-1)[:covered].to(dtype)
    out = torch.empty_like(base)
    for a in range(0, len(base), packed.chunk):
        packed.apply(out[a : a + packed.chunk], base[a : a + packed.chunk], a)
    return torch.cat([out.to(own.dtype), *([] if tail is None else [tail.reshape(-1)])]).reshape(own.shape)


def _untold(decoder: Decoder, task: str, binding: Binding, own: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """The model's tensors for which a task has nothing though the base has, and the base's: they must be the base's.

    What other tasks have beside the base, such as heads, may be anything: this one's outputs need it for nothing.
    """
    used = {place.entry.base for place in decoder.task(task).values()}
    lacking = [name for name in decoder.places.base_names if name not in used]
    for name in untold(binding, own):
        for base in lacking:
            alike = f".{name}".endswith(f".{base}") or f".{base}".endswith(f".{name}")
            if alike and tuple(own[name].shape) == decoder.places.base_facts(base).shape:
                yield name, base
                break


def _check_base(
    decoder: Decoder, own: Mapping[str, Tensor], bases: Mapping[str, str], url: str, *, write: bool
) -> None:
    """Raise unless the model holds the base's elements, in its own type, wherever tasks add to them; or write them."""
    for name, base in bases.items():
        held = own[name].detach().view(-1)
        wanted = decoder.base_tensor(base).reshape(-1)[: len(held)].to(held.device, held.dtype)
        if torch.equal(held[: len(wanted)], wanted):
            continue
        if not write:
            raise ModelMismatchError(
                f"the model's {name!r} is not the base's {base!r} of {url}: tasks are added to the base, so the model "
                "must hold it: load the base's weights, or give write_base=True, which writes them into the model"
            )
        held[: len(wanted)] = wanted
        touched([own[name]])
