"""Tensors of one checkpoint that are one weight under several names.

They may be one memory, or equal copies: mergers of shards, trainers and older savers write a tied weight several
times. It is stored once. Found are equal matrices of one type and shape that are not one number throughout; such as
stayed what the base has are left alone, as they cost nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch

from tallstore.checkpoints import Checkpoint
from tallstore.tensors import as_bytes

__all__ = ["tied_names"]

_LEAST = 256
"""Elements of a tensor that is compared: smaller ones cost little, and may be equal by chance."""
_SAMPLE = 64
_FEW = 4
"""Tensors of one shape, up to which those of a checkpoint far away are compared: each sample is a request."""
_PIECE = 1 << 22


def tied_names(checkpoint: Checkpoint, base: Checkpoint | None = None) -> dict[str, str]:
    """Tensors that are an earlier one's equal: name → that one's name. Those that share memory are among them.

    Args:
        checkpoint: where to look.
        base: tensors that are equal to those of the same names in it are not compared.
    """
    ties = dict(checkpoint.ties)
    if checkpoint.ties_are_all:
        return ties
    for names in _of_one_kind(checkpoint, ties):
        firsts: dict[bytes, list[str]] = {}
        for name in names:
            sample = _sample(checkpoint, name)
            known = firsts.setdefault(sample, [])
            first = next((each for each in known if _equal(checkpoint, each, checkpoint, name)), None)
            if first is None:
                known.append(name)
            elif not _is_one_number(checkpoint, name) and not (
                base is not None and _stayed(base, checkpoint, first) and _stayed(base, checkpoint, name)
            ):
                ties[name] = first
    order = {name: at for at, name in enumerate(checkpoint.tensors)}
    return {name: ties.get(first, first) for name, first in sorted(ties.items(), key=lambda pair: order[pair[0]])}


def _of_one_kind(checkpoint: Checkpoint, ties: Mapping[str, str]) -> Iterator[list[str]]:
    """Tensors of one type and shape that could be equal."""
    by_kind: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, info in checkpoint.tensors.items():
        if name not in ties and len(info.shape) > 1 and info.numel >= _LEAST:
            by_kind[info.dtype, info.shape].append(name)
    yield from (names for names in by_kind.values() if 1 < len(names) <= (_FEW if checkpoint.far else len(names)))


def _sample(checkpoint: Checkpoint, name: str) -> bytes:
    middle = checkpoint.tensors[name].numel // 2
    return as_bytes(checkpoint.read(name, middle - _SAMPLE // 2, middle + _SAMPLE // 2)).tobytes()


def _equal(left: Checkpoint, first: str, right: Checkpoint, second: str) -> bool:
    """Whether two tensors of one type and shape are the same to the last bit."""
    numel = left.tensors[first].numel
    for start in range(0, numel, _PIECE):
        stop = min(start + _PIECE, numel)
        a, b = left.read(first, start, stop), right.read(second, start, stop)
        if not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
            return False
    return True


def _is_one_number(checkpoint: Checkpoint, name: str) -> bool:
    """Whether all elements are the same: zeros and ones that nothing trained are no tie."""
    numel = checkpoint.tensors[name].numel
    first = checkpoint.read(name, 0, 1).view(torch.uint8)
    return all(
        bool(
            (
                checkpoint.read(name, start, min(start + _PIECE, numel)).view(torch.uint8).view(-1, len(first)) == first
            ).all()
        )
        for start in range(0, numel, _PIECE)
    )


def _stayed(base: Checkpoint, task: Checkpoint, name: str) -> bool:
    return base.tensors.get(name) == task.tensors[name] and _equal(base, name, task, name)
