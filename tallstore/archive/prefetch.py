"""What a task needs of an archive: which files, and which byte ranges of them: said to a far-away store in advance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tallstore.archive.locations import Places
from tallstore.archive.reader import Place, Reader
from tallstore.format.manifest import Manifest
from tallstore.format.relatives import with_relatives
from tallstore.stores import Range

ByName = Mapping[str, Place]


def parts_of(manifest: Manifest, task: str, *, exact: bool = False, base: bool = True) -> list[str]:
    """Paths of the parts that decoding a task reads, those of tasks that it is made of among them.

    Args:
        manifest: the archive's.
        task: its name.
        exact: with what makes the task bit for bit the original.
        base: with the archive's own base, if it has one.
    """
    groups = {group.id: group.parts for group in manifest.groups}
    members: dict[str, None] = {}
    for name in with_relatives(lambda name: manifest.tasks[name].relatives, [task]):
        kinds = ("mask", "private", "exact") if exact and name == task else ("mask", "private")
        facts = manifest.tasks[name]
        members |= dict.fromkeys(path for kind in kinds for path in facts.parts.get(kind, ()))
        members |= dict.fromkeys(groups[facts.group])
    return [*members, *(manifest.base.parts if base else ())]


def chain_of(manifest: Manifest, tasks: Sequence[str]) -> tuple[str, ...]:
    """Tasks and all that they are made of, in the archive's order."""
    needed = set(with_relatives(lambda name: manifest.tasks[name].relatives, tasks))
    return tuple(task for task in manifest.tasks if task in needed)


def announce(reader: Reader, task: str, names: Iterable[str] | None, *, exact: bool, base: bool) -> None:
    """Tell the store which ranges decoding these tensors (all of them for None) will read, about in that order.

    Errors in the archive are no business of this: the decoder finds them.
    """
    manifest = reader.manifest
    paths = parts_of(manifest, task, exact=exact, base=base)
    reader.store.prefetch([Range(path, 0, manifest.parts[path].header_size or 0) for path in paths])
    if not reader.store.ranged:
        return  # whole files are there now
    places = Places(reader)
    theirs = reader.places(manifest.base.parts, "base", "") if base else {}
    wanted = dict.fromkeys(places.task(task) if names is None else names)
    asked: dict[str, dict[str, None]] = {task: wanted}
    ranges: dict[Range, None] = {}
    for name in _downwards(manifest, task):
        kinds = {kind: places.task(name, kind) for kind in ("mask", "private")}
        kinds |= {"vector": places.vectors(manifest.tasks[name].group), "base": theirs}
        kinds["exact"] = places.task(name, "exact") if exact and name == task else {}
        ranges |= dict.fromkeys(_ranges(kinds, asked.get(name, {})))
        relatives = manifest.tasks[name].relatives
        built = [
            source
            for each in asked.get(name, {})
            if (source := _own(kinds["mask"], each)) in kinds["mask"] and kinds["mask"][source].entry.start is not None
        ]
        for at, other in enumerate(relatives.tasks if relatives is not None else ()):
            starts = {source: kinds["mask"][source].entry.start for source in built}
            counted = [source for source, start in starts.items() if not start or start[at]]
            asked.setdefault(other, {}).update(dict.fromkeys(counted))
    reader.store.prefetch(list(ranges))


def _downwards(manifest: Manifest, task: str) -> list[str]:
    """A task and all that it is made of, each before those that it is made of itself."""
    ordered: dict[str, None] = {}

    def visit(name: str) -> None:
        relatives = manifest.tasks[name].relatives
        for other in relatives.tasks if relatives is not None else ():
            if other not in ordered:
                visit(other)
        ordered[name] = None

    visit(task)
    return list(reversed(ordered))


def announce_files(reader: Reader, task: str) -> None:
    """Tell the store that the small files of a task will be read."""
    manifest = reader.manifest
    paths = manifest.tasks[task].files.values()
    reader.store.prefetch([Range(path, 0, manifest.parts[path].size) for path in paths])


def _ranges(kinds: Mapping[str, ByName], names: Iterable[str]) -> Iterator[Range]:
    for each in names:
        name = _own(kinds["mask"], each)
        place = kinds["mask"].get(name)
        if place is None:
            continue
        entry = place.entry
        covered = entry.covered if entry.base is not None or entry.start is not None else 0
        yield from _chunks(place, covered)
        if entry.kind in {"binary", "signed"}:
            yield from _chunks(kinds["vector"].get(str(entry.base)), covered)
        if entry.base is not None:
            yield from _chunks(kinds["base"].get(_own(kinds["base"], entry.base)), covered)
        if covered < entry.numel or (entry.base is None and entry.start is None):
            yield from _chunks(kinds["private"].get(name))
        yield from _chunks(kinds["exact"].get(name))


def _own(places: ByName, name: str) -> str:
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
