"""`tallstore.pack`: one group of tasks, or several."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tallstore.checkpoints import Source, with_every_set
from tallstore.encoder import Options, PackReport, Progress
from tallstore.errors import InputError
from tallstore.format.names import check_task_names
from tallstore.packing.groups import pack_groups
from tallstore.packing.pack_one_group import pack_group
from tallstore.packing.pack_with_merges import combinations_among, pack_with_merges
from tallstore.stores import check_target


def pack(
    base: Source,
    tasks: Mapping[str, Source],
    path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> PackReport:
    """Pack fine-tunes of one base into one archive. The originals are only read.

    Args:
        base: the pre-trained model: a folder or file, a Hub id, a state dict or a module.
        tasks: name → fine-tuned model, likewise. Names become folders: letters, digits, `.`, `_`, `-`.
        path: the archive: one file if it ends in `.tall`, else a folder; here, or at an address that fsspec can write
            to (`s3://bucket/zoo`): there the manifest is put last.
        progress: called now and then with a text, bytes done and bytes in all.
        **options: see `tallstore.Options`.

    Returns:
        What was stored, what it cost and kept, and warnings.

    Raises:
        InputError: a checkpoint, a task name or an option that cannot be used; the message says what to do.
        BudgetError: `max_error` or `min_retention` cannot be kept; says for which task and why.
        OutputError: the archive cannot be written, or is there already. No half of it is left behind.
    """
    chosen = Options.from_mapping(options)
    names = check_task_names(list(tasks))
    if not names:
        raise InputError("no task was given: name at least one fine-tuned model")
    chosen.exact_tasks(names)
    check_target(path, overwrite=chosen.overwrite, storage_options=chosen.storage_options)
    with with_every_set(tasks, chosen.weights, chosen.storage_options) as every:
        check_task_names(list(every))
        if (combinations := combinations_among(base, every, chosen)) is not None:
            return pack_with_merges(base, every, path, chosen, combinations, progress=progress)
        if chosen.groups == 1:
            return pack_group(base, every, path, chosen, progress=progress)
        return pack_groups(base, every, path, chosen, progress=progress)
