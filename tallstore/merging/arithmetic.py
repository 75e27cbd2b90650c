"""Task arithmetic (Ilharco et al., ICLR 2023): θ0 + α·Στt."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from tallstore.errors import OptionError
from tallstore.merging.base import MergeTile, Method, SumOf, checked_alpha

__all__ = ["Arithmetic", "Source", "sum_source"]

Source = Literal["vector", "tasks"]
"""What is summed: `vector` takes the stored v as the sum, `tasks` adds the decoded task vectors."""


def sum_source(recipe_id: str) -> Source:
    """Where an archive made with a recipe holds Στt: `tall` stores it as v; of the others it is rebuilt."""
    return "vector" if recipe_id == "tall" else "tasks"


class Arithmetic(Method):
    """α·Στt, from v or from the decoded task vectors."""

    id = "arithmetic"

    def __init__(self, alpha: float = 1.0, source: Source = "vector") -> None:
        if source not in get_args(Source):
            raise OptionError(f"the source of the sum is vector or tasks, not {source!r}")
        self._alpha = checked_alpha(alpha)
        self._source = source
        self.approximate = source == "tasks"

    def of_sums(self) -> SumOf:
        """Whoever uses it."""
        return SumOf(0, self._alpha, self._source)

    def delta(self, tile: MergeTile) -> Tensor:
        """The scaled sum."""
        total = tile.vector if self._source == "vector" else tile.total
        return total * self._alpha
