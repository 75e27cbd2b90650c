"""Mask statistics as tables: `tallstore info --masks`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from tallstore.cli import output

if TYPE_CHECKING:
    from tallstore.archive.statistics import MaskStatistics

_MOST_ROWS = 24
_MOST_TASKS = 12
_NAME = 9


def show(console: Console, found: MaskStatistics) -> None:
    """The agreement profile, what each task uses, how tasks overlap, and the density by layer."""
    for part in (_profile(found), _by_task(found), _overlap(found, console.width), _by_layer(found)):
        console.print()
        console.print(part)


def _profile(found: MaskStatistics) -> object:
    shares = found.profile
    if len(shares) > _MOST_ROWS:
        rest = {n: share for n, share in shares.items() if n >= _MOST_ROWS}
        rows = [(str(n), share) for n, share in shares.items() if n not in rest]
        rows.append((f"{_MOST_ROWS}…{len(found.tasks)}", sum(rest.values())))
    else:
        rows = [(str(n), share) for n, share in shares.items()]
    notes = {"0": "catastrophic: consensus drops them at k = 1", "1": "selfish: at k = 2"}
    most = max(share for _, share in rows)
    return output.table(
        f"parameters by how many of {len(found.tasks)} tasks use them, of {found.agreement.parameters:,}",
        [("used by", True), ("share", True), ("", False), ("", False)],
        [[n, output.share(share), output.bar(share, most), notes.get(n, "")] for n, share in rows],
    )


def _by_task(found: MaskStatistics) -> object:
    alone = found.agreement.alone / found.agreement.on.clip(1)
    rows = [
        [task, output.share(density), output.share(found.selfish[task]), output.share(float(share))]
        for (task, density), share in zip(found.density.items(), alone, strict=True)
    ]
    columns = [("task", False), ("uses", True), ("alone uses", True), ("of its own", True)]
    return output.table("what each task uses, of all parameters", columns, rows)


def _overlap(found: MaskStatistics, width: int) -> object:
    most = min(_MOST_TASKS, max((width - max(map(len, found.tasks))) // (_NAME + 2), 1))
    tasks = found.tasks[:most]
    short = [task if len(task) <= _NAME else f"{task[: _NAME - 1]}…" for task in tasks]
    both = found.agreement.jaccard
    rows = [
        [task, *(f"{both[i, j]:.2f}" if i != j else "·" for j in range(len(tasks)))] for i, task in enumerate(tasks)
    ]
    more = f" (the first {most} of {len(found.tasks)}; --json has all)" if len(found.tasks) > most else ""
    return output.table(f"overlap |A∩B| / |A∪B|{more}", [("", False), *((name, True) for name in short)], rows)


def _by_layer(found: MaskStatistics) -> object:
    rows = []
    means = {layer: _mean(shares) for layer, shares in found.layers.items()}
    most = max(means.values(), default=0.0)
    for layer, shares in found.layers.items():
        low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        least, largest = f"{output.share(shares[low])} {low}", f"{output.share(shares[high])} {high}"
        rows.append([layer, output.share(means[layer]), output.bar(means[layer], most), least, largest])
    columns = [("layer", False), ("mean", True), ("", False), ("least", False), ("most", False)]
    return output.table("density by layer", columns, rows)


def _mean(shares: Mapping[str, float]) -> float:
    return sum(shares.values()) / len(shares)
