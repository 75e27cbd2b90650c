"""Several vectors: who shares one is chosen on a sketch; each group is packed by itself, and all become one archive."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tallstore.archive.checkpoint import ArchiveBase
from tallstore.archive.manifests import read_manifest
from tallstore.archive.reader import Reader
from tallstore.archive.splice import SplicedArchive, new_config, splice
from tallstore.checkpoints import Source, opened_checkpoint
from tallstore.encoder import GroupSlot, Options, PackReport, Progress
from tallstore.encoder.groups import choose_groups
from tallstore.packing.pack_one_group import pack_group
from tallstore.stores import Sink, open_sink, open_store

ALONE = "recipe 'solo' shares no vector: groups change nothing, and all tasks are in one"


def pack_groups(
    base: Source,
    tasks: Mapping[str, Source],
    path: str | os.PathLike[str],
    chosen: Options,
    *,
    progress: Progress | None = None,
) -> PackReport:
    """`tallstore.pack` with `groups`. The base is read once more for each group; memory is the largest group's."""
    began = time.perf_counter()
    if chosen.recipe == "solo":
        return pack_group(base, tasks, path, replace(chosen, groups=1), progress=progress, warning=ALONE)
    groups = choose_groups(base, tasks, chosen, progress=progress).groups
    if len(groups) == 1:
        return pack_group(base, tasks, path, chosen, progress=progress)
    with ExitStack() as stack:
        sink = stack.enter_context(open_sink(path, overwrite=chosen.overwrite))
        reports, archives = [], []
        for number, names in enumerate(groups):
            options = replace(chosen.of_tasks(names), overwrite=False, resume=False)
            if number:
                options = replace(options, base_storage="reference")
            slot = GroupSlot(group=str(number))
            own = {name: tasks[name] for name in names}
            report, archive = packed_beside(stack, sink, base, own, options, progress, slot)
            reports.append(report)
            archives.append(archive)
            if chosen.base_storage == "bf16" and not number:  # the others' masks are over the base as it is stored
                origin = stack.enter_context(opened_checkpoint(base, "base (in memory)", chosen.storage_options))
                base = ArchiveBase(Reader(archive.store, archive.manifest), origin.files)
        first = archives[0]
        held = {part: record for part, record in first.manifest.parts.items() if part in first.manifest.base.parts}
        bare = replace(first.manifest, groups=(), tasks={}, parts=held, options=chosen.recorded())
        spliced = splice(SplicedArchive(first.store, bare), archives, list(tasks))
        manifest = spliced.write(sink, new_config(tasks))
        spliced.close()
        sink.commit()
    manifest_bytes = len(manifest.to_bytes())
    by_task = {name: report for each in reports for name, report in each.tasks.items()}
    base_bytes = reports[0].checkpoints_bytes - sum(manifest.tasks[n].measured["checkpoint_bytes"] for n in groups[0])
    own_bytes = {name: task.measured["bytes"] for name, task in manifest.tasks.items()}
    return PackReport(
        path=Path(path),
        tasks={name: replace(by_task[name], bytes=own_bytes[name]) for name in tasks},
        bytes=manifest.bytes_by_kind(manifest_bytes),
        checkpoints_bytes=sum(report.checkpoints_bytes for report in reports) - (len(reports) - 1) * base_bytes,
        bits_per_parameter=manifest.bits_per_parameter(manifest_bytes),
        seconds=time.perf_counter() - began,
        warnings=tuple(warning for report in reports for warning in report.warnings),
    )


def packed_beside(
    stack: ExitStack,
    sink: Sink,
    base: Source,
    tasks: Mapping[str, Source],
    options: Options,
    progress: Progress | None,
    slot: GroupSlot,
    scratch: str | None = None,
) -> tuple[PackReport, SplicedArchive]:
    """Pack tasks into an archive of their own in a sink's scratch, and open it: its parts are to be taken over.

    `scratch`: the place's name there; by default the group's. With `resume`, what is done stays where it is resumed.
    """
    place = sink.scratch(scratch or f"group-{slot.group}")
    slot = replace(slot, work=sink if options.resume else None)
    report = pack_group(base, tasks, place, options, progress=progress, slot=slot)
    store = stack.enter_context(open_store(place))
    return report, SplicedArchive(store, read_manifest(store))
