"""Whether tasks have tensors alike that the base has not: a few elements of each tell, and then all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tallstore.checkpoints import Checkpoint
from tallstore.encoder.components import matched
from tallstore.encoder.tied_weights import tied_names
from tallstore.errors import TallstoreError
from tallstore.format.dtypes import size_of
from tallstore.tensors import as_bytes

__all__ = ["any_alike"]

_LEAST = 1 << 14
"""Bytes of a tensor from which on it is looked for."""
_SAMPLE, _PLACES = 64, 32
_RUN = 1 << 20


def any_alike(base: Checkpoint, tasks: Mapping[str, Checkpoint]) -> bool:
    """Whether a tensor of one task is, to the last bit, another task's of the same name and not the base's."""
    first: dict[tuple[object, ...], str] = {}
    for name, task in tasks.items():
        if task.adapter is not None:
            continue
        for tensor, info in task.tensors.items():
            if tensor in task.ties or size_of(info.dtype, info.shape) < _LEAST:
                continue
            key = tensor, info.dtype, info.shape, _sample(task, tensor)
            other = first.setdefault(key, name)
            if other == name or not _equal(task, tensor, tasks[other], tensor):
                continue
            if not _is_the_bases(base, task, tensor):
                return True
    return False


def _is_the_bases(base: Checkpoint, task: Checkpoint, tensor: str) -> bool:
    there = tensor
    if tensor not in base.tensors:
        try:
            matches = matched(base, task, tied_names(task, base), allow_distant=True)
        except TallstoreError:  # said where it is packed
            return False
        if tensor not in matches:
            return False
        there = matches[tensor].base
    return base.tensors[there] == task.tensors[tensor] and _equal(task, tensor, base, there)


def _sample(task: Checkpoint, tensor: str) -> bytes:
    middle = task.tensors[tensor].numel // 2
    return as_bytes(task.read(tensor, middle - min(middle, _SAMPLE), middle + min(middle, _SAMPLE))).tobytes()


def _equal(left: Checkpoint, first: str, right: Checkpoint, second: str) -> bool:
    """Whether two tensors are, to the last bit; what differs mostly does so in one of a few places."""
    numel = left.tensors[first].numel
    places = [(at, min(at + _SAMPLE, numel)) for at in range(0, numel, max(_SAMPLE, numel // _PLACES))]
    runs = [(at, min(at + _RUN, numel)) for at in range(0, numel, _RUN)]
    pairs = ((as_bytes(left.read(first, a, b)), as_bytes(right.read(second, a, b))) for a, b in (*places, *runs))
    return all(np.array_equal(one, two) for one, two in pairs)
