"""Groups whose vector is 1 everywhere: their tasks share nothing, so that others can join them at no cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tallstore.archive.locations import ONES
from tallstore.archive.reader import Reader
from tallstore.archive.splice import SplicedArchive
from tallstore.format.manifest import Group, Manifest, PartRecord
from tallstore.format.part import Entry, PartHeader


@dataclass(frozen=True)
class Home:
    """A group that others can join."""

    group: str
    chunk: int | None
    """Elements a chunk; None where its vector has no tensor yet."""
    tensors: frozenset[str]
    """Those that its vector has."""


def find_home(reader: Reader, recipe: str) -> Home | None:
    """The first group of this recipe, packed with the archive's own options, whose vector is 1 everywhere."""
    for group in reader.manifest.groups:
        if group.recipe.get("id") == recipe and "options" not in group.recipe:
            entries = ones_of(reader, group)
            if entries is not None and len(chunks := chunks_of(entries)) <= 1:
                return Home(group.id, next(iter(chunks), None), frozenset(entries))
    return None


def ones_of(reader: Reader, group: Group) -> Mapping[str, Entry] | None:
    """The entries of a group's vector if that is 1 everywhere, else None."""
    places = reader.places(group.parts, "vector", group.id)
    entries = {name: place.entry for name, place in places.items()}
    plain = all(e.coded is not None and e.coded.codec == ONES and not e.coded.size for e in entries.values())
    return entries if plain else None


def chunks_of(entries: Mapping[str, Entry]) -> set[int]:
    """How many elements its chunks have: one number, or none, where all agree."""
    return {entry.coded.chunk for entry in entries.values() if entry.coded is not None}


def joined(archive: SplicedArchive, home: Home, manifest: Manifest) -> SplicedArchive:
    """An archive of new tasks that were packed to join a group: of the vector it brings only what the group's lacks."""
    (group,) = archive.manifest.groups
    entries = ones_of(Reader(archive.store, archive.manifest), group)
    assert entries is not None
    lacking = {name: entry for name, entry in entries.items() if name not in home.tensors}
    parts = {path: record for path, record in archive.manifest.parts.items() if path not in group.parts}
    new: tuple[str, ...] = ()
    if lacking:
        data, record = ones_part(home.group, lacking)
        path = free_path(home.group, manifest.parts)
        place = archive.store.local(path)
        assert place is not None
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        new, parts[path] = (path,), record
    return archive._replace(manifest=replace(archive.manifest, groups=(replace(group, parts=new),), parts=parts))


def ones_part(group: str, entries: Mapping[str, Entry]) -> tuple[bytes, PartRecord]:
    """A vector part whose entries take no bytes: its header is all of it."""
    data = PartHeader(part="vector", owner=group, entries=entries).to_bytes(list(entries))
    digest = hashlib.sha256(data).hexdigest()
    return data, PartRecord(size=len(data), sha256=digest, header_size=len(data), header_sha256=digest)


def free_path(group: str, taken: Iterable[str]) -> str:
    """Where a further vector part of a group can lie."""
    lower = {path.lower() for path in taken}
    number = 1
    while f"vector/{group}-{number}.safetensors".lower() in lower:
        number += 1
    return f"vector/{group}-{number}.safetensors"
