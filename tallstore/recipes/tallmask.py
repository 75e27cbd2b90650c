"""What the recipes share whose mask is |τt| > λ·|v − τt|, with a λ per task."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tallstore.errors import OptionError
from tallstore.kernels.rules import Rule
from tallstore.recipes.base import Recipe, Statistic, Tile
from tallstore.recipes.masks import tall_masks
from tallstore.recipes.norm_match import GRID, NormMatch

__all__ = ["Lambda", "TallMasked"]

Lambda = float | Sequence[float] | Mapping[int, float]
"""One λ for all tasks, or one per task by its index in the zoo's task list."""


class TallMasked(Recipe):
    """A recipe whose masks are TALL-masks. Without a λ, it is chosen data-free: see `norm_match`."""

    def __init__(self, lam: Lambda | None = None, grid: Sequence[float] = GRID) -> None:
        for value in _values(lam):
            _check(value)
        for value in grid:
            _check(value)
        if not grid:
            raise OptionError("the grid of λ is empty")
        self._lam = lam
        self._grid = tuple(grid)
        self._match: NormMatch | None = None

    def statistics(self, n_tasks: int) -> Sequence[Statistic]:
        """What the vector needs, then the choice of λ where none is given."""
        self._check_covers(n_tasks)
        first = self.vector_statistics(n_tasks)
        if self._lam is not None:
            return first
        self._match = NormMatch(n_tasks, self.vector, self._grid)
        return (*first, self._match)

    def vector_statistics(self, n_tasks: int) -> Sequence[Statistic]:  # noqa: ARG002 - part of the interface
        """The statistics that `vector` needs, in order."""
        return ()

    @abstractmethod
    def vector(self, tile: Tile) -> Tensor:
        """The multi-task vector of a tile."""

    def lam(self, task: int) -> float:
        """The λ of a task: as given, or as chosen once the statistics are finished."""
        if self._match is not None:
            return self._match.chosen[task]
        if isinstance(self._lam, int | float):
            return float(self._lam)
        assert self._lam is not None, "statistics() comes first"
        return float(self._lam[task])

    def masks(self, tile: Tile, vector: Tensor) -> Tensor:
        """The TALL-masks at each task's λ: uint8 (T', N)."""
        return tall_masks(tile, vector, self._lams(tile.tasks)).view(torch.uint8)

    def rule(self, tasks: Sequence[int], tensor: str) -> Rule:  # noqa: ARG002 - all tensors are treated alike
        """The vector's rule with these masks."""
        return replace(self.vector_rule(tasks), limits=tuple(self._lams(tasks)))

    @abstractmethod
    def vector_rule(self, tasks: Sequence[int]) -> Rule:
        """What `vector` does, in the words of a kernel."""

    def _lams(self, tasks: Sequence[int]) -> list[float]:
        return [self.lam(task) for task in tasks]

    def _check_covers(self, n_tasks: int) -> None:
        if isinstance(self._lam, int | float | None):
            return
        given = set(self._lam) if isinstance(self._lam, Mapping) else set(range(len(self._lam)))
        if given != set(range(n_tasks)):
            raise OptionError(f"λ is given for {len(given)} tasks {sorted(given)}, but the zoo has {n_tasks}")


def _values(lam: Lambda | None) -> Sequence[float]:
    if lam is None:
        return ()
    if isinstance(lam, int | float):
        return (lam,)
    return tuple(lam.values() if isinstance(lam, Mapping) else lam)


def _check(lam: float) -> None:
    if not (isinstance(lam, int | float) and math.isfinite(lam) and lam > 0):
        raise OptionError(f"λ must be a positive number, not {lam!r}")
