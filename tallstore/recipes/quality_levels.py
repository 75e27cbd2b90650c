"""What the names of a quality stand for: how far a task's outputs may be from its fine-tune's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEFAULT", "NEARLY", "QUALITIES", "TOLERABLE", "QualityLevel"]

NEARLY = 0.9
"""Where what was chosen takes this share of what losing nothing takes, nothing is lost: what is predicted of the latter
is a few percent too much."""


@dataclass(frozen=True)
class QualityLevel:
    """What a name asks for."""

    divergence: float
    """How far outputs may be from the fine-tune's, in units of how far the base's are, as `divergence` foretells it."""
    kappa: float
    """How many times worse it is to be wrong in the same way for equal |τ| than to be wrong at random. Where bits are
    few, most of what marks leave out is bias; where outputs are near, the little bias there is shows most."""
    lossless_from: float = NEARLY
    """From which share of what losing nothing takes on a task in a type of few bits loses nothing: to be bit for bit is
    worth something."""


QUALITIES: Mapping[str, QualityLevel] = {
    "small": QualityLevel(divergence=0.175, kappa=16.5),
    "balanced": QualityLevel(divergence=0.078, kappa=3.28),
    "high": QualityLevel(divergence=0.052, kappa=6.0, lossless_from=1 / 3),
}
"""By name. See `benchmarks/README.md`."""
DEFAULT = "high"
TOLERABLE = 0.25
"""Divergence beyond which it is said."""
