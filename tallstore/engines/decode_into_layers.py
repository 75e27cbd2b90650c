"""Layers that a task is decoded straight into, past an engine's general way of loading.

That way makes every layer anew, copies what it is given, and copies it again. Where a layer's parameters hold tensors
of the checkpoint as they are, or rows of several one below the other, none of that is needed: they are written where
they lie, and the engine then makes of them what its device wants. Which parameters these are is not guessed. When the
engine has loaded a task by its own way, and before it prepares the layers, what they hold is compared with what it was
given.

Layers are decoded side by side, on every core that there is, while the caller's thread, which the engine knows,
prepares those that are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tallstore.concurrency import ordered
from tallstore.engines.cores import cores, unbind
from tallstore.engines.digests import hash_of
from tallstore.engines.worker_catalogue import Catalogue
from tallstore.tensors import TORCH

__all__ = ["Part", "StraightLayers", "WrittenParameter", "written_parameters"]

_TOGETHER = 1 << 22
"""Bytes that are decoded by one call, and by one thread."""
_IN_FLIGHT = 1 << 26
"""Bytes of layers that are decoded and not yet prepared, at most; or two layers, if they are larger."""
_ALIGNED = 64
"""Bytes that scratch memory is aligned to."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of a parameter that are a tensor of the checkpoint."""

    name: str
    """The tensor's."""
    first: int
    last: int
    """The row behind its last."""


@dataclass(frozen=True, kw_only=True)
class WrittenParameter:
    """A parameter that holds tensors of the checkpoint."""

    owners: tuple[tuple[str, str], ...]
    """The modules that have it, by path, and its name in each."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def written_parameters(
    model: nn.Module,
    applied: Mapping[str, str],
    shapes: Mapping[str, Sequence[int]],
    fused: Mapping[str, Sequence[str]],
) -> tuple[WrittenParameter, ...]:
    """Which parameters hold tensors that the model was given, as they are.

    Args:
        model: as loaded, before an engine prepares its layers.
        applied: the hash of each tensor that it was given, by the checkpoint's name.
        shapes: the shapes of these.
        fused: the last part of a module's path → of those whose tensors it may hold one below the other.
    """
    owners: dict[int, list[tuple[str, str]]] = {}
    tensors: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        owners.setdefault(id(parameter), []).append((path, leaf))
        tensors[id(parameter)] = parameter.detach()
    found = []
    for key, tensor in tensors.items():
        for path, leaf in owners[key]:
            parts = _parts(tensor, path, leaf, applied, shapes, fused)
            if parts:
                found.append(
                    WrittenParameter(
                        owners=tuple(owners[key]), shape=tuple(tensor.shape), dtype=tensor.dtype, parts=parts
                    )
                )
                break
    return tuple(found)


def _parts(
    tensor: Tensor,
    path: str,
    leaf: str,
    applied: Mapping[str, str],
    shapes: Mapping[str, Sequence[int]],
    fused: Mapping[str, Sequence[str]],
) -> tuple[Part, ...]:
    """What a parameter holds, from its first row on; nothing if it is something else."""
    name = f"{path}.{leaf}" if path else leaf
    outer, dot, last = path.rpartition(".")
    names = [name] if name in applied else [f"{outer}{dot}{each}.{leaf}" for each in fused.get(last, ())]
    parts: list[Part] = []
    row = 0
    if not tensor.dim() or not tensor.is_contiguous():
        return ()
    for each in names:
        shape = tuple(shapes.get(each, ()))
        if each not in applied or not shape or shape[1:] != tuple(tensor.shape[1:]) or row + shape[0] > len(tensor):
            return ()
        if hash_of(tensor[row : row + shape[0]]) != applied[each]:
            return ()
        parts.append(Part(name=each, first=row, last=row + shape[0]))
        row += shape[0]
    return tuple(parts)


class StraightLayers:
    """The layers of one model that are written straight."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[WrittenParameter],
        may: Callable[[nn.Module], bool],
        finish: Callable[[nn.Module], object],
    ) -> None:
        """
        Args:
            model: the model, as it serves.
            parameters: what it holds, of `written_parameters`.
            may: whether a layer is of a kind that is whole once its parameters are written and it is finished.
            finish: makes of a layer's parameters what the device wants.
        """
        self._finish = finish
        self._scratch: list[Tensor] = []
        self._parameters = _whole_layers(model, parameters, may)
        self._modules = {path: model.get_submodule(path) for each in self._parameters for path, _ in each.owners}

    def write(self, catalogue: Catalogue, task: str, names: Sequence[str], applied: dict[str, str]) -> list[str]:
        """Write those tensors of a task that can be. Returns the names of the others; `applied` is given hashes.

        Where it fails, some layers are written and others not, or in part.
        """
        facts, asked = catalogue.tensors(task), set(names)
        layers = []
        for layer in self._layers():
            fits = all(
                TORCH.get(facts[part.name].dtype) == each.dtype
                for each in layer
                for part in each.parts
                if part.name in facts
            )
            own = {part.name for each in layer for part in each.parts}
            if fits and own <= facts.keys() and own & asked:
                layers.append(layer)
                asked -= own
        groups = list(_grouped(layers))
        threads = len(cores()) or 1
        most = max((self._size(group) for group in groups), default=0)
        workers = max(1, min(threads, _IN_FLIGHT // max(most, 1) - 1))
        jobs = (partial(_decode, catalogue, task, self._targets(group), threads) for group in groups)
        decoded = ordered(jobs, workers, ahead=workers + 1, name="tallstore-straight", initializer=unbind)
        with closing(decoded):  # whatever fails: no thread writes on when this returns
            for targets, hashes in decoded:
                applied |= hashes
                self._take(targets)
        return [name for name in names if name in asked]

    def held(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The model's own memory of tensors of the checkpoint, by name: of parameters that are nothing but these."""
        wanted = set(names)
        found: dict[str, Tensor] = {}
        for layer in self._layers():
            for each in layer:
                there = self._held(each)
                if _in_place(there) and each.parts[-1].last == len(there) and wanted >= {p.name for p in each.parts}:
                    found |= {part.name: there[part.first : part.last] for part in each.parts}
        return found

    def _layers(self) -> list[list[WrittenParameter]]:
        """Parameters that are written together, as a module has them all; those of now, in the model's order."""
        found: dict[str, list[WrittenParameter]] = {}
        joined: dict[str, str] = {}
        for each in self._parameters:
            first = joined.get(each.owners[0][0], each.owners[0][0])
            for path, _ in each.owners:
                joined[path] = first
            found.setdefault(first, []).append(each)
        return [layer for layer in found.values() if all(self._as_it_was(each) for each in layer)]

    def _as_it_was(self, parameter: WrittenParameter) -> bool:
        """Whether a parameter is in memory as it was when it was loaded, or was given up for the device's own form."""
        tensors = [self._modules[path]._parameters.get(leaf) for path, leaf in parameter.owners]
        first = tensors[0]
        if first is None or any(tensor is not first for tensor in tensors):
            return False
        if not first.numel():
            return len(tensors) == 1
        return tuple(first.shape) == parameter.shape and first.dtype == parameter.dtype and first.is_contiguous()

    def _targets(self, group: Sequence[WrittenParameter]) -> list[_DecodedInto]:
        """Where parameters are decoded into: themselves, or memory for what is written elsewhere first."""
        held = [self._held(each) for each in group]
        size, at, room = self._size(group), 0, None
        if size:
            room = next((each for each in self._scratch if len(each) >= size), None)
            if room is not None:
                self._scratch = [each for each in self._scratch if each is not room]
            else:
                room = torch.empty(size, dtype=torch.uint8)
        targets = []
        for each, there in zip(group, held, strict=True):
            if _in_place(there):
                targets.append(_DecodedInto(each, there, there, None))
                continue
            assert room is not None
            targets.append(
                _DecodedInto(each, there, room[at : at + each.nbytes].view(each.dtype).view(each.shape), room)
            )
            at += _aligned(each.nbytes)
        return targets

    def _take(self, targets: Sequence[_DecodedInto]) -> None:
        """Give the model what was decoded, and have its layers finished."""
        for each in targets:
            if not each.held.numel():
                path, leaf = each.parameter.owners[0]
                self._modules[path].register_parameter(leaf, nn.Parameter(each.here, requires_grad=False))
            elif each.here is not each.held:
                last = each.parameter.parts[-1].last
                with torch.inference_mode():
                    each.held[:last].copy_(each.here[:last])
        for path in dict.fromkeys(path for each in targets for path, _ in each.parameter.owners):
            self._finish(self._modules[path])
        rooms = {id(each.room): each.room for each in targets if each.room is not None}
        kept = {id(each.room) for each in targets if each.room is not None and self._uses(each)}
        for key, room in rooms.items():
            if key not in kept and sum(map(len, self._scratch)) + len(room) <= _IN_FLIGHT:
                self._scratch.append(room)

    def _uses(self, target: _DecodedInto) -> bool:
        """Whether a finished layer still computes from the memory that was decoded into."""
        held = self._held(target.parameter)
        return held.numel() > 0 and held.data_ptr() == target.here.data_ptr()

    def _held(self, parameter: WrittenParameter) -> Tensor:
        """What a parameter is now."""
        path, leaf = parameter.owners[0]
        held = self._modules[path]._parameters[leaf]
        assert held is not None
        return held.detach()

    def _size(self, group: Sequence[WrittenParameter]) -> int:
        """Bytes that are written elsewhere first."""
        return sum(_aligned(each.nbytes) for each in group if not _in_place(self._held(each)))


@dataclass(frozen=True, eq=False)
class _DecodedInto:
    """Where a parameter is decoded into."""

    parameter: WrittenParameter
    held: Tensor
    """What the model has there."""
    here: Tensor
    """The same, if it can be written as it is; else a part of `room`."""
    room: Tensor | None


def _decode(
    catalogue: Catalogue, task: str, targets: list[_DecodedInto], threads: int
) -> tuple[list[_DecodedInto], dict[str, str]]:
    """Decode parameters; they, and the hash of each tensor of the checkpoint. One thread does what is not large."""
    out = {part.name: each.here[part.first : part.last] for each in targets for part in each.parameter.parts}
    large = sum(each.parameter.nbytes for each in targets) > 2 * _TOGETHER
    catalogue.fill(task, out, threads=threads if large else 1)
    return targets, {name: hash_of(tensor) for name, tensor in out.items()}


def _in_place(held: Tensor) -> bool:
    """Whether a parameter's own memory can be decoded into."""
    return held.numel() > 0 and held.device.type == "cpu"


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _whole_layers(
    model: nn.Module, parameters: Sequence[WrittenParameter], may: Callable[[nn.Module], bool]
) -> list[WrittenParameter]:
    """Those whose modules may be written, and have no parameter beside them that is not written."""
    modules = dict(model.named_modules())
    left = list(parameters)
    while True:
        known = {owner for each in left for owner in each.owners}
        whole = {
            path
            for path, module in modules.items()
            if may(module) and all((path, leaf) in known for leaf, own in module._parameters.items() if own is not None)
        }
        fewer = [each for each in left if all(path in whole for path, _ in each.owners)]
        if len(fewer) == len(left):
            return left
        left = fewer


def _grouped(layers: Sequence[list[WrittenParameter]]) -> Iterator[list[WrittenParameter]]:
    """Layers that are decoded together: enough for a thread's turn, and not much memory."""
    group: list[WrittenParameter] = []
    for layer in layers:
        if group and sum(each.nbytes for each in (*group, *layer)) > _TOGETHER:
            yield group
            group = []
        group = [*group, *layer]
    if group:
        yield group
