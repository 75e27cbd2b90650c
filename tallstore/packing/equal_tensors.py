"""Whether tasks have tensors alike that the base has not: a few elements of each tell, and then all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from tallstore.checkpoints import Checkpoint
from tallstore.encoder.components import matched
from tallstore.encoder.row_bits import same_bits
from tallstore.encoder.tied_weights import tied_names
from tallstore.errors import TallstoreError
from tallstore.format.dtypes import size_of
from tallstore.tensors import as_bytes, empty

__all__ = ["any_alike"]

_LEAST = 1 << 14
"""Bytes of a tensor from which on it is looked for."""
_SAMPLE, _PLACES = 64, 32
_RUN = 1 << 17
"""Elements that are compared at a time: they stay in the cache."""


def any_alike(base: Checkpoint, tasks: Mapping[str, Checkpoint]) -> bool:
    """Whether a tensor of one task is, to the last bit, another task's of the same name and not the base's."""
    groups: dict[tuple[object, ...], list[Checkpoint]] = {}
    for task in tasks.values():
        for tensor, info in task.tensors.items() if task.adapter is None else ():
            if tensor not in task.ties and size_of(info.dtype, info.shape) >= _LEAST:
                groups.setdefault((tensor, info.dtype, info.shape, _sample(task, tensor)), []).append(task)
    counterparts = cache(partial(_counterparts, base))
    return any(
        _others_than_the_base(base, str(key[0]), group, counterparts) for key, group in groups.items() if len(group) > 1
    )


_Counterparts = Callable[[Checkpoint], Mapping[str, str]]
"""By a task's names, the base's tensors that its own come from."""


def _others_than_the_base(
    base: Checkpoint, tensor: str, tasks: Sequence[Checkpoint], counterparts: _Counterparts
) -> bool:
    """Whether a later one of these tasks has the first one's tensor, and the base has it not.

    Mostly the base has it, in full: then no more is read than that one and the base's.
    """
    places = [_in_base(base, task, tensor, counterparts) for task in tasks[1:]]
    in_base = [there for there in dict.fromkeys(places) if there is not None]
    equal = _equal_ones(tasks[0], tensor, [(base, there) for there in in_base])
    bases = {there for number, there in enumerate(in_base) if number in equal}
    others = [task for task, there in zip(tasks[1:], places, strict=True) if there not in bases]
    return bool(_equal_ones(tasks[0], tensor, [(task, tensor) for task in others]))


def _in_base(base: Checkpoint, task: Checkpoint, tensor: str, counterparts: _Counterparts) -> str | None:
    """The base's tensor that a task's may be; None where there is none of its type and shape."""
    there = tensor if tensor in base.tensors else counterparts(task).get(tensor)
    return there if there is not None and base.tensors[there] == task.tensors[tensor] else None


def _counterparts(base: Checkpoint, task: Checkpoint) -> Mapping[str, str]:
    try:
        matches = matched(base, task, tied_names(task, base), allow_distant=True)
    except TallstoreError:  # said where it is packed
        return {}
    return {name: match.base for name, match in matches.items()}


def _sample(task: Checkpoint, tensor: str) -> bytes:
    middle = task.tensors[tensor].numel // 2
    return as_bytes(task.read(tensor, middle - min(middle, _SAMPLE), middle + min(middle, _SAMPLE))).tobytes()


def _equal_ones(first: Checkpoint, tensor: str, others: Sequence[tuple[Checkpoint, str]]) -> set[int]:
    """Which of the others are the first one's to the last bit; what differs mostly does so in one of a few places."""
    numel, dtype = first.tensors[tensor].numel, first.tensors[tensor].dtype
    places = [(at, min(at + _SAMPLE, numel)) for at in range(0, numel, max(_SAMPLE, numel // _PLACES))]
    runs = [(at, min(at + _RUN, numel)) for at in range(0, numel, _RUN)]
    one, two = (empty(dtype, min(numel, _RUN)) for _ in range(2))
    equal = set(range(len(others)))
    for start, stop in (*places, *runs):
        if not equal:
            break
        own, other = one[: stop - start], two[: stop - start]
        first.read_into(tensor, start, own)
        for number in sorted(equal):
            checkpoint, name = others[number]
            checkpoint.read_into(name, start, other)
            if not same_bits(own, other):
                equal.discard(number)
    return equal
