"""A smaller archive with some of an archive's tasks: their parts as they are, under a manifest that lists no others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tallstore._version import WRITER
from tallstore.archive.prefetch import chain_of, parts_of
from tallstore.archive.reader import Reader
from tallstore.errors import FormatError
from tallstore.format import strict_json
from tallstore.format.manifest import MANIFEST, Manifest, PartRecord
from tallstore.stores import open_sink

Progress = Callable[[str, int, int], None]

CONFIG = "config.json"


def paths_of(manifest: Manifest, tasks: Sequence[str]) -> list[str]:
    """Every file that an archive of these tasks, and of what they are made of, holds, beside its manifest and its
    `config.json`."""
    paths = dict.fromkeys(manifest.base.parts)
    for task in chain_of(manifest, tasks):
        exact = "exact" in manifest.tasks[task].parts
        paths |= dict.fromkeys([*parts_of(manifest, task, exact=exact), *manifest.tasks[task].files.values()])
    return list(paths)


def write_subset(
    reader: Reader,
    tasks: Sequence[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path | str:
    """Write an archive of some tasks, each file checked against its hash; whole or not at all.

    What they are made of is in it too. With all tasks it is the same archive, byte for byte.
    """
    manifest = reader.manifest
    tasks = chain_of(manifest, tasks)
    config = config_of(reader, tasks)
    kept = manifest if tuple(tasks) == tuple(manifest.tasks) else smaller(manifest, tasks, config)
    total, done = sum(record.size for record in kept.parts.values()), 0
    with open_sink(out, overwrite=overwrite) as sink:
        for path in kept.parts:
            size = kept.parts[path].size
            sink.put(path, [config] if path == CONFIG else reader.whole(path), size)
            done += size
            if progress is not None:
                progress(path, done, total)
        data = kept.to_bytes()
        sink.put(MANIFEST, [data], len(data))
        sink.commit()
        return sink.target


def config_of(reader: Reader, tasks: Sequence[str]) -> bytes:
    """`config.json` for these tasks; empty where the archive has none.

    It is the Hub's, and nothing needs it: what is no object in it stays as it is.
    """
    if CONFIG not in reader.manifest.parts:
        return b""
    data = reader.file(CONFIG)
    try:
        facts: Any = strict_json.loads(data, reader.where(CONFIG))
    except FormatError:
        return data
    if not isinstance(facts, dict) or tuple(tasks) == tuple(reader.manifest.tasks):
        return data
    return strict_json.dumps({**facts, "tasks": list(tasks)}, indent=1) + b"\n"


def smaller(manifest: Manifest, tasks: Sequence[str], config: bytes) -> Manifest:
    """The manifest of an archive of these tasks alone: no word of another one is left in it."""
    groups = [
        replace(group, tasks=tuple(t for t in group.tasks if t in tasks), recipe=_recipe_of_tasks(group.recipe, tasks))
        for group in manifest.groups
    ]
    return replace(
        manifest,
        tasks={task: manifest.tasks[task] for task in tasks},
        groups=tuple(group for group in groups if group.tasks),
        parts=with_config({path: manifest.parts[path] for path in paths_of(manifest, tasks)}, config),
        options=_options_of_tasks(manifest.options, tasks),
        writer=WRITER,
    )


def with_config(parts: Mapping[str, PartRecord], config: bytes) -> dict[str, PartRecord]:
    """Records of files, that of `config.json` among them, if there is one."""
    if not config:
        return {path: record for path, record in parts.items() if path != CONFIG}
    return {**parts, CONFIG: PartRecord(size=len(config), sha256=hashlib.sha256(config).hexdigest())}


_BY_TASK = ("lam", "exact")
"""Options that may name tasks: as keys, or in a list."""


def _recipe_of_tasks(recipe: Mapping[str, Any], tasks: Sequence[str]) -> Mapping[str, Any]:
    options = recipe.get("options")
    return {**recipe, "options": _options_of_tasks(options, tasks)} if isinstance(options, dict) else recipe


def _options_of_tasks(options: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    return {key: _of_tasks(key, value, tasks) for key, value in options.items()}


def _of_tasks(key: str, value: Any, tasks: Sequence[str]) -> Any:
    if key not in _BY_TASK:
        return value
    if isinstance(value, Mapping):
        return {task: each for task, each in value.items() if task in tasks}
    if isinstance(value, list):
        return [task for task in value if task in tasks]
    return value if value == "all" or value in tasks or not isinstance(value, str) else []
