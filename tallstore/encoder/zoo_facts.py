"""What a recipe is told of a zoo before it is measured: how much there is, and what it has no say in."""

from __future__ import annotations

from collections.abc import Sequence

from tallstore.checkpoints import Checkpoint
from tallstore.encoder.plan import SMALL, EncodePlan
from tallstore.encoder.row_bits import same_bits
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.recipes.base import ZooFacts

__all__ = ["zoo_facts"]

_PART_BITS, _WHOLE_BITS = 8 * 600, 8 * 220
"""What the parts that hold a task's tensors take beside them, about, and what a part says of a tensor that is whole."""


def zoo_facts(base: Checkpoint, tasks: Sequence[Checkpoint], plan: EncodePlan, first: int) -> ZooFacts:
    """The same of tasks, of which the first is the archive's task of that number."""
    # Adapters are no models: what they cost is no part of the bits that the others are given.
    infos = [task.tensors if task.adapter is None else {} for task in tasks]
    whole = [
        infos[index][name].numel * ITEM_BYTES[infos[index][name].dtype] * 8
        for index, private in enumerate(plan.private)
        for name in private
        if name in infos[index]
    ]
    # Elements of tensors whose bits no recipe chooses.
    codes = sum(user.covered for users in plan.users.values() for user in users if user.lossless)
    return ZooFacts(
        parameters=sum(info.numel for tensors in infos for info in tensors.values()) - codes,
        fixed_bits=float(sum(whole)) + _small(base, tasks, plan) + _PART_BITS * sum(t.adapter is None for t in tasks),
        first=first,
        shapes={name: info.shape for name, info in base.tensors.items()},
    )


def _small(base: Checkpoint, tasks: Sequence[Checkpoint], plan: EncodePlan) -> float:
    """Bits of tensors that are too small for a mask, and not the base's."""
    bits = 0.0
    for name, users in plan.users.items():
        for user in users:
            task = tasks[user.task]
            if user.masked or user.covered >= SMALL or task.adapter is not None:
                continue
            own, start = (each.read(n, 0, user.covered) for each, n in ((task, user.name), (base, name)))
            if own.dtype != start.dtype or not same_bits(own, start):
                bits += 8 * own.numel() * own.element_size() + _WHOLE_BITS
    return bits
