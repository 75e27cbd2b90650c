"""`fit`: the vector and the masks that minimise the reconstruction error, exactly and without options.

With the masks of kind `signed`, tasks share a magnitude and each takes it with its own sign. One scale a task and chunk
then makes what is kept unbiased, as in `solo`: more error than at scale 1, and a worst task that keeps 99.0 % where it
kept 96.3 % (`benchmarks/README.md`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.kernels.rules import Rule
from tallstore.recipes.base import Kind, Recipe, Tile
from tallstore.recipes.closed_form import best_magnitude, best_vector
from tallstore.recipes.masks import nearer_than_zero
from tallstore.recipes.quantizers import fitting_scale
from tallstore.recipes.sorting_network import exchanges

__all__ = ["Fit"]


class Fit(Recipe):
    """v and m that minimise Σt‖τt − mt·v‖²."""

    id = "fit"

    def __init__(self, kind: Kind = "binary") -> None:
        if kind not in ("binary", "signed"):
            raise OptionError(f"masks are binary or signed, not {kind!r}")
        self.kind = kind

    def vector(self, tile: Tile) -> Tensor:
        """The best v; for signed masks the best shared magnitude."""
        return best_vector(tile.tau) if self.kind == "binary" else best_magnitude(tile.tau.abs())

    def masks(self, tile: Tile, vector: Tensor) -> Tensor:
        """For each task the nearer of 0 and v (0 where both are as near); signed: of 0, v and −v."""
        if self.kind == "binary":
            return nearer_than_zero(tile.tau, vector).view(torch.uint8)
        on = nearer_than_zero(tile.tau.abs(), vector).view(torch.uint8)
        # The sign bit is 1 for −: symbol 1 becomes 2.
        return on << torch.signbit(tile.tau).view(torch.uint8)

    def scale(self, task: int, sums: Sequence[float]) -> float:  # noqa: ARG002 - sums suffice
        """The unbiased scale."""
        return fitting_scale(sums, least=False)

    def rule(self, tasks: Sequence[int], tensor: str) -> Rule:  # noqa: ARG002 - all tensors are treated alike
        """The closed form by a sorting network."""
        signed = self.kind == "signed"
        network = exchanges(len(tasks))
        return Rule(vector="best magnitude" if signed else "best", mask="nearer", signed=signed, exchanges=network)
