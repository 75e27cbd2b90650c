"""The error budget: which tensors of which task get a stronger form, so that a bound on its error holds.

Stronger forms, each with what it costs and leaves on a typical task vector: a delta of the task's own in 4, 5 or 8
bits, and the tensor without loss. Steps are taken where they save the most error for a bit, until the sum is
within the bound; what a form really leaves is measured on the next archive, so a guess that was off costs one more
round and breaks no promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tallstore.encoder.assembly import UNMOVED, TensorCost
from tallstore.encoder.items import LOSSLESS

Key = tuple[int, str]

_LADDER = ("q4", "q5", "q8", LOSSLESS)
_LEAVES = {"q4": 0.12**2, "q5": 0.07**2, "q8": 0.012**2, LOSSLESS: 0.0}
"""‖τ̂−τ‖²/‖τ‖² of each form, from experience."""
_BITS = {"q4": 3.4, "q5": 4.3, "q8": 6.6, LOSSLESS: 26.0}
"""Bits a parameter of each form, from experience."""
_NOW = 0.7
"""Bits a parameter of what a recipe makes."""
_MARGIN = 0.97
"""Aim a little below the bound."""


def escalate(
    task: int, costs: Mapping[Key, TensorCost], norm: float, bound: float, forms: Mapping[Key, str]
) -> dict[Key, str]:
    """Forms for one task with which its relative error should come within `bound`; those given are kept or raised.

    Args:
        task: its index.
        costs: what every tensor that is not whole loses now, in the forms given.
        norm: ‖τ‖² of the task's tensors that are not whole.
        bound: the relative error to reach.
        forms: what was asked for before.
    """
    raised = {key: form for key, form in forms.items() if key[0] == task}
    left = {key: cost.error for key, cost in costs.items() if key[0] == task}
    allowed = (_MARGIN * bound) ** 2
    while sum(left.values()) > allowed * norm:
        steps = [
            step
            for key in left
            if costs[key].form != UNMOVED
            for step in _steps(key, costs[key], left[key], raised.get(key))
        ]
        if not steps:
            break
        _, key, form, error = max(steps)
        left[key], raised[key] = error, form
    return raised


def _steps(key: Key, cost: TensorCost, error: float, form: str | None) -> Iterator[tuple[float, Key, str, float]]:
    """Each stronger form of a tensor: error saved for a bit, key, form, error left."""
    have = _BITS[form] if form in _LADDER else _NOW
    begin = _LADDER.index(form) + 1 if form in _LADDER else 0
    for stronger in _LADDER[begin:]:
        after = _LEAVES[stronger] * cost.norm
        if after < error:
            yield (error - after) / ((_BITS[stronger] - have) * cost.parameters), key, stronger, after
