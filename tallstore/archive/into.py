"""Writing a task into a model's own tensors: what must fit, and how it is written without a copy in between."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Place
from tallstore.errors import ModelMismatchError
from tallstore.tensors import TORCH, shape_of

__all__ = ["Shape", "check_fit", "load_into", "shapes_of", "tensors_of", "touched", "version_of"]

Shape = tuple[int, ...]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's own parameters and buffers, by the names of its state dict; not copies."""
    return {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}


def shapes_of(places: Mapping[str, Place]) -> dict[str, Shape]:
    """The shapes of a task's tensors, tied ones included."""
    shown = {n: places[str(p.entry.to)] if p.entry.kind == "tied" else p for n, p in places.items()}
    return {name: shape_of(str(place.entry.dtype), place.entry.shape or ()) for name, place in shown.items()}


def check_fit(own: Mapping[str, Tensor], shapes: Mapping[str, Shape], task: str, free: Collection[str] = ()) -> None:
    """Raise ModelMismatchError unless a model has a task's tensors, and no others.

    `free`: names whose shapes may differ.
    """
    if lost := next((name for name, tensor in own.items() if tensor.is_meta), None):
        raise ModelMismatchError(
            f"task {task!r} cannot be written: the model's {lost!r} has no memory (device meta); "
            "give it some with model.to_empty(device='cpu'); nothing was written"
        )
    held = {tensor.data_ptr() for name, tensor in own.items() if name in shapes}
    missing = [n for n in shapes if n not in own]
    extra = [n for n, tensor in own.items() if n not in shapes and tensor.data_ptr() not in held]
    wrong = [n for n in own if n in shapes and n not in free and tuple(own[n].shape) != shapes[n]]
    for names, text in ((missing, "the model lacks"), (extra, "the task lacks"), (wrong, "of another shape:")):
        if names:
            first = names[0]
            shown = f" (model {list(own[first].shape)}, task {list(shapes[first])})" if names is wrong else ""
            raise ModelMismatchError(
                f"task {task!r} does not fit the model: {text} {first!r}{shown}"
                f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}; nothing was written"
            )


def touched(tensors: Collection[Tensor]) -> None:
    """Tell autograd that tensors changed, so that a backward pass that needs their old values says so."""
    for tensor in tensors:
        if version_of(tensor) >= 0:
            torch.autograd.graph.increment_version(tensor)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; −1 for inference tensors, which do not count."""
    try:
        return tensor._version
    except RuntimeError:
        return -1


def load_into(decoder: Decoder, model: nn.Module, task: str) -> None:
    """Write a task's weights into a model's own tensors. Everything is checked before the first is written."""
    places = decoder.task(task)
    own = tensors_of(model)
    check_fit(own, shapes_of(places), task)
    wanted = [name for name in own if name in places]
    straight = {}
    if decoder.base_cannot_fail(task):
        straight = {name: own[name].detach().view(-1) for name in wanted if _takes(own[name], places[name])}
    ready = decoder.prepare(task, straight)
    values = decoder.tensors(task, [name for name in wanted if name not in straight])
    decoder.write(task, straight, ready)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    touched([own[name] for name in straight])


def _takes(tensor: Tensor, place: Place) -> bool:
    """Whether a task's tensor can be decoded straight into a model's."""
    dtype = place.entry.dtype
    return (
        dtype is not None
        and tensor.device.type == "cpu"
        and tensor.dtype == TORCH[dtype]
        and tensor.is_contiguous()
        and type(tensor.data) is Tensor
    )
