"""Layers that a task is decoded straight into, past an engine's general way of loading.

That way makes every layer anew, copies what it is given, and copies it again. Where a layer's parameters hold tensors
of the checkpoint as they are, or rows of several one below the other, none of that is needed: they are written where
they lie, and the engine then makes of them what its device wants. Which parameters these are is not guessed. When the
engine has loaded a task by its own way, and before it prepares the layers, what they hold is compared with what it was
given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tallstore.engines.catalogue import Catalogue
from tallstore.engines.digests import hash_of, hashes_of
from tallstore.tensors import TORCH

__all__ = ["Part", "StraightLayers", "WrittenParameter", "written_parameters"]

_TOGETHER = 1 << 24
"""Bytes that are decoded by one call."""
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
        self._model, self._finish = model, finish
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._parameters = _whole_layers(model, parameters, may)

    def write(self, catalogue: Catalogue, task: str, names: Sequence[str], applied: dict[str, str]) -> list[str]:
        """Write those tensors of a task that can be. Returns the names of the others; `applied` is given hashes.

        Where it fails, layers before that are written and others not.
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
        for group in _grouped(layers):
            self._write(catalogue, task, group, applied)
        return [name for name in names if name in asked]

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
        tensors = [self._model.get_submodule(path)._parameters.get(leaf) for path, leaf in parameter.owners]
        first = tensors[0]
        if first is None or any(tensor is not first for tensor in tensors):
            return False
        if not first.numel():
            return len(tensors) == 1
        return tuple(first.shape) == parameter.shape and first.dtype == parameter.dtype and first.is_contiguous()

    def _write(
        self, catalogue: Catalogue, task: str, group: Sequence[WrittenParameter], applied: dict[str, str]
    ) -> None:
        room = iter(self._room(group))
        targets: list[tuple[WrittenParameter, Tensor, Tensor]] = []
        out: dict[str, Tensor] = {}
        for each in group:
            held = self._held(each)
            here = held if held.numel() and held.device.type == "cpu" else next(room)
            out |= {part.name: here[part.first : part.last] for part in each.parts}
            targets.append((each, held, here))
        catalogue.fill(task, out)
        applied |= hashes_of(out)
        modules = dict.fromkeys(path for each in group for path, _ in each.owners)
        for each, held, here in targets:
            if not held.numel():
                path, leaf = each.owners[0]
                self._model.get_submodule(path).register_parameter(leaf, nn.Parameter(here, requires_grad=False))
            elif held.device.type != "cpu":
                with torch.inference_mode():
                    held[: each.parts[-1].last].copy_(here[: each.parts[-1].last])
        for path in modules:
            self._finish(self._model.get_submodule(path))

    def _held(self, parameter: WrittenParameter) -> Tensor:
        """What a parameter is now."""
        path, leaf = parameter.owners[0]
        held = self._model.get_submodule(path)._parameters[leaf]
        assert held is not None
        return held.detach()

    def _room(self, group: Sequence[WrittenParameter]) -> Iterator[Tensor]:
        """Memory for what is written elsewhere first: of each such parameter its shape."""
        size = sum(-(-each.nbytes // _ALIGNED) * _ALIGNED for each in group)
        if len(self._scratch) < size:
            self._scratch = torch.empty(size, dtype=torch.uint8)
        at = 0
        for each in group:
            held = self._held(each)
            if held.numel() and held.device.type == "cpu":
                continue
            yield self._scratch[at : at + each.nbytes].view(each.dtype).view(each.shape)
            at += -(-each.nbytes // _ALIGNED) * _ALIGNED


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
    """Layers that are decoded together: enough for all threads, and not much memory."""
    group: list[WrittenParameter] = []
    for layer in layers:
        if group and sum(each.nbytes for each in (*group, *layer)) > _TOGETHER:
            yield group
            group = []
        group = [*group, *layer]
    if group:
        yield group
