"""Ties that some tasks keep and others cut, where tasks are merged.

A task that has one tensor under two names, or under one where the base has it twice, moved both of the base's tensors.
Where another task moved them apart, both are merged, and the tied tensor counts for each: its values are decoded, and
what the base has in that place is subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from tallstore.archive.decode import Decoder
from tallstore.archive.merging.alignment import Lineup, Member
from tallstore.format.dtypes import MASKABLE
from tallstore.format.manifest import Manifest
from tallstore.format.part import Entry

__all__ = ["with_cut_ties"]


def with_cut_ties(
    decoder: Decoder, manifest: Manifest, lineups: Mapping[str, Lineup], tasks: Sequence[str]
) -> tuple[dict[str, Lineup], tuple[str, ...]]:
    """Lineups with the tensors of tasks that tie what others have apart; and notes that say so."""
    out, notes = {}, []
    for base, lineup in lineups.items():
        there = {member.index for member in lineup.members}
        added = [
            member
            for index, task in enumerate(tasks)
            if index not in there and (member := _tied(decoder, manifest, lineups, lineup, index, task)) is not None
        ]
        members = sorted([*lineup.members, *added], key=lambda member: member.index)
        out[base] = Lineup(base, lineup.facts, lineup.numel, tuple(members))
        notes += [
            f"{member.name}: {member.task} has it tied to {member.entry.to}, {lineup.members[0].task} apart from that: "
            "merged as two, but for a head that ties them; a loader that does (tie_word_embeddings in config.json) "
            "would lose one"
            for member in added
        ]
    return out, tuple(notes)


def _tied(
    decoder: Decoder, manifest: Manifest, lineups: Mapping[str, Lineup], lineup: Lineup, index: int, task: str
) -> Member | None:
    """A task's tensor that stands in a base tensor's place under another name; None where it has none."""
    entries = {name: place.entry for name, place in decoder.task(task).items()}
    if lineup.facts.dtype not in MASKABLE:
        return None
    for name, source in _candidates(decoder, manifest, lineups, lineup, index, entries):
        target = entries[source]
        if target.shape == lineup.facts.shape and target.dtype in MASKABLE:
            entry = Entry(kind="tied", dtype=target.dtype, shape=target.shape, to=source)
            return Member(index, task, manifest.tasks[task].group, name, entry)
    return None


def _candidates(
    decoder: Decoder,
    manifest: Manifest,
    lineups: Mapping[str, Lineup],
    lineup: Lineup,
    index: int,
    entries: Mapping[str, Entry],
) -> Iterator[tuple[str, str]]:
    """Names that a task has, or would have, for a base tensor, each with the tensor of its own that it is tied to."""
    names = dict.fromkeys([*(member.name for member in lineup.members), lineup.base])
    for name in names:
        if name in entries and entries[name].kind == "tied":
            yield name, str(entries[name].to)
    if len(lineup.facts.shape) < 2 or any(name in entries for name in names):
        return
    copies = [o for o, facts in manifest.base.tensors.items() if o != lineup.base and facts == lineup.facts]
    if not copies or _is_constant(decoder.base_tensor(lineup.base)):
        return
    for other in copies:
        if other in lineups:
            for member in lineups[other].members:
                if member.index == index:
                    yield lineup.members[0].name, member.name


def _is_constant(tensor: Tensor) -> bool:
    """Whether two tensors like this one are alike for another reason than a tie: both were begun with zeros, say."""
    return tensor.numel() < 2 or bool((tensor == tensor.flatten()[0]).all())
