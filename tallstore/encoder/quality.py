"""What the archive kept of each task, measured while the masks are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_DIGITS = 6
"""Significant digits that are recorded: sums of floats may differ in the last ones between machines."""


@dataclass
class Quality:
    """Running sums over one task's parameters that have a base."""

    error: float = 0.0
    norm: float = 0.0
    kept: float = 0.0
    dot: float = 0.0
    on: int = 0
    parameters: int = 0

    def add(self, found: Sequence[float], n: int) -> None:
        """Add what `sums` measured on n parameters."""
        error, norm, kept, dot, on = found
        self.error += error
        self.norm += norm
        self.kept += kept
        self.dot += dot
        self.on += int(on)
        self.parameters += n

    def merge(self, other: Quality) -> None:
        """Add another's sums."""
        self.add((other.error, other.norm, other.kept, other.dot, other.on), other.parameters)

    def add_unmoved(self, n: int) -> None:
        """Count parameters that are exactly the base's."""
        self.parameters += n

    def measured(self) -> dict[str, Any]:
        """For the manifest. Ratios are None where the task did not move or nothing was kept."""
        return {
            "relative_error": _round(math.sqrt(self.error / self.norm)) if self.norm else None,
            "cosine": _round(self.dot / math.sqrt(self.norm * self.kept)) if self.norm and self.kept else None,
            "density": _round(self.on / self.parameters) if self.parameters else 0.0,
            "masked_parameters": self.parameters,
        }


N_SUMS = 5
"""What `sums` measures: squared error, squared norm of τ, squared norm of what is kept, their product, count of on."""


def sums(tau: Tensor, vector: Tensor, symbols: Tensor, kind: str) -> Tensor:
    """What masks keep of τ at scale 1. Takes (T', N), (N,), (T', N); returns (T', N_SUMS), float64."""
    on = symbols != 0
    kept = vector * on
    if kind == "signed":
        kept = torch.where(symbols == 2, -kept, kept)
    gap = tau - kept
    pairs = ((gap, gap), (tau, tau), (kept, kept), (tau, kept))
    totals = [torch.linalg.vecdot(a, b).double() for a, b in pairs]
    return torch.stack([*totals, on.sum(dim=1).double()], dim=1)


def scaled(found: Sequence[float], scale: float) -> tuple[float, ...]:
    """The same sums at scale s: ‖τ − s·w‖² = ‖τ‖² − 2s·⟨τ,w⟩ + s²·‖w‖²."""
    if scale == 1.0:
        return tuple(found)
    _, norm, kept, dot, on = found
    error = norm - 2 * scale * dot + scale * scale * kept
    return max(error, 0.0), norm, scale * scale * kept, scale * dot, on


def _round(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
