"""Mask statistics as tables: `tallstore info --masks`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from tallstore.cli import output

if TYPE_CHECKING:
    from tallstore.archive.merging.mask_statistics import MaskStatistics

_MOST_ROWS = 24
_MOST_TASKS = 12
_NAME = 9


def show(console: Console, statistics: MaskStatistics) -> None:
    """The agreement profile, what each task uses, how tasks overlap, and the density by layer."""
    for part in (
        _profile(statistics),
        _by_task(statistics),
        _overlap(statistics, console.width),
        _by_layer(statistics),
    ):
        console.print()
        console.print(part)


def _profile(statistics: MaskStatistics) -> object:
    shares = statistics.profile
    if len(shares) > _MOST_ROWS:
        rest = {n: share for n, share in shares.items() if n >= _MOST_ROWS}
        rows = [(str(n), share) for n, share in shares.items() if n not in rest]
        rows.append((f"{_MOST_ROWS}…{len(statistics.tasks)}", sum(rest.values())))
    else:
        rows = [(str(n), share) for n, share in shares.items()]
    notes = {
        "0": "no task: 'catastrophic', dropped by merging with consensus at k = 1",
        "1": "one task: 'selfish', dropped at k = 2",
    }
    most = max(share for _, share in rows)
    return output.table(
        f"parameters by how many of {len(statistics.tasks)} tasks use them, of {statistics.agreement.parameters:,}",
        [("used by", True), ("share", True), ("", False), ("", False)],
        [[n, output.share(share), output.bar(share, most), notes.get(n, "")] for n, share in rows],
    )


def _by_task(statistics: MaskStatistics) -> object:
    alone = statistics.agreement.alone / statistics.agreement.on.clip(1)
    rows = [
        [task, output.share(density), output.share(statistics.selfish[task]), output.share(float(share))]
        for (task, density), share in zip(statistics.density.items(), alone, strict=True)
    ]
    columns = [("task", False), ("uses", True), ("alone uses", True), ("of its own", True)]
    return output.table("what each task uses, of all parameters", columns, rows)


def _overlap(statistics: MaskStatistics, width: int) -> object:
    most = min(_MOST_TASKS, max((width - max(map(len, statistics.tasks))) // (_NAME + 2), 1))
    tasks = statistics.tasks[:most]
    short = [task if len(task) <= _NAME else f"{task[: _NAME - 1]}…" for task in tasks]
    both = statistics.agreement.jaccard
    rows = [
        [task, *(f"{both[i, j]:.2f}" if i != j else "·" for j in range(len(tasks)))] for i, task in enumerate(tasks)
    ]
    more = f" (the first {most} of {len(statistics.tasks)}; --json has all)" if len(statistics.tasks) > most else ""
    return output.table(f"overlap |A∩B| / |A∪B|{more}", [("", False), *((name, True) for name in short)], rows)


def _by_layer(statistics: MaskStatistics) -> object:
    rows = []
    means = {layer: _mean(shares) for layer, shares in statistics.layers.items()}
    most = max(means.values(), default=0.0)
    for layer, shares in statistics.layers.items():
        low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        least, largest = f"{output.share(shares[low])} {low}", f"{output.share(shares[high])} {high}"
        rows.append([layer, output.share(means[layer]), output.bar(means[layer], most), least, largest])
    columns = [("layer", False), ("mean", True), ("", False), ("least", False), ("most", False)]
    return output.table("density by layer", columns, rows)


def _mean(shares: Mapping[str, float]) -> float:
    return sum(shares.values()) / len(shares)
