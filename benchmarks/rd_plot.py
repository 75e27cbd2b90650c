"""The plot of the rate-distortion bench: retention and KL divergence against bits, every method on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

LINED = ("tallstore",)
"""Families whose points are one setting at several rates."""


class Point(Protocol):
    """What is drawn of a row."""

    method: str
    family: str
    bits: float
    retention: float
    worst: float
    kl: float


def draw(rows: Sequence[Point], file: Path) -> None:
    """Write a PNG, or say what is missing."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: pip install 'tallstore[plots]'")
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    families = sorted({row.family for row in rows}, key=lambda f: (f not in LINED, f))
    figure, axes = plt.subplots(1, 3, figsize=(19, 7), constrained_layout=True)
    views = (
        ("mean retention, %", lambda r: max(100 * r.retention, 85.0)),
        ("worst task's retention, %", lambda r: max(100 * r.worst, 70.0)),
        ("KL divergence from the original's outputs", lambda r: max(r.kl, 1e-6)),
    )
    for axis, (label, value) in zip(axes, views, strict=True):
        for n, family in enumerate(families):
            points = sorted((r for r in rows if r.family == family), key=lambda r: r.bits)
            style = "o-" if family in LINED else "osD^v<>PX*"[n % 10]
            color = plt.get_cmap("tab20")(2 * n % 19)
            axis.plot([r.bits for r in points], [value(r) for r in points], style, color=color, label=family)
        axis.set_xscale("log")
        axis.set_xlabel("bits a parameter and task, all but the base")
        axis.set_ylabel(label)
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[2].set_yscale("log")
    axes[0].axhline(100, color="grey", linewidth=0.8)
    axes[0].legend(fontsize=8)
    axes[0].set_title("values below 85 are drawn at 85", fontsize=8)
    axes[1].set_title("values below 70 are drawn at 70", fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
