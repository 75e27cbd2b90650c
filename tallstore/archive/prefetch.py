"""What a task needs of an archive: which files, and which byte ranges of them: said to a far-away store in advance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from tallstore.archive.locations import Places
from tallstore.archive.read_plan import ReadPlan, TensorPlan
from tallstore.archive.reader import Reader
from tallstore.errors import FormatError
from tallstore.format.manifest import Manifest
from tallstore.format.relatives import with_relatives
from tallstore.stores import Range


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

    Of the base not even headers are announced unless something that is read builds on it. Errors in the archive are no
    business of this: the decoder finds them.
    """
    manifest, store = reader.manifest, reader.store
    whole = names is None or not store.far  # then the base's headers go with the task's, in one round trip
    store.prefetch(_headers(manifest, parts_of(manifest, task, exact=exact, base=base and whole)))
    if whole and not store.ranged:
        return  # whole files are there now
    places = Places(reader)
    plan = ReadPlan(places, embedded=base)
    asked: dict[str, dict[str, None]] = {task: dict.fromkeys(places.task(task) if names is None else names)}
    tensors: list[TensorPlan] = []
    known = whole or not base  # whether there is nothing more to say of the base's headers
    for name in _downwards(manifest, task):
        for each in asked.get(name, {}):
            with suppress(FormatError):
                source = places.source(name, each)
                if not known and places.task(name)[source].entry.kind == "base":  # whose plan looks at the base's entry
                    store.prefetch(_headers(manifest, manifest.base.parts))
                    known = True
                tensor = plan.of(name, source, exact=exact and name == task)
                tensors.append(tensor)
                for _, other, member in tensor.start.members if tensor.start is not None else ():
                    asked.setdefault(other, {})[member] = None
    if not known and any(tensor.base is not None for tensor in tensors):
        store.prefetch(_headers(manifest, manifest.base.parts))
    if not store.ranged:
        return
    ranges: dict[Range, None] = {}
    for tensor in tensors:
        with suppress(FormatError):
            theirs = plan.base(tensor.base)
            for segment in tensor.segments():
                ranges |= dict.fromkeys(chunk.range for chunk in tensor.chunks(segment, theirs))
    store.prefetch(list(ranges))


def _headers(manifest: Manifest, paths: Iterable[str]) -> list[Range]:
    return [Range(path, 0, manifest.parts[path].header_size or 0) for path in paths]


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
