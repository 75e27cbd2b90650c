"""How far the outputs of a decoded task will be from its fine-tune's, predicted without data.

Noise that has h times the energy of τ (the harm of `rate_distortion`: bias counts κ-fold) changes a unit's output by √h
of what τ changes there where inputs have nothing to do with τ, and by √(h/G) for inputs that lie as its rows do: see
`coherence`. Over a model, noise of different tensors adds up as energies do. What fine-tuning changed is made to one
end, and adds up as amplitudes do as far as it is coherent. With c² = ‖τ‖²/‖θ0‖² of a tensor, a task's gain is

    1 + 2·(Σ c·√(G − 1))² / Σ c²,     at most 240

Without the limit, tasks whose changes are the most alike would get the fewest bits, which measurement does not bear
out.
Then, with the mean of h over a task's tensors weighted as their errors are,

    D = √(mean of h / gain)

is how far outputs will be from the fine-tune's, in units of how far the base's are. It is close where τ is like noise,
and on the safe side by two to three times where many layers were tuned to
one end.

A table that is looked up and read by no matrix averages nothing: there G = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["TensorShare", "predicted_divergence", "read_as_it_comes", "task_gain"]

_TABLE = 4
"""A matrix with so many times more rows than columns may be a table."""


_MOST = 240.0
"""The largest gain of a task that is counted on."""


@dataclass(frozen=True, kw_only=True)
class TensorShare:
    """One tensor's share in what a task changes."""

    change: float
    """c², at most 1: of a matrix over the parameters that moved (of a table few rows may), of a vector over all."""
    weight: float
    """How much a relative error in it counts."""
    gain: float
    """G."""


def task_gain(parts: Iterable[TensorShare]) -> float:
    """How much less harmful noise is than it would be if nothing in the changes of a task were coherent."""
    apart, along = 0.0, 0.0
    for part in parts:
        apart += part.change
        along += math.sqrt(part.change * (part.gain - 1))
    return min(_MOST, 1 + 2 * along * along / apart) if apart else 1.0


def predicted_divergence(parts: Sequence[tuple[TensorShare, float]]) -> float:
    """D of a task, from its tensors and the harm that each was done."""
    weight = math.fsum(part.weight for part, _ in parts)
    harm = math.fsum(part.weight * harm for part, harm in parts)
    return math.sqrt(harm / weight / task_gain(part for part, _ in parts)) if weight else 0.0


def read_as_it_comes(tensor: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether no unit adds up what a tensor gives: it has no inputs, or is a table whose rows no other matrix reads."""
    shape = shapes.get(tensor, ())
    if len(shape) < 2:
        return True
    if len(shape) > 2 or shape[0] < _TABLE * shape[1]:
        return False
    return not any(len(other) == 2 and shape[1] in other for name, other in shapes.items() if name != tensor)
