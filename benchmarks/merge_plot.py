"""Plot of `merging.py`: the agreement profile by recipe, and what consensus is worth at each k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw"]

_SHADES = "viridis"


def draw(recipes: Mapping[str, Mapping[str, Any]], zero_shot: float, tasks: Sequence[str], file: Path) -> None:
    """`recipes`: by recipe, `profile` (share used by exactly n tasks) and `choices` (k → its `score`)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.4), layout="constrained")
    shades = mpl.colormaps[_SHADES].resampled(len(tasks) + 1)
    names = list(recipes)
    for n in range(len(tasks) + 1):
        shares = [recipes[name]["profile"][n] for name in names]
        below = [sum(recipes[name]["profile"][:n]) for name in names]
        label = {0: "0: catastrophic", 1: "1: selfish"}.get(n, str(n))
        left.barh(names, shares, left=below, color=shades(n), label=label, height=0.7)
    left.invert_yaxis()
    left.set(xlim=(0, 1), xlabel="share of parameters", title=f"used by exactly n of {len(tasks)} tasks")
    left.legend(ncols=5, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)
    for name in names:
        choices = recipes[name]["choices"]
        right.plot([int(k) for k in choices], [c["score"] for c in choices.values()], marker="o", label=name)
    right.axhline(zero_shot, color="grey", linestyle=":", label="base, no merging")
    right.set(xlabel="consensus threshold k", ylabel="mean validation accuracy, best α", title="what each k is worth")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)
