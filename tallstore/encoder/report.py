"""What pack tells its caller: progress while it works, and a report when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tallstore.encoder.lossless_warnings import WithoutLoss
from tallstore.encoder.metrics import Cheaper
from tallstore.encoder.reasons import Reason, Why
from tallstore.notes import adapter_note, cheaper_note, lossless_note

Progress = Callable[[str, int, int], None]
"""Called now and then with: what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """One task: what it cost and what it kept."""

    bytes: int
    """On disk: mask, private tensors and files of its own."""
    relative_error: float | None
    """‖τ̂ − τ‖ / ‖τ‖ over the tensors that have a base; None if nothing moved."""
    cosine: float | None
    """Between τ̂ and τ."""
    divergence: float | None
    """How far outputs are predicted to be from the fine-tune's, in units of how far the base's are (recipe `solo`)."""
    density: float
    """Share of parameters whose mask is on."""
    parameters: int
    """Parameters of the task's checkpoint."""
    private: Mapping[str, str]
    """Tensors stored whole, and why."""
    missing: tuple[str, ...]
    """Base tensors that the task lacks."""
    without_loss: WithoutLoss | None = None
    """Its tensors that are packed without loss for what they are: quantized, or of types that no mask fits."""
    cheaper: Cheaper | None = None
    """Its tensors that lose nothing since loss would save nothing; None if there are none."""
    adapter: str | None = None
    """The method, of an adapter: it is kept as it is."""
    unmatched: float = 0.0
    """Share of the parameters that find no counterpart in the base, and are stored whole."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What of its folder or file is not in the archive, and why."""


_SENTENCES = {
    Reason.UNMATCHED: "the base has no such tensor, or one of another shape",
    Reason.ADAPTER: "adapter, kept as it is",
    Reason.SMALL: "small",
    Reason.TYPE: "of type {about}",
    Reason.NUMBERS: "it holds {about}",
    Reason.BASE_NUMBERS: "the base's tensor holds {about}",
    Reason.BASE_NAN: "the base's tensor holds NaN, and is of another type",
    Reason.ROWS: "rows beyond the base's",
}


def sentence(why: Why) -> str:
    """Why a tensor is stored whole, for people."""
    about = why.about
    if why.reason in {Reason.NUMBERS, Reason.BASE_NUMBERS}:
        about = f"numbers as large as {about}" if about else "NaN or Inf"
    return _SENTENCES[why.reason].format(about=about)


def notes_on(tasks: Mapping[str, TaskReport]) -> tuple[str, ...]:
    """What is good to know of tasks that were packed: nothing to act on."""
    lossless = (
        lossless_note(name, told.tensors, told.bytes, told.coded_bytes, told.form)
        for name, task in tasks.items()
        if (told := task.without_loss) is not None
    )
    cheaper = (
        cheaper_note(name, each.tensors, each.of) for name, task in tasks.items() if (each := task.cheaper) is not None
    )
    adapters = (adapter_note(name, task.adapter) for name, task in tasks.items() if task.adapter is not None)
    return (*lossless, *cheaper, *adapters)


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What was packed, what it cost, and what deserves attention."""

    path: Path | str
    """Where the archive is: an address where it is far away."""
    tasks: Mapping[str, TaskReport]
    bytes: Mapping[str, int]
    """On disk, by kind: base, vector, masks, private, files, manifest, total."""
    checkpoints_bytes: int
    """What base and tasks take as separate checkpoints (tensor bytes)."""
    bits_per_parameter: float
    """Bits a parameter and task: everything but the base."""
    seconds: float
    warnings: tuple[str, ...]
    taken_up: int = 0
    """Batches of work that an earlier run had finished: see `Options.resume`."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is good to know: nothing to act on."""
        return notes_on(self.tasks)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"path": str(self.path), "notes": list(self.notes)}
