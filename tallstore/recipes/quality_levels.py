"""What the names of a quality stand for: how far a task's outputs may be from its fine-tune's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEFAULT", "QUALITIES", "TOLERABLE", "QualityLevel"]


@dataclass(frozen=True)
class QualityLevel:
    """What a name asks for."""

    divergence: float
    """How far outputs may be from the fine-tune's, in units of how far the base's are, as `divergence` foretells it."""
    lossless_from: float
    """Where what that takes is at least this share of what losing nothing takes, a task in a type of few bits loses
    nothing: what is predicted of the latter is a few percent too much, and to be bit for bit is worth something."""


QUALITIES: Mapping[str, QualityLevel] = {
    "small": QualityLevel(0.175, 0.9),
    "balanced": QualityLevel(0.078, 0.9),
    "high": QualityLevel(0.052, 0.4),
}
"""By name. See `benchmarks/README.md`."""
DEFAULT = "high"
TOLERABLE = 0.25
"""Divergence beyond which it is said."""
