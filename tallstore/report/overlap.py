"""The order in which tasks stand in the overlap matrix: similar ones side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Clusters", "cluster"]

Shares = npt.NDArray[np.float64]


class Clusters:
    """Tasks by similarity: their order, and the tree that joins them."""

    def __init__(self, order: list[int], joins: list[tuple[list[float], list[float]]]) -> None:
        self.order = order
        self.joins = joins
        """Of each join its corners, as (places, heights): places count tasks from 0, heights run from 0 to 1."""


def cluster(similar: Shares) -> Clusters:
    """Average linkage over 1 − similarity, leaves in the best order for the eye."""
    n = len(similar)
    if n < 3:
        return Clusters(list(range(n)), [])
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    apart = np.clip(1 - (similar + similar.T) / 2, 0, 1)
    np.fill_diagonal(apart, 0)
    tree: Any = linkage(squareform(apart, checks=False), "average", optimal_ordering=True)
    drawn: Any = dendrogram(tree, no_plot=True)
    floor, top = float(tree[0, 2]), float(tree[-1, 2])
    reach = (top - floor) or 1.0

    def height(value: float) -> float:
        # Tasks begin a little below the first join: what matters is what joins before what.
        return 0.0 if value == 0 else 0.15 + 0.85 * (value - floor) / reach

    joins = [
        ([(x - 5) / 10 for x in xs], [height(y) for y in ys])
        for xs, ys in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    ]
    return Clusters([int(leaf) for leaf in drawn["leaves"]], joins)
