"""The plots of the rate-distortion benches: what is kept and lost against bits, every method on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LINED = ("tallstore",)
"""Families whose points are one setting at several rates."""


class View(NamedTuple):
    """One panel: its axis, and the value that whatever is lower is drawn at."""

    label: str
    floor: float
    log: bool = False


class Point(NamedTuple):
    """One method: bits a parameter and task, and a value a view."""

    family: str
    bits: float
    values: Sequence[float]


def draw(points: Sequence[Point], views: Sequence[View], file: Path) -> None:
    """Write a PNG, or say what is missing."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: pip install 'tallstore[plots]'")
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    families = sorted({point.family for point in points}, key=lambda family: (family not in LINED, family))
    figure, axes = plt.subplots(1, len(views), figsize=(6 * len(views) + 1, 7), constrained_layout=True)
    for number, (axis, view) in enumerate(zip(axes, views, strict=True)):
        for n, family in enumerate(families):
            own = sorted(point for point in points if point.family == family)
            style = "o-" if family in LINED else "osD^v<>PX*"[n % 10]
            color = plt.get_cmap("tab20")(2 * n % 19)
            heights = [max(point.values[number], view.floor) for point in own]
            axis.plot([point.bits for point in own], heights, style, color=color, label=family)
        axis.set_xscale("log")
        axis.set_xlabel("bits a parameter and task, all but the base")
        axis.set_ylabel(view.label)
        axis.set_title(f"values below {view.floor:g} are drawn at {view.floor:g}", fontsize=8)
        axis.grid(visible=True, which="both", alpha=0.25)
        if view.log:
            axis.set_yscale("log")
        elif view.label.endswith("%"):
            axis.axhline(100, color="grey", linewidth=0.8)
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
