"""The demo from end to end: make a zoo, pack it, extract every task, and measure what that cost and kept."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tallstore.demo.zoo import DemoPlan, DemoZoo, demo_task, evaluate, load_state, make_zoo, require_empty, silent
from tallstore.encoder import PackReport, Progress
from tallstore.errors import MissingExtraError
from tallstore.packing import pack
from tallstore.zoo import open_zoo


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """One task: what it asks, and how well it is answered before packing and after extracting."""

    name: str
    question: str
    classes: int
    accuracy_base: float
    """Of the base's weights with the task's own head: what no fine-tuning at all would give."""
    accuracy_before: float
    accuracy_after: float
    relative_error: float | None
    """‖τ̂ − τ‖ / ‖τ‖, as `tallstore.pack` measured it."""
    density: float
    """Share of parameters whose mask is on."""
    checkpoint_bytes: int
    """Its folder, before."""
    archive_bytes: int
    """Its own share of the archive: mask, head and files."""

    @property
    def retention(self) -> float:
        """Accuracy after, as a share of accuracy before."""
        return self.accuracy_after / self.accuracy_before


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo made and measured. Everything stays in `folder`, to look at and play with."""

    folder: Path
    zoo: DemoZoo
    archive: Path
    extracted: Mapping[str, Path]
    """The folder of each task's model as it came out of the archive."""
    tasks: tuple[DemoTask, ...]
    checkpoints_bytes: int
    """The folders of base and tasks, before."""
    archive_bytes: Mapping[str, int]
    """The archive on disk by kind, and `total`, as in `PackReport.bytes`."""
    bits_per_parameter: float
    """Bits a parameter and task: everything but the base."""
    seconds: Mapping[str, float]
    """How long `train`, `pack`, `extract` and `evaluate` took."""
    report: Path | None = None
    """The page to look at; None without `tallstore[report]`."""

    @property
    def retention(self) -> float:
        """Mean over the tasks."""
        return sum(task.retention for task in self.tasks) / len(self.tasks)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "folder": str(self.folder),
            "archive": str(self.archive),
            "report": None if self.report is None else str(self.report),
            "tasks": {task.name: asdict(task) | {"retention": task.retention} for task in self.tasks},
            "checkpoints_bytes": self.checkpoints_bytes,
            "archive_bytes": dict(self.archive_bytes),
            "bits_per_parameter": self.bits_per_parameter,
            "retention": self.retention,
            "seconds": dict(self.seconds),
        }


class _Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def run_demo(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    plan: DemoPlan | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> DemoResult:
    """Make a zoo, pack it, extract every task, evaluate each model before and after, and report on it.

    Args:
        folder: gets `models/`, `zoo.tall`, `extracted/` and `report.html`. Must be empty or not there.
        seed: the same seed gives the same zoo.
        plan: how large a zoo; the default takes less than a minute.
        progress: called with what is being done, how much of it is done, and how much there is.
        **options: for `tallstore.pack`.
    """
    place, report = Path(folder), progress or silent
    require_empty(place)
    clock = _Clock()
    zoo = make_zoo(place / "models", seed, report, plan=plan)
    clock.lap("train")
    archive = place / "zoo.tall"
    packed = pack(zoo.base, zoo.tasks, archive, progress=report, **{"evaluate": evaluate} | options)
    clock.lap("pack")
    extracted = _extract(archive, place / "extracted", report)
    clock.lap("extract")
    tasks = _measure(zoo, extracted, packed, report)
    clock.lap("evaluate")
    page = _report(archive, place / "report.html", report)
    return DemoResult(
        folder=place,
        zoo=zoo,
        archive=archive,
        extracted=extracted,
        tasks=tasks,
        checkpoints_bytes=sum(map(_size, (zoo.base, *zoo.tasks.values()))),
        archive_bytes=packed.bytes,
        bits_per_parameter=packed.bits_per_parameter,
        seconds=clock.laps,
        report=page,
    )


def _report(archive: Path, out: Path, progress: Progress) -> Path | None:
    with open_zoo(archive) as opened:
        try:
            return opened.report(out, progress=progress)
        except MissingExtraError:
            return None


def _extract(archive: Path, out: Path, progress: Progress) -> dict[str, Path]:
    with open_zoo(archive) as opened:
        folders = {}
        for n, task in enumerate(opened.tasks):
            progress("extracting", n, len(opened.tasks))
            folders[task] = opened.export(task, out / task)
        progress("extracting", len(opened.tasks), len(opened.tasks))
    return folders


def _measure(
    zoo: DemoZoo, extracted: Mapping[str, Path], packed: PackReport, progress: Progress
) -> tuple[DemoTask, ...]:
    base = load_state(zoo.base)
    results = []
    for n, (name, folder) in enumerate(zoo.tasks.items()):
        progress("evaluating", n, len(zoo.tasks))
        before = load_state(folder)
        task, cost = demo_task(name), packed.tasks[name]
        results.append(
            DemoTask(
                name=name,
                question=task.question,
                classes=task.classes,
                accuracy_base=evaluate(_unmoved(base, before), name),
                accuracy_before=evaluate(before, name),
                accuracy_after=evaluate(extracted[name], name),
                relative_error=cost.relative_error,
                density=cost.density,
                checkpoint_bytes=_size(folder),
                archive_bytes=cost.bytes,
            )
        )
    progress("evaluating", len(zoo.tasks), len(zoo.tasks))
    return tuple(results)


def _unmoved(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fine-tune's own head on the base's weights."""
    return {name: base.get(name, tensor) for name, tensor in tuned.items()}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
