"""Every set of weights of a checkpoint, each as a task of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from tallstore.checkpoints.base import Source
from tallstore.checkpoints.opening import open_checkpoint
from tallstore.checkpoints.weight_sets import ALL

__all__ = ["with_every_set"]


@contextmanager
def with_every_set(
    tasks: Mapping[str, Source], weights: str | None, storage_options: Mapping[str, Any] | None = None
) -> Iterator[Mapping[str, Source]]:
    """The tasks, and where `weights` is `all`, behind each those sets of weights that it holds beside the main one.

    Those are named TASK.SET, and closed afterwards.
    """
    if weights != ALL:
        yield tasks
        return
    out: dict[str, Source] = {}
    with ExitStack() as stack:
        for name, source in tasks.items():
            where = None if isinstance(source, str | os.PathLike) else f"{name} (in memory)"
            main = open_checkpoint(source, where, storage_options, weights=ALL)
            if main is not source:
                stack.callback(main.close)
            out[name] = main
            for each in main.sets:
                other = open_checkpoint(source, where, storage_options, weights=each)
                stack.callback(other.close)
                other.left_out = {}
                out[f"{name}.{re.sub(r'[^A-Za-z0-9_-]+', '-', each)}"] = other
            main.left_out = {n: why for n, why in main.left_out.items() if not why.startswith("another set")}
        yield out
