"""Plot of `plan.py`: time and money against workers, and the model's processor seconds against measured ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["draw"]

_BLUE, _ORANGE, _GREY = "#1f4e8c", "#b45309", "#6b7280"
_HOURS = {
    # what: (part of the plan, colour, line)
    "in all": ("seconds", _BLUE, "-"),
    "reading over the network": ("reading", _ORANGE, "--"),
    "computing": ("computing", "#15803d", "-."),
    "putting parts together": ("assembly", _GREY, ":"),
}


def draw(
    plan: Callable[[int], Mapping[str, float]],
    model: Callable[[int], float],
    points: Sequence[tuple[int, float, bool]],
    marked: Sequence[int],
    what: str,
    file: Path,
) -> None:
    """Write SVG or PNG.

    `plan`: by number of workers, seconds and $. `model`: by number of tasks, processor seconds a parameter of the base.
    `points`: tasks, the same measured, whether the model was fitted to it. `marked`: workers that are shown as points.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "plan"
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure, (time, money, check) = plt.subplots(1, 3, figsize=(13.5, 4.4), layout="constrained")
    workers = sorted(
        {*marked, *(n for n in (round(2 ** (k / 4)) for k in range(80)) if min(marked) <= n <= max(marked))}
    )
    plans = [plan(n) for n in workers]
    for label, (key, color, line) in _HOURS.items():
        time.plot(workers, [p[key] / 3600 for p in plans], line, color=color, label=label)
    money.plot(workers, [p["price"] for p in plans], color=_BLUE)
    for n in marked:
        found = plan(n)
        hours, price = found["seconds"] / 3600, found["price"]
        for axis, value, text in ((time, hours, f"{hours:.2f} h"), (money, price, f"$ {price:.2f}")):
            axis.plot(n, value, "o", color=_BLUE)
            axis.annotate(text, (n, value), (6, 6), textcoords="offset points", ha="left" if axis is time else "right")
    time.set(yscale="log", ylabel="hours", title=f"time of {what}")
    time.legend(fontsize=8, loc="lower left")
    money.set(ylim=(0, 1.2 * max(p["price"] for p in plans)), ylabel="$", title=f"price of workers' hours, {what}")
    for axis in (time, money):
        axis.set(xscale="log", xlabel="workers")
        axis.margins(x=0.2, y=0.15)
        axis.xaxis.set_major_locator(FixedLocator(list(marked)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(ScalarFormatter())
    most = max(tasks for tasks, *_ in points) + 1
    check.plot([0, most], [1e9 * model(0), 1e9 * model(most)], color=_BLUE, label="the model")
    for fitted, mark, color, label in (
        (True, "s", _GREY, "measured; constants come from it"),
        (False, "o", _ORANGE, "measured"),
    ):
        chosen = [point for point in points if point[2] == fitted]
        check.plot([p[0] for p in chosen], [1e9 * p[1] for p in chosen], mark, color=color, label=label)
    check.set(xlim=(0, most), ylim=(0, None), title="computing, model and measured")
    check.set(xlabel="tasks", ylabel="processor ns a parameter of the base")
    check.legend(fontsize=8, loc="upper left")
    for axis in (time, money, check):
        axis.grid(visible=True, alpha=0.25)
    figure.savefig(file, dpi=130, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
