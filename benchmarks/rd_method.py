"""A method of the rate-distortion bench: a zoo in, approximate task vectors and the bytes they take out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import rd_codes as codes
import torch
from rd_zoo import Zoo
from torch import Tensor

SMALL = 8192
"""Tensors with fewer elements, or of one axis, are one parameter in a thousand: methods for matrices skip them."""


@dataclass
class Packed:
    """What a method made of a zoo."""

    hats: list[dict[str, Tensor]]
    bytes: int = 0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, zoo: Zoo) -> Packed:
        """Empty, but for the tensors that have no base: every method keeps them exactly."""
        private = sum(codes.lossless(t) for own in zoo.private for t in own.values() if t.is_floating_point())
        return cls([{} for _ in zoo.tasks], private)

    def keep(self, task: int, name: str, hat: Tensor, size: int) -> None:
        """Add one tensor of one task."""
        self.hats[task][name] = hat
        self.bytes += size

    def keep_half(self, task: int, name: str, tau: Tensor) -> None:
        """Keep a tensor's change whole, as float16."""
        self.keep(task, name, tau.half().float(), 2 * tau.numel())


@dataclass(frozen=True)
class Method:
    """One point of the plot."""

    name: str
    family: str
    make: Callable[[Zoo], Packed]


class Unavailable(Exception):  # noqa: N818 - it is no error
    """The package that a method needs is not here."""


def is_small(zoo: Zoo, name: str) -> bool:
    """Whether methods made for matrices leave this tensor alone."""
    return zoo.base[name].dim() < 2 or zoo.base[name].numel() < SMALL


def least_squares(tau: Tensor, w: Tensor) -> float:
    """The s that minimises ‖τ − s·w‖."""
    norm = float(w.double().square().sum())
    return float((tau.double() * w.double()).sum()) / norm if norm else 0.0


def norm_keeping(tau: Tensor, w: Tensor) -> float:
    """The s with ‖s·w‖ = ‖τ‖."""
    norm = float(w.double().norm())
    return float(tau.double().norm()) / norm if norm else 0.0


def unbiased(tau: Tensor, w: Tensor) -> float:
    """The s with ⟨s·w, τ⟩ = ⟨τ, τ⟩: the change keeps its full length along τ, and the rest is noise across it."""
    dot = float((tau.double() * w.double()).sum())
    return float(tau.double().square().sum()) / dot if dot > 0 else 0.0


Scale = Callable[[Tensor, Tensor], float]


def ternary(tau: Tensor, threshold: float) -> Tensor:
    """−1, 0, 1 by an absolute threshold."""
    return torch.where(tau.abs() > threshold, tau.sign(), torch.zeros_like(tau))
