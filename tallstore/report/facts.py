"""What a report says of an archive: gathered once, then drawn and written by others.

Sizes are those of the archive's own tables. What only the writer can know (errors, scores) is taken from `measured`,
where anybody may have written anything: what is no number is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tallstore.archive.manifests import PARTS
from tallstore.errors import BaseNeededError
from tallstore.format.dtypes import size_of
from tallstore.format.manifest import Manifest

if TYPE_CHECKING:
    from tallstore.archive import Archive, MaskStatistics

__all__ = ["Facts", "TaskFacts", "WholeRow", "gather"]


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """One task: what it cost and what it kept."""

    name: str
    error: float | None
    cosine: float | None
    divergence: float | None
    """How far outputs are predicted to be from the fine-tune's, in units of how far the base's are."""
    density: float | None
    original: float | None
    decoded: float | None
    own: int
    """Bytes on disk that only this task needs, exact copies left out."""
    exact: int
    checkpoint: int | None
    """Bytes of its tensors as a checkpoint."""
    bit_for_bit: bool = False
    """Whether it comes back to the last bit."""
    adapter: str | None = None
    """The type, of an adapter."""

    @property
    def retention(self) -> float | None:
        """The score kept, as a share of the original's; None where it was not scored, or means nothing as a share."""
        if self.original is None or self.decoded is None or self.original <= 0:
            return None
        return self.decoded / self.original


@dataclass(frozen=True, kw_only=True)
class WholeRow:
    """A tensor that some tasks store whole, for one reason."""

    name: str
    why: str
    shapes: tuple[tuple[int, ...], ...]
    """Different ones, in order of appearance."""
    dtypes: tuple[str, ...]
    bytes: int
    tasks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """An archive."""

    name: str
    """Of the file or folder; not where it is, which is nobody else's business."""
    manifest: Manifest
    tasks: tuple[TaskFacts, ...]
    packed: Mapping[str, int]
    """Bytes on disk by part, in the order of `PARTS`."""
    separate: int
    """Bytes of base and tasks as checkpoints."""
    bits: float
    """Bits per parameter and task; the base is not counted."""
    wholes: tuple[WholeRow, ...] = ()
    masks: MaskStatistics | None = None
    uncounted: str = ""
    """Why they were not counted, where they were to be."""

    @property
    def total(self) -> int:
        """Bytes of the archive."""
        return sum(self.packed.values())

    @property
    def ratio(self) -> float:
        """How many times smaller the archive is."""
        return self.separate / self.total

    @cached_property
    def error(self) -> float | None:
        """Mean relative error."""
        return _mean([task.error for task in self.tasks])

    @cached_property
    def retention(self) -> float | None:
        """Mean retention of the tasks that were scored."""
        return _mean([task.retention for task in self.tasks])

    @cached_property
    def worst(self) -> TaskFacts | None:
        """The task that kept least of its score; without scores, the one with the largest error."""
        scored = [task for task in self.tasks if task.retention is not None]
        if scored:
            return min(scored, key=lambda task: task.retention or 0.0)
        known = [task for task in self.tasks if task.error is not None]
        return max(known, key=lambda task: task.error or 0.0) if known else None

    def ranked(self) -> list[TaskFacts]:
        """The tasks, those that kept least first."""
        return sorted(self.tasks, key=lambda t: (t.retention if t.retention is not None else 1.0, -(t.error or 0.0)))


def gather(
    zoo: Archive, *, deep: bool = True, masks: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> Facts:
    """Gather what there is to say.

    Args:
        zoo: the archive.
        deep: read the tasks' headers too: what is stored whole. False reads nothing but the manifest.
        masks: count the masks, where that needs no base that is not at hand.
        progress: called with a text, how much is done, and of how much.
    """
    manifest = zoo.manifest
    info = zoo.info()
    sizes = dict(info["bytes"])
    sizes["files"] += sizes["manifest"]
    tasks = tuple(_task(zoo, name, deep=deep) for name in zoo.tasks)
    counted, uncounted = None, ""
    try:
        counted = zoo.mask_statistics(progress=progress) if masks else None
    except BaseNeededError as error:
        uncounted = str(error)
    return Facts(
        name=zoo.url.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or zoo.url,
        manifest=manifest,
        tasks=tasks,
        packed={part: sizes[part] for part in PARTS if sizes[part] or part == "base"},
        separate=manifest.base.bytes + sum(task.checkpoint or 0 for task in tasks),
        bits=float(info["bits_per_parameter"]),
        wholes=_wholes(zoo) if deep else (),
        masks=counted,
        uncounted=uncounted,
    )


def _task(zoo: Archive, name: str, *, deep: bool) -> TaskFacts:
    task = zoo.manifest.tasks[name]
    parts = zoo.manifest.parts
    pulled = [path for kind, paths in task.parts.items() if kind != "exact" for path in paths]
    pulled += [path for path in task.files.values() if path.startswith(f"tasks/{name}/")]
    claimed = task.number("checkpoint_bytes")
    return TaskFacts(
        name=name,
        error=task.number("relative_error"),
        bit_for_bit=task.bit_for_bit or task.adapter is not None,
        adapter=task.adapter.type if task.adapter is not None else None,
        cosine=task.number("cosine"),
        divergence=task.number("divergence"),
        density=task.number("density"),
        original=task.number("scores", "original"),
        decoded=task.number("scores", "decoded"),
        own=sum(parts[path].size for path in dict.fromkeys(pulled)),
        exact=sum(parts[path].size for path in task.parts.get("exact", ())),
        checkpoint=int(claimed) if claimed is not None and claimed >= 0 else _checkpoint(zoo, name) if deep else None,
    )


def _checkpoint(zoo: Archive, name: str) -> int:
    """Bytes of a task's tensors, tied ones once."""
    facts = zoo.tensors(name).values()
    return sum(size_of(f.dtype, f.shape) for f in facts if f.kind != "tied")


def _wholes(zoo: Archive) -> tuple[WholeRow, ...]:
    by_key: dict[tuple[str, str], dict[str, Any]] = {}
    for task in zoo.tasks:
        for name, whole in zoo.wholes(task).items():
            row = by_key.setdefault((name, whole.why), {"shapes": {}, "dtypes": {}, "bytes": 0, "tasks": []})
            row["shapes"][whole.shape] = row["dtypes"][whole.dtype] = None
            row["bytes"] += whole.bytes
            row["tasks"].append(task)
    rows = [
        WholeRow(
            name=name,
            why=why,
            shapes=tuple(row["shapes"]),
            dtypes=tuple(row["dtypes"]),
            bytes=row["bytes"],
            tasks=tuple(row["tasks"]),
        )
        for (name, why), row in by_key.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.name)))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
