"""`tallstore.add`: more tasks into an archive that is there; its own base is all that is needed of the originals."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from tallstore.archive.compare import compare
from tallstore.archive.decode import Decoder
from tallstore.archive.reader import Reader
from tallstore.archive.shared_tensors import SharedTensors
from tallstore.archive.sharing import find_home, joined
from tallstore.archive.splice import Spliced, SplicedArchive, joined_archive, new_config, splice
from tallstore.archive.subset import config_of
from tallstore.checkpoints import Checkpoint, Source, open_checkpoint, with_every_set
from tallstore.editing.adding_relatives import AddedRelatives
from tallstore.editing.base import base_of, check_same
from tallstore.editing.change import Change, changing
from tallstore.editing.companions import note_on
from tallstore.editing.distances import with_distances
from tallstore.editing.options import inherited, recorded_options
from tallstore.editing.report import GrowReport, facts_of
from tallstore.encoder import GroupSlot, Options, Progress, TaskReport
from tallstore.encoder.groups import choose_groups
from tallstore.errors import InputError, ModelMismatchError, TaskNameError
from tallstore.format.manifest import Group, Manifest, names_of
from tallstore.format.names import check_task_names
from tallstore.packing.groups import packed_beside
from tallstore.stores import open_store

_KNOWN = 64
"""Tasks of an archive whose tensors are looked for among new ones."""
_TOLERANCE = 1e-3
"""Relative difference of two errors that are the same up to the order of additions and the digits recorded."""


def add(
    path: str | os.PathLike[str],
    tasks: Mapping[str, Source],
    *,
    refit: bool = False,
    parent: str | Mapping[str, str] | None = None,
    base: Source | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> GrowReport:
    """Add fine-tunes to an archive on this machine. Nothing that it holds changes: its parts stay, byte for byte.

    The new tasks are packed against the archive's own base, as the archive was packed unless options say otherwise.
    They get a vector of their own, in a new group; where the recipe shares nothing they join the group that is there.

    Args:
        path: the archive, a folder or a `.tall` file. It is replaced in one step, or stays as it was.
        tasks: name → fine-tuned model; see `tallstore.pack`.
        refit: pack everything anew, old tasks and new ones: `tasks` must hold the original of every task of the
            archive too. Each is held to what the archive knows of it.
        parent: a task of the archive that the new ones, or those named, are coded against in place of the base: they
            were tuned from it, or are later versions of it. Of archives without loss; there, and for merges of tasks
            that are there, `relatives` (see `tallstore.Options`) finds it out by itself.
        base: the base, where the archive only references it. Held to the archive's hashes. An archive that holds its
            base takes from here the files beside its weights alone, such as `config.json`, for adapters: merged, they
            need them. Without it they are those that came with an earlier adapter, or of a fine-tune whose tensors have
            the base's names and shapes; a warning says so.
        progress: called now and then with a text, how much is done, and of how much.
        **options: see `tallstore.Options`; by default those that the archive was packed with.

    Raises:
        InputError: a checkpoint, a name or an option that cannot be used, a task that is there already, an original
            that is missing or is another model's; the message says which. The archive is as it was.
        BudgetError: a promise cannot be kept.
        BaseNeededError, WrongBaseError: the referenced base was not given, or is another one.
        ArchiveError, OutputError: the archive is damaged, or cannot be written.
    """
    return add_known(path, tasks, {}, refit=refit, parent=parent, base=base, progress=progress, **options)


def add_known(
    path: str | os.PathLike[str],
    tasks: Mapping[str, Source],
    told: Mapping[str, Mapping[str, Any]],
    *,
    refit: bool = False,
    parent: str | Mapping[str, str] | None = None,
    base: Source | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> GrowReport:
    """`add`, with what is known of tasks besides: it is recorded with what was measured of them."""
    began = time.perf_counter()
    with changing(path) as change:
        _check_names(change.manifest, list(tasks), refit=refit)
        chosen, warnings = inherited(change.manifest, options, list(tasks))
        chosen.exact_tasks(list(tasks))
        with ExitStack() as stack:
            start = base_of(change.reader, base)
            stack.callback(start.close)
            tasks = stack.enter_context(with_every_set(tasks, chosen.weights, chosen.storage_options))
            _check_names(change.manifest, list(tasks), refit=refit)
            if refit:
                _check_originals(change, start, tasks, progress)
            told = with_distances(change, start, tasks, told) if told else told
            packer = Packer(change, stack, start, chosen, progress)
            parents = parent if isinstance(parent, Mapping) else dict.fromkeys(tasks, parent) if parent else {}
            spliced = packer.refit(tasks) if refit else packer.add(tasks, parents)
            adapters = {n: spliced.manifest.tasks[n] for n in tasks if spliced.manifest.tasks[n].adapter is not None}
            notes = note_on(start, adapters)
            manifest = _with_told(spliced.manifest, told)
            manifest = manifest.warned(dict.fromkeys(tasks, warnings)).warned(dict.fromkeys(adapters, notes))
            spliced = replace(spliced, manifest=manifest)
            config = config_of(change.reader, list(spliced.manifest.tasks)) or new_config(spliced.manifest.tasks)
            manifest = change.commit(spliced, config, progress)
    return GrowReport(
        **facts_of(change.path, change.manifest, manifest, time.perf_counter() - began),
        added={
            name: replace(report, bytes=manifest.tasks[name].measured["bytes"]) for name, report in packer.tasks.items()
        },
        warnings=(*warnings, *packer.warnings, *notes),
    )


def _check_names(manifest: Manifest, names: Sequence[str], *, refit: bool) -> None:
    there = list(manifest.tasks)
    if refit:
        if missing := [name for name in there if name not in names]:
            raise InputError(
                f"to refit, the original checkpoint of every task is needed: {names_of(missing)} not given; "
                "give them all, or add without refit"
            )
        check_task_names(list(names))
        return
    if not names:
        raise InputError("no task was given: name at least one fine-tuned model")
    if doubled := [name for name in names if name in manifest.tasks]:
        raise TaskNameError(f"task {doubled[0]!r} is in the archive already; choose another name, or remove it first")
    check_task_names([*there, *names])


class Packer:
    """Packs groups into archives of their own beside the one that changes, and splices them into it."""

    def __init__(
        self, change: Change, stack: ExitStack, base: Checkpoint, options: Options, progress: Progress | None
    ) -> None:
        self.tasks: dict[str, TaskReport] = {}
        self.warnings: list[str] = []
        self._change, self._stack, self._base, self._progress = change, stack, base, progress
        self._options = replace(options, base_storage="reference", overwrite=False, resume=False)

    def add(self, tasks: Mapping[str, Source], parents: Mapping[str, str] | None = None) -> Spliced:
        """New tasks beside the old ones: those that are made of others as that, all others as ever."""
        relatives = AddedRelatives(self._change, self._stack, self._base, self._options, self._progress)
        related = relatives.find(tasks, parents or {})
        plain = {name: source for name, source in tasks.items() if name not in related}
        archives = self._plain(plain) if plain else []
        archives += relatives.pack(tasks, related, archives)
        self.tasks |= relatives.reports
        if left := {name: source for name, source in tasks.items() if name not in self.tasks}:
            archives += self._plain(left, archives)
            self.warnings += [
                f"{name}: coded against the base, since parent {parents[name]!r} explains too little of it"
                for name in left
                if parents and name in parents
            ]
        order = [*self._change.manifest.tasks, *tasks]
        return splice(self._change.archive, archives, order)

    def _plain(self, tasks: Mapping[str, Source], beside: Sequence[SplicedArchive] = ()) -> list[SplicedArchive]:
        """Tasks that are coded against the base, after some; tensors that others have too are those."""
        packed = self._packed(tasks, beside)
        if not self._options.relatives or self._options.recipe != "solo":
            return packed
        shared = SharedTensors()
        shared.know(self._change.archive, list(self._change.manifest.tasks)[-_KNOWN:])
        return [shared.share(each, lambda store: self._stack.enter_context(open_store(store.url))) for each in packed]

    def _packed(self, tasks: Mapping[str, Source], beside: Sequence[SplicedArchive]) -> list[SplicedArchive]:
        archive = joined_archive(self._change.archive, beside)
        manifest, reader = archive.manifest, Reader(archive.store, archive.manifest)
        settled = {**recorded_options(manifest), "groups": self._options.groups, "base_storage": "reference"}
        same = _plain(self._options.recorded()) == _plain(settled)
        home = find_home(reader, self._options.recipe) if same else None
        if home is not None:
            slot = GroupSlot(group=home.group, chunk=home.chunk, first=len(manifest.tasks))
            made = self._pack(tasks, self._options, slot, f"group-{home.group}-{len(beside)}")
            return [joined(made, home, manifest)]
        archives: list[SplicedArchive] = []
        for names in self._groups(tasks):
            taken = [*manifest.groups, *(group for made in archives for group in made.manifest.groups)]
            slot = GroupSlot(group=_free_id(taken, manifest), first=len(manifest.tasks))
            made = self._pack({name: tasks[name] for name in names}, self._options.of_tasks(names), slot)
            archives.append(made if same else _with_options(made))
        return archives

    def refit(self, tasks: Mapping[str, Source]) -> Spliced:
        """Everything anew; the archive's base stays."""
        old = self._change.manifest
        order = [*old.tasks, *(name for name in tasks if name not in old.tasks)]
        ordered = {name: tasks[name] for name in order}
        archives = [
            self._pack({n: ordered[n] for n in names}, self._options.of_tasks(names), GroupSlot(group=str(number)))
            for number, names in enumerate(self._groups(ordered))
        ]
        recorded = {**self._options.recorded(), "base_storage": old.options.get("base_storage", old.base.storage)}
        held = {path: old.parts[path] for path in old.base.parts}
        bare = replace(old, groups=(), tasks={}, parts=held, options=recorded)
        return splice(SplicedArchive(self._change.store, bare), archives, order)

    def _groups(self, tasks: Mapping[str, Source]) -> Sequence[Sequence[str]]:
        if self._options.groups == 1 or self._options.recipe == "solo":
            return [list(tasks)]
        return choose_groups(self._base, tasks, self._options, progress=self._progress).groups

    def _pack(
        self, tasks: Mapping[str, Source], options: Options, slot: GroupSlot, scratch: str | None = None
    ) -> SplicedArchive:
        sink = self._change.sink
        report, archive = packed_beside(self._stack, sink, self._base, tasks, options, self._progress, slot, scratch)
        check_same(self._base, archive.manifest, self._change.reader)
        self.tasks |= report.tasks
        self.warnings += report.warnings
        return archive


def _with_told(manifest: Manifest, told: Mapping[str, Mapping[str, Any]]) -> Manifest:
    tasks = {
        name: replace(task, measured={**task.measured, **told[name]}) if name in told else task
        for name, task in manifest.tasks.items()
    }
    return replace(manifest, tasks=tasks)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back, without those that name tasks; what an older version did not record is its default."""
    defaults = {**Options().recorded(), **options}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in defaults.items() if key not in {"exact", "lam"}}


def _with_options(archive: SplicedArchive) -> SplicedArchive:
    """A group that was packed otherwise than the archive says how."""
    groups = tuple(
        replace(g, recipe={**g.recipe, "options": archive.manifest.options}) for g in archive.manifest.groups
    )
    return archive._replace(manifest=replace(archive.manifest, groups=groups))


def _free_id(groups: Sequence[Group], manifest: Manifest) -> str:
    ids, paths = {group.id for group in groups}, {path.lower() for path in manifest.parts}
    number = len(groups)
    while str(number) in ids or f"vector/{number}.safetensors" in paths:
        number += 1
    return str(number)


def _check_originals(change: Change, base: Checkpoint, tasks: Mapping[str, Source], progress: Progress | None) -> None:
    """Hold each original to what the archive knows: names and types, whole tensors bit for bit, and the error.

    An archive has no hashes of originals, but of each the error that its masks leave: another model's is another.
    """
    manifest = change.manifest
    given = base if manifest.base.storage == "reference" else None
    decoder = Decoder(Reader(change.store, manifest), given, None)
    for number, (name, task) in enumerate(manifest.tasks.items()):
        with closing(open_checkpoint(tasks[name], f"{name} (in memory)")) as original:
            try:
                difference = compare(decoder, name, original)
            except ModelMismatchError as error:
                raise InputError(f"refit: {error}") from error
            then, now = task.number("relative_error"), difference.relative_error
            far = then is not None and now is not None and abs(then - now) > _TOLERANCE * max(then, now)
            unmeasured = (then is None) != (now is None) and not difference.exact
            if not difference.whole_tensors_exact or far or unmeasured:
                why = (
                    "tensors that are stored whole differ" if not far else f"an error of {now:.4g}, expected {then:.4g}"
                )
                raise InputError(f"{original.where}: not the checkpoint that task {name!r} was packed from ({why})")
        if progress is not None:
            progress(f"comparing {name}", number + 1, len(manifest.tasks))
