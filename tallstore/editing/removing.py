"""`tallstore.remove`: tasks out of an archive, without a trace."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from tallstore.archive.splice import FileOfArchive, Spliced
from tallstore.archive.subset import CONFIG, config_of, smaller
from tallstore.checkpoints import Source
from tallstore.editing.change import changing
from tallstore.editing.handover import handed_over, only_shares
from tallstore.editing.recode_tasks import recoded
from tallstore.editing.report import GrowReport, facts_of
from tallstore.encoder import Progress
from tallstore.errors import InputError, NoSuchTaskError
from tallstore.format.manifest import Manifest, names_of


def remove(
    path: str | os.PathLike[str],
    tasks: str | Sequence[str],
    *,
    recode: bool = False,
    base: Source | None = None,
    progress: Progress | None = None,
) -> GrowReport:
    """Remove tasks from an archive on this machine: their parts, files, names, and what was measured of them.

    So go the vectors of groups that lose their last task, and files under `common/` that nobody else used. A vector
    that other tasks share stays as it was made, with the removed task among those it was made for; `compact` takes out
    of it what no other task uses. All other parts stay, byte for byte.

    A task that others are made of is refused, unless these go too, or are coded anew. Tensors that others merely have
    alike stay: the first of those takes them over, byte for byte.

    Args:
        path: the archive, a folder or a `.tall` file. It is replaced in one step, or stays as it was.
        tasks: a name, or several.
        recode: code tasks that are made of those removed against the base, in place of refusing. Every decoded bit
            stays, so they take what a task without loss takes.
        base: where the archive only references it, and tasks are coded anew.
        progress: called now and then with a text, how much is done, and of how much.

    Raises:
        NoSuchTaskError: with the names that there are.
        InputError: no task would be left, or one that is left is made of them; names it.
        ArchiveError, OutputError: the archive is damaged, or cannot be written.
    """
    began = time.perf_counter()
    gone = dict.fromkeys([tasks] if isinstance(tasks, str) else tasks)
    with changing(path) as change:
        manifest = change.manifest
        if odd := [name for name in gone if name not in manifest.tasks]:
            raise NoSuchTaskError(f"{change.path}: no task {odd[0]!r}; there are {names_of(list(manifest.tasks))}")
        if not gone:
            raise InputError(f"no task was named; there are {names_of(list(manifest.tasks))}")
        left = [name for name in manifest.tasks if name not in gone]
        if not left:
            raise InputError(
                f"{change.path}: an archive has at least one task, and none would be left: delete it instead"
            )
        made_of = [name for name in left if not gone.keys().isdisjoint(_relatives(manifest, name))]
        sharing = [name for name in made_of if only_shares(manifest, name)]
        made_of = [name for name in made_of if name not in sharing]
        if made_of and not recode:
            raise InputError(
                f"{change.path}: {names_of(made_of)} {'is' if len(made_of) == 1 else 'are'} made of "
                f"{names_of([name for name in gone if any(name in _relatives(manifest, m) for m in made_of)])}: "
                "remove them too, or code them anew (recode=True, --re-code)"
            )
        with ExitStack() as stack:
            full = (
                recoded(change, stack, made_of, base, progress)
                if made_of
                else Spliced(manifest, {part: FileOfArchive(change.store, part) for part in manifest.parts})
            )
            if sharing:
                full = handed_over(full, change.reader, gone, change.sink)
            config = config_of(change.reader, left)
            new = _without(full.manifest, left, config)
            spliced = Spliced(new, {part: full.files[part] for part in new.parts if part in full.files})
            warnings = _of_card(change.own_card(), list(gone))
            written = change.commit(spliced, config, progress)
    return GrowReport(
        **facts_of(change.path, manifest, written, time.perf_counter() - began),
        removed=tuple(gone),
        recoded=tuple(made_of),
        warnings=warnings,
    )


def _relatives(manifest: Manifest, task: str) -> tuple[str, ...]:
    related = manifest.tasks[task].relatives
    return () if related is None else related.tasks


def _without(manifest: Manifest, left: Sequence[str], config: bytes) -> Manifest:
    """The smaller manifest; files that it lists and no task ever referred to stay."""
    new = smaller(manifest, left, config)
    referred = set(smaller(manifest, list(manifest.tasks), b"").parts)
    gone = tuple(f"tasks/{name}/" for name in manifest.tasks if name not in left)
    own = {p: r for p, r in manifest.parts.items() if p not in referred and p != CONFIG and not p.startswith(gone)}
    parts = {path: record for path, record in manifest.parts.items() if path in new.parts or path in own}
    return replace(new, parts=parts)


def _of_card(text: str | None, gone: Sequence[str]) -> tuple[str, ...]:
    """A word where a model card of the user's own speaks of a task that is gone."""
    named = [name for name in gone if text is not None and name in text]
    return (f"README.md is yours and speaks of {names_of(named)}: edit it",) if named else ()
