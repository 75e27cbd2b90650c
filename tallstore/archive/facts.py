"""How a task's tensors are stored, for people and scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tallstore.archive.reader import Place


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """How a task's tensor is stored."""

    kind: str
    """base, binary, signed, delta, lossless, sampled, private or tied."""
    dtype: str
    shape: tuple[int, ...]
    base: str | None
    """The base tensor it comes from."""
    rows: int | None
    """Leading rows that come from the base, where the shapes differ."""
    scales: tuple[float, ...] | None
    """The scale s of each run of `chunk` elements; all 1 where None."""
    chunk: int | None
    codec: str | None
    bytes: int
    """Coded bytes."""
    start: tuple[float, ...] | None = None
    """Of a tensor that builds on other tasks' in place of the base's: the weight of each that the task is made of;
    empty where they are merged as the task says. See `Zoo.info()`'s `relatives`."""


def facts_of(places: Mapping[str, Place], place: Place) -> TensorFacts:
    """What a task's record says of a tensor; a tied one has the type and shape of what it is tied to."""
    entry = place.entry
    tied = entry.kind == "tied" and entry.to in places
    shown = places[str(entry.to)].entry if tied else entry
    return TensorFacts(
        kind=entry.kind,
        dtype=str(shown.dtype),
        shape=shown.shape or (),
        base=entry.base,
        rows=entry.rows,
        scales=entry.scales,
        chunk=entry.coded.chunk if entry.coded else None,
        codec=entry.coded.codec if entry.coded else None,
        bytes=entry.coded.size if entry.coded else 0,
        start=entry.start,
    )
