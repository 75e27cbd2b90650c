"""Writing a task into a model's own tensors: what must fit, and how it is written without a copy in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tallstore.archive.binding import Binding, bind, shapes_of, tensors_of
from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Place
from tallstore.errors import ModelMismatchError
from tallstore.tensors import TORCH

__all__ = ["check_overlaps", "converted", "decode_into", "load_into", "touched", "version_of"]


def touched(tensors: Iterable[Tensor]) -> None:
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
    binding = bind(model, shapes_of(places), task)
    again = check_overlaps(decoder, task, binding)
    views = {name: view for name, view in binding.views.items() if name not in again}
    straight = {}
    if decoder.base_cannot_fail(task):
        straight = {n: v.view(-1) for n, v in views.items() if _takes(v, own[binding.owners[n]], places[n])}
    ready = decoder.prepare(task, straight)
    values = decoder.tensors(task, [*(name for name in views if name not in straight), *binding.converted])
    made = converted(binding, values, own, task)
    decoder.write(task, straight, ready)
    with torch.no_grad():
        for name in views.keys() & values.keys():
            views[name].copy_(values[name])
        for name, value in made.items():
            own[name].copy_(value)
    touched(own[name] for name in dict.fromkeys(binding.owners[name] for name in straight))


def decode_into(decoder: Decoder, task: str, out: Mapping[str, Tensor], url: str, threads: int | None) -> None:
    """Decode tensors of a task into memory that is given: contiguous, on the CPU, of their shapes and types.

    Nothing is written where one of them does not fit; where something is damaged, others may have been.
    """
    places = decoder.task(task)
    sources = {name: places[decoder.places.source(task, name)] for name in out}
    shapes = shapes_of(sources)
    for name, tensor in out.items():
        place = sources[name]
        if not _takes(tensor, tensor, place) or tuple(tensor.shape) != shapes[name]:
            raise ModelMismatchError(
                f"{url}: task {task!r}: {name!r} is {place.entry.dtype} {list(shapes[name])}, which the memory given "
                f"({tensor.dtype} {list(tensor.shape)} on {tensor.device}) is not"
            )
    decoder.fill(task, {name: tensor.detach().view(-1) for name, tensor in out.items()}, threads)


def check_overlaps(decoder: Decoder, task: str, binding: Binding) -> set[str]:
    """Raise ModelMismatchError where two different tensors of a task would be written to one memory of the model.

    Returns those that need not be written, as another one with the same values goes to the same place.
    """
    places = decoder.task(task)
    again = set()
    values: dict[str, Tensor] = {}
    for each in binding.overlaps():
        pair = (each.first, each.second)
        first, second = (str(places[n].entry.to) if places[n].entry.kind == "tied" else n for n in pair)
        if first != second:
            values |= decoder.tensors(task, [name for name in pair if name not in values])
            parts = [
                values[name].reshape(-1)[start : start + each.length].to(binding.views[name].dtype)
                for name, start in zip(pair, each.starts, strict=True)
            ]
            if not torch.equal(parts[0].view(torch.uint8), parts[1].view(torch.uint8)):
                raise ModelMismatchError(
                    f"task {task!r} does not fit the model: {each.first!r} and {each.second!r} are different in the "
                    "task, and the model has one memory for both (it ties them): build it untied, for transformers "
                    "with config.tie_word_embeddings=False; nothing was written"
                )
        if each.length == binding.views[each.second].numel():
            again.add(each.second)
    return again


def converted(
    binding: Binding, values: Mapping[str, Tensor], own: Mapping[str, Tensor], task: str
) -> dict[str, Tensor]:
    """The model's tensors that are no views: made by the library's conversion, their shapes checked."""
    if not binding.groups:
        return {}
    try:
        made = binding.convert(values)
    except Exception as error:  # the library's operations fail in ways of their own
        raise ModelMismatchError(
            f"task {task!r} does not fit the model: the library cannot convert {binding.converted[0]!r} "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}); "
            "nothing was written"
        ) from error
    for name, value in made.items():
        if value.shape != own[name].shape:
            raise ModelMismatchError(
                f"task {task!r} does not fit the model: of another shape: {name!r} (model {list(own[name].shape)}, "
                f"task {list(value.shape)} after conversion); nothing was written"
            )
    return made


def _takes(tensor: Tensor, owner: Tensor, place: Place) -> bool:
    """Whether a task's tensor can be decoded straight into a part of a model's tensor, or all of it."""
    dtype = place.entry.dtype
    return (
        dtype is not None
        and tensor.device.type == "cpu"
        and tensor.dtype == TORCH[dtype]
        and tensor.is_contiguous()
        and type(owner.data) is Tensor
    )
