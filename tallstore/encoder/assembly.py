"""What grows while the pass goes by: the parts of the archive, and each task's tensor chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tallstore.encoder.batches import LosslessRow, RowResult
from tallstore.encoder.metrics import Quality
from tallstore.encoder.part_writer import PartWriter
from tallstore.encoder.plan import User
from tallstore.encoder.reasons import Why
from tallstore.errors import WorkerError
from tallstore.stores import Sink

__all__ = ["UNMOVED", "GrowingTensor", "TensorCost", "Writers"]


class Writers:
    """The parts that grow during the pass."""

    def __init__(self, sink: Sink, tasks: Sequence[str], group: str, *, embed: bool, most: int, keep: bool) -> None:
        def parts(path: str, part: str, owner: str) -> PartWriter:
            return PartWriter(sink, path, part, owner, most, keep=keep)

        self.base = parts("base/base.safetensors", "base", "") if embed else None
        self.vector = parts(f"vector/{group}.safetensors", "vector", group)
        self.masks = [parts(f"tasks/{t}/mask.safetensors", "mask", t) for t in tasks]
        self.exacts = [parts(f"tasks/{t}/exact.safetensors", "exact", t) for t in tasks]
        self.privates = [parts(f"tasks/{t}/private.safetensors", "private", t) for t in tasks]


@dataclass
class GrowingTensor:
    """One user's tensor while its chunks go by."""

    user: User
    quality: Quality = field(default_factory=Quality)
    scales: list[float] = field(default_factory=list)
    moved: bool = False
    kind: str = ""
    why_whole: Why | None = None
    if_moved: Why | None = None
    codec: str = ""
    """Of its chunks."""
    size: int = 0
    """Coded bytes so far, of both layers."""
    instead: list[tuple[LosslessRow, int]] = field(default_factory=list)
    """The chunks so far coded without loss, and their elements: nothing where that was not tried."""

    @property
    def smaller_without_loss(self) -> bool:
        """Whether both layers take at least what the tensor takes without loss."""
        return bool(self.instead) and sum(row.data.length for row, _ in self.instead) <= self.size

    def take_without_loss(self, writer: PartWriter) -> None:
        """Put the chunks that are coded without loss in the place of both layers."""
        self.kind, self.codec, self.scales, self.quality = "lossless", self.instead[0][0].codec, [], Quality()
        writer.begin()
        for row, n in self.instead:
            writer.add(row.data)
            self.quality.add(row.sums, n)

    def add(self, row: RowResult, n: int, writers: Writers) -> None:
        """Take the next chunk, of n elements, into account."""
        self.moved |= row.moved
        self.why_whole = self.why_whole or row.why_whole
        self.if_moved = self.if_moved or row.if_moved
        if row.data is None or self.why_whole is not None:
            return
        if self.kind and (self.kind, self.codec) != (row.kind, row.codec):  # of a job that another version left
            raise WorkerError(
                f"tensor {self.user.name!r}: chunks of {self.codec or self.kind} and of {row.codec or row.kind}: what "
                "an earlier run left was made otherwise; pack without resume"
            )
        self.kind, self.codec = row.kind, row.codec
        if row.lost is not None:
            writers.exacts[self.user.task].add(row.lost)
        writers.masks[self.user.task].add(row.data)
        self.size += row.data.length + (0 if row.lost is None else row.lost.length)
        if row.instead is not None:
            self.instead.append((row.instead, n))
        self.scales.append(row.scale)
        self.quality.add(row.sums, n)


@dataclass(frozen=True)
class TensorCost:
    """What one task's tensor loses, and in which form it is stored."""

    error: float
    """‖τ̂ − τ‖²."""
    norm: float
    """‖τ‖²."""
    parameters: int
    form: str
    """A kind of mask, the codec of a delta, or UNMOVED."""


UNMOVED = "base"
"""The form of a tensor that is the base's, where the base that is stored misses it."""
