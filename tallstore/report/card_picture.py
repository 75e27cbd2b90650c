"""The picture on a model card: what an archive saves and keeps, at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tallstore.archive.manifests import PARTS
from tallstore.humanize import number, share, size
from tallstore.report.canvas import Canvas, shorten
from tallstore.report.extra import require
from tallstore.report.facts import Facts, gather
from tallstore.report.figures import checkpoints, saving

if TYPE_CHECKING:
    from tallstore.archive import Archive

__all__ = ["card_picture"]

_WIDTH, _HEIGHT, _EDGE = 800, 440, 40
_GAP = 1.0
_MOST_TASKS = 64


def card_picture(zoo: Archive, *, kind: Literal["png", "svg"] = "png") -> bytes:
    """Bytes and retention at a glance, as a picture for a model card. Reads nothing but the manifest.

    Args:
        zoo: an open archive.
        kind: `png` (2,000 × 1,100 dots) or `svg`.

    Raises:
        MissingExtraError: with the command that installs what draws it.
    """
    require()
    canvas = _draw(gather(zoo, deep=False))
    return canvas.png() if kind == "png" else canvas.svg()


def _draw(facts: Facts) -> Canvas:
    tasks, right = len(facts.tasks), _WIDTH - _EDGE
    kept = _kept(facts)
    plural = "s" if tasks > 1 else ""
    about = (
        f"{tasks} fine-tuned model{plural} and the base: {size(facts.separate)} as checkpoints, "
        f"{size(facts.total)} packed. {kept}."
    )
    canvas = Canvas(_WIDTH, _HEIGHT, about=about, edge=0)
    canvas.text(_EDGE, 52, f"{tasks} fine-tuned model{plural}, one archive", bold=True, size=26)
    canvas.text(_EDGE, 84, shorten(facts.name, right - _EDGE, 14), "muted", size=14)
    wide = right - _EDGE
    whole = max(facts.separate, facts.total, 1)
    for y, count, words in ((134, facts.separate, f"{tasks + 1} checkpoints"), (214, facts.total, "packed")):
        canvas.text(_EDGE, y, words, "muted", size=14)
        text = size(count) if count == facts.separate else f"{size(count)}  ({saving(facts)})"
        canvas.text(right, y, text, size=16, bold=True, align="right")
    x = float(_EDGE)
    for _, count in checkpoints(facts, wide):
        canvas.box(x, 148, max(wide * count / whole - _GAP, 0.5), 30, "base" if x == _EDGE else "some")
        x += wide * count / whole
    x = float(_EDGE)
    for part, count in facts.packed.items():
        canvas.box(x, 228, wide * count / whole, 30, part)
        x += wide * count / whole
    x = float(_EDGE)
    for part in facts.packed:
        canvas.box(x, 272, 10, 10, part)
        canvas.text(x + 15, 277, PARTS[part][0], "muted", size=11.5)
        x += 34 + 7 * len(PARTS[part][0])
    canvas.line([(_EDGE, 304), (right, 304)], "rule")
    canvas.text(_EDGE, 332, kept, size=16, bold=True)
    _marks(canvas, facts, _EDGE, 356, wide)
    return canvas


def _kept(facts: Facts) -> str:
    worst = facts.worst
    if facts.retention is not None and worst is not None:
        return f"Score kept: {share(facts.retention)} on average, {share(worst.retention)} at worst"
    if facts.error is not None and worst is not None:
        return f"Relative error: {number(facts.error)} on average, {number(worst.error)} at worst"
    return "Nothing was measured when it was packed"


def _marks(canvas: Canvas, facts: Facts, x: float, y: float, width: float) -> None:
    """A bar a task: what it kept of its score, or its error."""
    tasks = facts.ranked()[:_MOST_TASKS]
    scored = facts.retention is not None
    values = [task.retention if scored else task.error for task in tasks]
    most = max([value for value in values if value is not None] + [1e-9])
    slot = min(width / max(len(tasks), 1), 90.0)
    for n, (task, value) in enumerate(zip(tasks, values, strict=True)):
        if value is not None:
            tall = 24 * max(value, 0) / most
            canvas.box(x + n * slot, y + 24 - tall, slot - min(6, slot / 4), tall, "some" if scored else "masks")
        if slot >= 44:
            words = share(value) if scored else number(value)
            canvas.text(x + n * slot, y + 37, shorten(task.name, slot, 10.5), size=10.5)
            canvas.text(x + n * slot, y + 52, words, "muted", size=10.5)
