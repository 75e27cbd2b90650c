"""Which parameters the tasks of an archive use, alone and together: the paper's mask statistics, streaming.

A task uses a parameter where it adds something to it: its mask is on and v is not 0, or its own delta is not 0. (An
untrimmed mask over a trimmed v is on where there is nothing to keep.) Tensors that are stored whole have no mask and
are not counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from tallstore.archive.decode import Decoder
from tallstore.archive.merging.alignment import Lineup, Member, line_up
from tallstore.archive.merging.tiles import ahead
from tallstore.format.dtypes import MASKABLE
from tallstore.format.manifest import Manifest
from tallstore.format.part import CONDITIONAL_KINDS
from tallstore.merging import Agreement, count_agreement
from tallstore.tensors import as_bytes

__all__ = ["MaskStatistics", "count_masks"]

Progress = Callable[[str, int, int], None]
Bits = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class MaskStatistics:
    """Which parameters the tasks use. Matrices and vectors are in the order of `tasks`."""

    tasks: tuple[str, ...]
    agreement: Agreement
    """Counts over all parameters; its profile, overlaps and densities are properties."""
    tensors: Mapping[str, tuple[Counts, Counts]]
    """By the base's name of a tensor: the parameters that each task has, and those that it uses; both (T,)."""

    @property
    def profile(self) -> dict[int, float]:
        """The share of parameters that exactly n tasks use, n = 0 … T."""
        return dict(enumerate(self.agreement.profile.tolist()))

    @property
    def catastrophic(self) -> float:
        """The share that no task uses: consensus at k = 1 drops them."""
        return self.agreement.catastrophic

    @property
    def selfish(self) -> dict[str, float]:
        """Per task the share that it alone uses: consensus at k = 2 drops them too."""
        total = self.agreement.parameters
        return {t: n / total if total else 0.0 for t, n in zip(self.tasks, self.agreement.alone.tolist(), strict=True)}

    @property
    def density(self) -> dict[str, float]:
        """The share of its parameters that each task uses."""
        return dict(zip(self.tasks, self.agreement.density.tolist(), strict=True))

    @cached_property
    def layers(self) -> dict[str, dict[str, float]]:
        """Density by layer and task. A layer is a name up to its first number, or its first part if it has none."""
        sums: dict[str, tuple[Counts, Counts]] = {}
        for name, (size, on) in self.tensors.items():
            layer = _layer(name, self._common)
            before = sums.get(layer, (np.zeros_like(size), np.zeros_like(on)))
            sums[layer] = before[0] + size, before[1] + on
        return {layer: self._shares(*counts) for layer, counts in sums.items()}

    @property
    def by_tensor(self) -> dict[str, dict[str, float]]:
        """Density by tensor and task."""
        return {name: self._shares(*counts) for name, counts in self.tensors.items()}

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "tasks": list(self.tasks),
            "parameters": self.agreement.parameters,
            "profile": list(self.profile.values()),
            "catastrophic": self.catastrophic,
            "selfish": self.selfish,
            "density": self.density,
            "jaccard": self.agreement.jaccard.tolist(),
            "containment": self.agreement.containment.tolist(),
            "density_by_layer": self.layers,
            "density_by_tensor": self.by_tensor,
        }

    @cached_property
    def _common(self) -> int:
        """Leading parts that all names share, `bert.encoder.` say: they say nothing about layers."""
        names = [name.split(".")[:-1] for name in self.tensors]
        shared = 0
        while names and all(len(n) > shared and n[shared] == names[0][shared] for n in names):
            shared += 1
        return shared if len(names) > 1 else 0

    def _shares(self, size: Counts, on: Counts) -> dict[str, float]:
        return {t: float(o / s) for t, s, o in zip(self.tasks, size, on, strict=True) if s}


def count_masks(
    decoder: Decoder, manifest: Manifest, tasks: Sequence[str], progress: Progress | None = None
) -> MaskStatistics:
    """Count chunk by chunk, several at a time."""
    for task in tasks:
        decoder.check(task)
    lineups = [
        replace(lineup, members=masked)
        for lineup in line_up(decoder, manifest, tasks).values()
        if lineup.facts.dtype in MASKABLE and (masked := tuple(m for m in lineup.members if m.kind != "private"))
    ]
    total = Agreement.nothing(len(tasks))
    tensors: dict[str, tuple[Counts, Counts]] = {}

    def count(lineup: Lineup, start: int, stop: int) -> tuple[str, Agreement]:
        return lineup.base, _count(decoder, lineup, start, stop, len(tasks))

    def tell(done: int, of: int) -> None:
        if progress is not None:
            progress("counting", done, of)

    # What only keeps the base stores nothing: it is counted without a walk along it, however long it says it is.
    kept = [lineup for lineup in lineups if all(m.kind == "base" for m in lineup.members)]
    walked = [lineup for lineup in lineups if any(m.kind != "base" for m in lineup.members)]
    at_once = ((lineup.base, _unused(lineup, len(tasks))) for lineup in kept)
    for name, counted in chain(at_once, ahead(decoder.threads, walked, count, tell)):
        total += counted
        size, on = tensors.get(name, (np.zeros_like(total.size), np.zeros_like(total.on)))
        tensors[name] = size + counted.size, on + counted.on
    in_order = {lineup.base: tensors[lineup.base] for lineup in lineups if lineup.base in tensors}
    return MaskStatistics(tasks=tuple(tasks), agreement=total, tensors=in_order)


def _unused(lineup: Lineup, n_tasks: int) -> Agreement:
    """The count of a tensor in which no task uses anything."""
    agreement = Agreement.nothing(n_tasks)
    for member in lineup.members:
        agreement.size[member.index] = member.entry.covered
    agreement.used_by[0] = max(member.entry.covered for member in lineup.members)
    return agreement


def _count(decoder: Decoder, lineup: Lineup, start: int, stop: int, n_tasks: int) -> Agreement:
    there = {m.index: min(stop, m.entry.covered) for m in lineup.members if m.entry.covered > start}
    moved = [m for m in lineup.members if m.index in there and m.kind != "base"]
    kept = {g: _kept(decoder, g, lineup.base, start, stop) for g in {m.group for m in moved if m.masked}}
    n = max(there.values(), default=start) - start
    rows = [_used(decoder, m, lineup.base, kept.get(m.group), (start, there[m.index]), -(-n // 8)) for m in moved]
    agreement = count_agreement(rows, n, n_tasks, [m.index for m in moved])
    size = np.zeros(n_tasks, np.int64)
    for index, end in there.items():
        size[index] = end - start
    return replace(agreement, size=size)


def _used(decoder: Decoder, member: Member, base: str, kept: Bits | None, span: tuple[int, int], size: int) -> Bits:
    """One bit a parameter, on where the task uses it: `size` bytes, 0 behind the span."""
    start, stop = span
    out = np.zeros(size, np.uint8)
    if member.kind == "delta":
        bits = np.packbits(decoder.delta_range(member.task, member.name, start, stop).numpy() != 0, bitorder="little")
    elif member.kind in CONDITIONAL_KINDS | {"relative"}:
        after = decoder.own_range(member.task, member.source, start, stop)
        before = decoder.base_range(base, start, stop).to(after.dtype)
        differs = as_bytes(after).reshape(-1, after.element_size()) != as_bytes(before).reshape(
            -1, after.element_size()
        )
        bits = np.packbits(differs.any(axis=1), bitorder="little")
    else:
        symbols = decoder.symbol_range(member.task, member.name, start, stop)
        for chunk, scale in enumerate(member.entry.scales or ()):
            if scale == 0 and member.entry.coded is not None:
                at = chunk * member.entry.coded.chunk - start
                symbols[max(at, 0) : max(at + member.entry.coded.chunk, 0)] = 0
        # Whatever is not 0 is packed as 1, − as well as +.
        bits = np.packbits(symbols, bitorder="little")
    out[: len(bits)] = bits
    if member.masked and kept is not None:
        out &= kept[:size]
    return out


def _kept(decoder: Decoder, group: str, base: str, start: int, stop: int) -> Bits | None:
    """Where v is not 0; None where it is 1 throughout."""
    coded = decoder.vectors(group)[base].entry.coded
    if coded is not None and coded.codec == "ones":
        return None
    return np.packbits(decoder.vector_range(group, base, start, stop).numpy() != 0, bitorder="little")


def _layer(name: str, common: int) -> str:
    """`encoder.layer.3` of `encoder.layer.3.output.dense.weight`; `embeddings` of `embeddings.norm.bias`."""
    parts = name.split(".")
    inside = parts[common:-1] or parts[-1:]
    numbered = next((at for at, part in enumerate(inside) if _NUMBER.fullmatch(part)), 0)
    return ".".join(inside[: numbered + 1])
