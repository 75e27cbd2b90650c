"""How well combinations of tasks come back that nothing is coded of: over all elements, many combinations at once.

Each run of elements is decoded once of each task that combinations are made of, however many they are: looking at one
costs about what loading it does, and reading the original beside.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tallstore.archive.checkpoint import ArchiveStart, StartPlan
from tallstore.checkpoints import Checkpoint
from tallstore.format.relatives import Relatives

__all__ = ["Combination", "kept_of"]

_RUN = 1 << 20
_BLOCK = 1 << 15
"""Elements that are computed with at a time: few enough for their copies to stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """A task that is to be packed as what others are merged to."""

    name: str
    task: Checkpoint
    relatives: Relatives
    start: ArchiveStart
    plans: Mapping[str, StartPlan]
    """What each of its tensors builds on."""
    searched: bool
    """Whether a search says so, and no user."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a combination keeps of a task vector."""

    relative_error: float
    cosine: float


def kept_of(base: Checkpoint, combinations: Sequence[Combination]) -> dict[str, Kept | None]:
    """What is kept of each in the tensors that stay as they start; None where that cannot be said.

    Of those that somebody said are made of others: what their starts keep, in all tensors.

    That is where nothing moved, in the original or in what is kept of it.
    """
    users: dict[str, list[tuple[Combination, str]]] = defaultdict(list)
    for each in combinations:
        for name, plan in each.plans.items():
            if plan.base is not None and (plan.kept or not each.searched):
                users[plan.base].append((each, name))
    sums = {each.name: torch.zeros(4, dtype=torch.float64) for each in combinations}
    for tensor, here in users.items():
        numel = base.tensors[tensor].numel
        for at in range(0, numel, _RUN):
            stop = min(at + _RUN, numel)
            before = base.read(tensor, at, stop)
            for each, name in here:
                own, merged = each.task.read(name, at, stop), each.start.once(name, at, stop)
                sums[each.name] += _sums(own, merged, before.to(own.dtype))
    return {name: _kept(*each.tolist()) for name, each in sums.items()}


def _kept(error: float, norm: float, back: float, dot: float) -> Kept | None:
    if not norm or not back or not math.isfinite(error):
        return None
    return Kept(relative_error=math.sqrt(error / norm), cosine=dot / math.sqrt(norm * back))


def _sums(own: Tensor, merged: Tensor, before: Tensor) -> Tensor:
    """Squares of what is lost, of a task vector, and of what is kept of it, and the product of both, float64."""
    sums = torch.zeros(4, dtype=torch.float64)
    for at in range(0, len(own), _BLOCK):
        start = before[at : at + _BLOCK].double()
        tau, kept = own[at : at + _BLOCK].double().sub_(start), merged[at : at + _BLOCK].double().sub_(start)
        lost = tau - kept
        sums += torch.stack([lost @ lost, tau @ tau, kept @ kept, tau @ kept])
    return sums
