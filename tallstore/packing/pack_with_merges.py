"""`tallstore.pack` of a zoo in which some tasks are merges of others: those are packed as that, beside the others."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tallstore.archive.shared_tensors import SharedTensors
from tallstore.archive.splice import new_config, splice
from tallstore.checkpoints import Checkpoint, Source, opened_checkpoint
from tallstore.encoder import GroupSlot, Options, PackReport, Progress, TaskReport
from tallstore.encoder.options import LOSSLESS
from tallstore.errors import TallstoreError
from tallstore.packing.equal_tensors import any_alike
from tallstore.packing.find_combinations import LinearFit, find_combinations
from tallstore.packing.groups import packed_beside
from tallstore.packing.relative_packer import RelativePacker, relatives_of
from tallstore.stores import open_sink, open_store

__all__ = ["combinations_among", "pack_with_merges"]


def combinations_among(base: Source, tasks: Mapping[str, Source], chosen: Options) -> dict[str, LinearFit] | None:
    """Tasks that are combinations of others of them; None where nothing is, and no tensor is that of two of them.

    So it is where options promise what only other codes keep.
    """
    promised = chosen.evaluate is not None or chosen.max_error is not None or bool(chosen.exact)
    if not chosen.relatives or chosen.recipe != "solo" or promised or len(tasks) < 2 or chosen.base_storage == "bf16":
        return None
    with ExitStack() as stack:
        try:
            start = stack.enter_context(opened_checkpoint(base, "base (in memory)", chosen.storage_options))
            opened = {
                name: stack.enter_context(
                    opened_checkpoint(source, f"{name} (in memory)", chosen.storage_options, weights=chosen.weights)
                )
                for name, source in tasks.items()
            }
        except TallstoreError:  # said where they are packed
            return None
        if start.far or any(task.far for task in opened.values()):
            return None
        parents = dict.fromkeys(opened, 0) if chosen.quality == LOSSLESS else None
        combinations = find_combinations(start, opened, {}, parents=parents)
        return combinations if combinations or any_alike(start, opened) else None


def pack_with_merges(
    base: Source,
    tasks: Mapping[str, Source],
    path: str | os.PathLike[str],
    chosen: Options,
    combinations: Mapping[str, LinearFit],
    *,
    progress: Progress | None = None,
) -> PackReport:
    """Pack those that are no combination of others as ever, and those that are as that."""
    began = time.perf_counter()
    plain = {name: source for name, source in tasks.items() if name not in combinations}
    with ExitStack() as stack:
        sink = stack.enter_context(
            open_sink(path, overwrite=chosen.overwrite, resume=chosen.resume, storage_options=chosen.storage_options)
        )
        options = replace(chosen, overwrite=False, resume=False, groups=1)
        alone = replace(options.of_tasks(list(plain)), resume=chosen.resume)
        first, archive = packed_beside(stack, sink, base, plain, alone, progress, GroupSlot())
        archive = SharedTensors().share(archive, lambda store: stack.enter_context(open_store(store.url)))
        start = stack.enter_context(opened_checkpoint(base, "base (in memory)", chosen.storage_options))
        reports: dict[str, TaskReport] = dict(first.tasks)
        warnings, added = list(first.warnings), []
        opened: dict[str, Checkpoint] = {
            name: stack.enter_context(
                opened_checkpoint(tasks[name], f"{name} (in memory)", chosen.storage_options, weights=chosen.weights)
            )
            for name in combinations
        }
        packer = RelativePacker(stack, sink, start, archive, options, progress)
        made = packer.pack(opened, {name: relatives_of(each) for name, each in combinations.items()})
        reports |= {name: each[0] for name, each in made.items()}
        added += [each[1] for each in made.values()]
        if failed := [name for name in combinations if name not in made]:
            others = {name: tasks[name] for name in failed}
            report, more = packed_beside(
                stack, sink, start, others, replace(options, base_storage="reference").of_tasks(failed), progress,
                packer.slot(), "others",
            )  # fmt: skip
            reports |= report.tasks
            added.append(packer.joined(more))
        spliced = splice(archive, added, list(tasks))
        manifest = spliced.write(sink, new_config(tasks))
        spliced.close()
        sink.commit()
    size = len(manifest.to_bytes())
    separate = manifest.base.bytes + sum(int(t.number("checkpoint_bytes") or 0) for t in manifest.tasks.values())
    return PackReport(
        path=Path(path) if not isinstance(sink.target, str) else sink.target,
        tasks={name: replace(reports[name], bytes=manifest.tasks[name].measured["bytes"]) for name in tasks},
        bytes=manifest.bytes_by_kind(size),
        checkpoints_bytes=separate,
        bits_per_parameter=manifest.bits_per_parameter(size),
        seconds=time.perf_counter() - began,
        warnings=tuple(warnings),
        taken_up=first.taken_up,
    )
