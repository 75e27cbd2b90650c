"""What a task needs of an archive: which files, and which byte ranges of them: said to a far-away store in advance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tallstore.archive.reader import Place, Reader
from tallstore.format.manifest import Manifest
from tallstore.stores import Range

Places = Mapping[str, Place]


def parts_of(manifest: Manifest, task: str, *, exact: bool = False, base: bool = True) -> list[str]:
    """Paths of the parts that decoding a task reads.

    Args:
        manifest: the archive's.
        task: its name.
        exact: with what makes the task bit for bit the original.
        base: with the archive's own base, if it has one.
    """
    record = manifest.tasks[task]
    kinds = ("mask", "private", "exact") if exact else ("mask", "private")
    group = next(group for group in manifest.groups if group.id == record.group)
    own = [path for kind in kinds for path in record.parts.get(kind, ())]
    return [*own, *group.parts, *(manifest.base.parts if base else ())]


def announce(reader: Reader, task: str, names: Iterable[str] | None, *, exact: bool, base: bool) -> None:
    """Tell the store which ranges decoding these tensors (all of them for None) will read, about in that order.

    Errors in the archive are no business of this: the decoder finds them.
    """
    manifest = reader.manifest
    paths = parts_of(manifest, task, exact=exact, base=base)
    reader.store.prefetch([Range(path, 0, manifest.parts[path].header_size or 0) for path in paths])
    if not reader.store.ranged:
        return  # whole files are there now
    group = manifest.tasks[task].group
    kinds = {kind: reader.places(manifest.tasks[task].parts.get(kind, ()), kind, task) for kind in ("mask", "private")}
    kinds["vector"] = reader.places(next(g.parts for g in manifest.groups if g.id == group), "vector", group)
    kinds["base"] = reader.places(manifest.base.parts, "base", "") if base else {}
    kinds["exact"] = reader.places(manifest.tasks[task].parts.get("exact", ()), "exact", task) if exact else {}
    reader.store.prefetch(list(dict.fromkeys(_ranges(kinds, kinds["mask"] if names is None else names))))


def announce_files(reader: Reader, task: str) -> None:
    """Tell the store that the small files of a task will be read."""
    manifest = reader.manifest
    paths = manifest.tasks[task].files.values()
    reader.store.prefetch([Range(path, 0, manifest.parts[path].size) for path in paths])


def _ranges(kinds: Mapping[str, Places], names: Iterable[str]) -> Iterator[Range]:
    for each in names:
        name = _own(kinds["mask"], each)
        place = kinds["mask"].get(name)
        if place is None:
            continue
        entry = place.entry
        covered = entry.covered if entry.base is not None else 0
        yield from _chunks(place, covered)
        if entry.kind in {"binary", "signed"}:
            yield from _chunks(kinds["vector"].get(str(entry.base)), covered)
        if entry.base is not None:
            yield from _chunks(kinds["base"].get(_own(kinds["base"], entry.base)), covered)
        if covered < entry.numel or entry.base is None:
            yield from _chunks(kinds["private"].get(name))
        yield from _chunks(kinds["exact"].get(name))


def _own(places: Places, name: str) -> str:
    """The tensor whose bytes a tied one shares."""
    place = places.get(name)
    return str(place.entry.to) if place is not None and place.entry.kind == "tied" else name


def _chunks(place: Place | None, elements: int | None = None) -> Iterator[Range]:
    """The ranges of a tensor's leading chunks: those that so many elements lie in, or all, with what pads them."""
    if place is None or place.entry.coded is None or place.offset is None:
        return
    coded = place.entry.coded
    count = place.entry.covered if elements is None else min(elements, place.entry.covered)
    at, chunks = place.offset, coded.chunks[: -(-count // coded.chunk)]
    for index, (length, _) in enumerate(chunks):
        last = index + 1 == len(coded.chunks)
        yield Range(place.path, at, length + (coded.padded - coded.size if last else 0))
        at += length
