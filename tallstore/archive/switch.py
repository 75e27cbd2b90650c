"""One model in memory, and any of several tasks in it from one moment to the next.

Base, vector and the packed masks of the chosen tasks stay resident on the model's device; switching rewrites the
model's own tensors from them in one pass over memory. Nothing is read and nothing can be found damaged then.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from tallstore.archive.binding import Binding, bind, shapes_of, tensors_of
from tallstore.archive.decode import Decoder, Job
from tallstore.archive.load_into import check_overlaps, converted, touched, version_of
from tallstore.archive.merging.alignment import line_up
from tallstore.archive.resident import PackedTensor
from tallstore.archive.resident_conditional import CodedConditional
from tallstore.concurrency import run_all
from tallstore.errors import ModelChangedError, NoSuchTaskError
from tallstore.format.manifest import Manifest, names_of
from tallstore.tensors import TORCH, shape_of

__all__ = ["Switcher"]


@dataclass(frozen=True)
class _LastWritten:
    """What a model's tensor looked like when it was last written."""

    tensor: Tensor
    pointer: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _LastWritten:
        return cls(tensor, tensor.data_ptr(), tuple(tensor.shape), tensor.dtype, version_of(tensor))

    def changed(self, now: Tensor) -> str:
        """What is different; nothing if it is the same."""
        if now is not self.tensor:
            return "was replaced"
        if now.dtype != self.dtype or tuple(now.shape) != self.shape or now.data_ptr() != self.pointer:
            return "was moved or converted"
        if version_of(now) != self.version:
            return "was written to"
        return ""


@dataclass(frozen=True)
class _Target:
    """One of the model's tensors, or a part of it that is a tensor of the task's by itself."""

    owner: str
    part: tuple[tuple[int, ...], tuple[int, ...], int] | None = None
    """Shape, strides and offset of a part."""

    @classmethod
    def of(cls, view: Tensor, owner: str, own: Mapping[str, Tensor]) -> _Target:
        whole = own[owner]
        if view.shape == whole.shape and view.stride() == whole.stride():
            return cls(owner)
        return cls(owner, (tuple(view.shape), view.stride(), int(view.storage_offset() - whole.storage_offset())))

    def within(self, own: Mapping[str, Tensor]) -> Tensor:
        """The memory that is meant."""
        tensor = own[self.owner].detach()
        if self.part is None:
            return tensor
        shape, strides, offset = self.part
        return tensor.as_strided(shape, strides, tensor.storage_offset() + offset)


@dataclass
class _Slot:
    """What one of the model's tensors, or a part of one, becomes for one task."""

    name: str
    """The task's."""
    target: _Target | None = None
    """Where it goes; None if it must be converted with others first."""
    base: Tensor | None = None
    """θ0 of the leading elements, flat, on the model's device."""
    packed: PackedTensor | CodedConditional | None = None
    """What is added to it; the base as it is if None."""
    dtype: torch.dtype = torch.float32
    """The task's type D: what is computed is rounded to it before the model's type."""
    tail: Tensor | None = None
    """The elements behind those, or all of them: as stored."""
    shape: tuple[int, ...] = ()


@dataclass
class _State:
    """All that is written to make the model one task, or the base."""

    slots: list[_Slot]
    binding: Binding | None = None
    """Converts what no slot has a target for."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """The model's own tensors, as they are to be."""


class Switcher:
    """Makes a model any of several tasks, in place.

    The model is as it was until the first `switch`. Its parameters stay the same objects, so optimizers, compiled
    graphs and tied weights keep pointing at them; only a head whose shape differs between tasks gets other memory.
    Not for several threads at once: a model can be but one task at a time.
    """

    def __init__(self, decoder: Decoder, manifest: Manifest, url: str, model: nn.Module, tasks: Sequence[str]) -> None:
        self._model, self._url = model, url
        self._tasks = tuple(tasks)
        self._lock = threading.Lock()
        self._threads = decoder.threads
        self._task: str | None = None
        own = tensors_of(model)
        bindings: dict[str, Binding] = {}
        for task in self._tasks:
            places = decoder.task(task)
            free = [name for name, place in places.items() if place.entry.kind == "private"]
            bindings[task] = bind(model, shapes_of(places), task, free)
            decoder.check(task)
        self._bases: dict[tuple[str, torch.device], Tensor] = {}
        self._vectors: dict[tuple[str, str, torch.device], Tensor] = {}
        self._slots = {task: self._prepare(decoder, task, bindings[task], own) for task in self._tasks}
        self._plain = self._without_task(decoder, manifest, own)
        self._seen = {name: _LastWritten.of(tensor) for name, tensor in own.items()}

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be switched to, besides None."""
        return self._tasks

    @property
    def task(self) -> str | None:
        """What the model is now; None for the base, or before the first switch."""
        return self._task

    @property
    def resident_bytes(self) -> int:
        """Memory held: base, vectors, masks and what tasks store whole, without the model's own."""
        held: dict[int, int] = {}
        for state in (*self._slots.values(), self._plain):
            held |= {t.data_ptr(): t.numel() * t.element_size() for t in state.kept.values()}
            for slot in state.slots:
                tensors = [slot.base, slot.tail, *(slot.packed.tensors if slot.packed else ())]
                held |= {t.data_ptr(): t.numel() * t.element_size() for t in tensors if t is not None}
        return sum(held.values())

    def switch(self, task: str | None, *, force: bool = False) -> None:
        """Rewrite the model's tensors: a task's weights, or with None the base's (heads as they were at first).

        The same bits as `Zoo.state_dict(task)`, converted to the model's types. All or nothing: if it is interrupted,
        the model is put back.

        Args:
            task: one of `tasks`, or None.
            force: also where the model's weights were changed since the last switch; the changes are lost.

        Raises:
            NoSuchTaskError: the switcher was not made for this task.
            ModelChangedError: a tensor was replaced, moved, converted or written to meanwhile. Nothing was written.
        """
        if task is not None and task not in self._slots:
            raise NoSuchTaskError(f"{self._url}: the switcher has no task {task!r}; it has {names_of(self._tasks)}")
        with self._lock:
            own = self._unchanged(force=force)
            before = self._slots[self._task] if self._task is not None else self._plain
            try:
                self._write(self._slots[task] if task is not None else self._plain, own)
            except BaseException:
                self._write(before, own)
                raise
            finally:
                self._seen = {name: _LastWritten.of(tensor) for name, tensor in own.items()}
            self._task = task

    def _unchanged(self, *, force: bool) -> dict[str, Tensor]:
        own = tensors_of(self._model)
        for name, seen in self._seen.items():
            what = seen.changed(own[name]) if name in own else "is gone"
            if what and not (force and what == "was written to"):
                remedy = "switch(…, force=True) overwrites it" if what == "was written to" else "make a new switcher"
                raise ModelChangedError(f"the model's {name!r} {what} since the last switch: {remedy}")
        return own

    # ------------------------------------------------------------------------------------------------- what is held

    def _prepare(self, decoder: Decoder, task: str, binding: Binding, own: Mapping[str, Tensor]) -> _State:
        """Read, check and keep all that a task needs."""
        slots = []
        again = check_overlaps(decoder, task, binding)
        converted(binding, decoder.tensors(task, binding.converted), own, task)
        places = decoder.task(task)
        apart = {
            binding.names[name]: own[binding.targets[group.target]].device
            for group in binding.groups
            for _, name in group.sources
        }
        for name, place in places.items():
            if name in again or name in binding.ignored:
                continue
            source = str(place.entry.to) if place.entry.kind == "tied" else name
            entry = places[source].entry
            target = None if name in apart else _Target.of(binding.views[name], binding.owners[name], own)
            device = apart[name] if target is None else own[target.owner].device
            shape = shape_of(str(entry.dtype), entry.shape or ())
            slot = _Slot(name, target, dtype=TORCH[str(entry.dtype)], shape=shape)
            alone = entry.kind == "private" or entry.start is not None  # what other tasks are in is not held for it
            if alone or entry.covered < entry.numel:
                whole = decoder.tensors(task, [source])[source].reshape(-1)
                slot.tail = _resident(whole[0 if alone else entry.covered :].clone(), device)
            if not alone:
                slot.base = self._base(decoder, str(entry.base), device)[: entry.covered]
                slot.packed = self._packed(decoder, task, source, device)
            slots.append(slot)
        return _State(slots, binding if binding.groups else None)

    def _packed(
        self, decoder: Decoder, task: str, name: str, device: torch.device
    ) -> PackedTensor | CodedConditional | None:
        packed = decoder.packed(task, name)
        if packed is None:
            return None
        packed = packed.to(partial(_resident, device=device))
        vector = decoder.vector_of(task, name)
        if vector is None or isinstance(packed, CodedConditional):
            return packed
        key = (*vector, device)
        if key not in self._vectors:
            self._vectors[key] = _resident(decoder.vector_tensor(*vector).reshape(-1), device)
        return replace(packed, vector=self._vectors[key])

    def _base(self, decoder: Decoder, name: str, device: torch.device) -> Tensor:
        key = (name, device)
        if key not in self._bases:
            self._bases[key] = _resident(decoder.base_tensor(name).reshape(-1), device)
        return self._bases[key]

    def _without_task(self, decoder: Decoder, manifest: Manifest, own: Mapping[str, Tensor]) -> _State:
        """The base, and the model's own elements where it has none."""
        comes_from = {
            member.name: base
            for base, lineup in line_up(decoder, manifest, self._tasks).items()
            for member in lineup.members
        }
        plain_slots: dict[_Target, _Slot] = {}
        for slot in (slot for state in self._slots.values() for slot in state.slots):
            if slot.target is None or slot.target in plain_slots:
                continue
            tensor = slot.target.within(own)
            base, covered = comes_from.get(slot.name), 0
            plain = _Slot(slot.name, slot.target, dtype=slot.dtype, shape=tuple(tensor.shape))
            if base is not None:
                whole = self._base(decoder, base, tensor.device)
                covered = min(len(whole), tensor.numel())
                plain.base = whole[:covered]
            if covered < tensor.numel():
                plain.tail = tensor.reshape(-1)[covered:].clone()
            plain_slots[slot.target] = plain
        return self._base_converted(_State(list(plain_slots.values())), own)

    def _base_converted(self, plain: _State, own: Mapping[str, Tensor]) -> _State:
        """The same of what must be converted: of the base where it has all of it, else as the model has it."""
        for state in self._slots.values():
            if state.binding is None or plain.binding is not None:
                continue
            slots = {slot.name: slot for slot in state.slots if slot.target is None}
            if all(slot.base is not None and slot.tail is None for slot in slots.values()):
                plain.slots += [replace(slot, packed=None) for slot in slots.values()]
                plain.binding = state.binding
                continue
            names = [state.binding.targets[name] for group in state.binding.groups for name in group.targets]
            plain.kept |= {name: own[name].detach().clone() for name in names if name not in plain.kept}
        return plain

    # ---------------------------------------------------------------------------------------------------- switching

    def _write(self, state: _State, own: Mapping[str, Tensor]) -> None:
        jobs: list[Job] = []
        apart: dict[str, Tensor] = {}
        with torch.no_grad():
            for slot in state.slots:
                if slot.target is None:
                    assert slot.base is not None or slot.tail is not None
                    device = (slot.tail if slot.base is None else slot.base).device  # type: ignore[union-attr]  # one is there
                    target = apart[slot.name] = torch.empty(slot.shape, dtype=slot.dtype, device=device)
                else:
                    target = self._target(slot, slot.target, own)
                straight = target.is_contiguous()
                flat = target.view(-1) if straight else torch.empty_like(target.reshape(-1))
                jobs += _jobs(slot, flat)
                if not straight:
                    self._run(jobs)
                    jobs = []
                    target.copy_(flat.reshape(slot.shape))
            self._run(jobs)
            made = state.binding.convert(apart) if state.binding is not None else {}
            for name, value in (*made.items(), *state.kept.items()):
                own[name].copy_(value)
        owners = dict.fromkeys(slot.target.owner for slot in state.slots if slot.target is not None)
        touched(own[name] for name in owners)

    @staticmethod
    def _target(slot: _Slot, place: _Target, own: Mapping[str, Tensor]) -> Tensor:
        """The memory that a slot is written to: other memory than before if the shape is another."""
        target = place.within(own)
        if tuple(target.shape) == slot.shape:
            return target
        owner = own[place.owner]
        with torch.inference_mode(mode=version_of(owner) < 0):
            target = torch.empty(slot.shape, dtype=target.dtype, device=target.device)
        owner.data = target
        return target

    def _run(self, jobs: Sequence[Job]) -> None:
        run_all([partial(_quietly, job) for job in jobs], self._threads, "tallstore-switch")


def _quietly(job: Job) -> None:
    """Where inference tensors may be written too: the mode is each thread's own."""
    with torch.inference_mode():
        job()


def _jobs(slot: _Slot, out: Tensor) -> list[Job]:
    """What writes a tensor: run side by side on the CPU, in order on a device that has a queue of its own."""
    covered = 0 if slot.base is None else len(slot.base)
    jobs: list[Job] = []
    if slot.tail is not None:
        jobs.append(partial(out[covered:].copy_, slot.tail))
    if slot.base is None:
        return jobs
    step = covered if out.device.type != "cpu" else max(_SHARE, slot.packed.chunk if slot.packed else 0)
    for a in range(0, covered, max(step, 1)):
        b = min(a + step, covered)
        jobs.append(partial(_apply, slot, out[a:b], a))
    return jobs


_SHARE = 1 << 20
"""Elements a thread writes at a time on the CPU; a whole number of chunks, or a whole part of one."""


def _apply(slot: _Slot, out: Tensor, a: int) -> None:
    assert slot.base is not None
    before = slot.base[a : a + len(out)]
    exact = out if out.dtype == slot.dtype else torch.empty(len(out), dtype=slot.dtype, device=out.device)
    if slot.packed is None:
        exact.copy_(before)
    else:
        slot.packed.apply(exact, before, a)
    if exact is not out:
        out.copy_(exact)


def _resident(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the model's device; in host memory, with a warning, where that is full."""
    if device.type == "cpu":
        return tensor
    try:
        return tensor.to(device)
    except torch.OutOfMemoryError:
        warnings.warn(
            f"{device} has no memory left for masks: what does not fit stays in host memory, and switching is slower",
            ResourceWarning,
            stacklevel=2,
        )
        return tensor.pin_memory()
