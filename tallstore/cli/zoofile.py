"""What to pack, from the command line's words or from a zoo file.

base: minilm/
tasks:
  trec: runs/trec
  mr: runs/mr
output: zoo.tall
options:
  recipe: fit
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tallstore.errors import CheckpointError, InputError, OptionError, TaskNameError

SUFFIXES = (".yaml", ".yml", ".toml")
_KEYS = ("base", "tasks", "output", "options")


@dataclass(frozen=True)
class Job:
    """A base, tasks by name, perhaps an output and options."""

    base: str
    tasks: Mapping[str, str]
    output: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def from_words(words: Sequence[str]) -> Job:
    """BASE then NAME=CHECKPOINT, or a checkpoint (named after its folder), or a folder full of them."""
    base, *rest = words
    if not rest and base.endswith(SUFFIXES):
        return from_file(Path(base))
    tasks = tasks_from_words(rest, Path(base))
    if not tasks:
        raise InputError(
            f"no task was given beside the base {base!r}: add NAME=FOLDER, or a folder of fine-tuned models"
        )
    return Job(base, tasks)


def tasks_from_words(words: Sequence[str], base: Path | None = None) -> dict[str, str]:
    """NAME=CHECKPOINT, or a checkpoint (named after its folder), or a folder full of them; not the base itself."""
    tasks: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if equals and not path:
            raise InputError(f"{word!r} names no checkpoint; expected NAME=FOLDER")
        sources = {name: path} if equals else _found_in(Path(word), base)
        for each, source in sources.items():
            if each in tasks:
                raise TaskNameError(f"task {each!r} is given twice: {tasks[each]} and {source}")
            tasks[each] = source
    return tasks


def from_file(path: Path) -> Job:
    """Read a zoo file; paths in it are relative to it."""
    from tallstore.stores import is_address

    try:
        text = path.read_text(encoding="utf-8")
        facts = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _OnceLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a zoo file ({' '.join(str(error).split())})") from error
    if (
        not isinstance(facts, dict)
        or not isinstance(facts.get("base"), str)
        or not isinstance(facts.get("tasks"), dict)
    ):
        raise InputError(f"{path}: not a zoo file: it needs `base` and `tasks` (name: folder)")
    if odd := sorted(set(facts) - set(_KEYS)):
        raise OptionError(f"{path}: no such key: {', '.join(map(str, odd))}; there are {', '.join(_KEYS)}")
    tasks = facts["tasks"]
    if bad := next((n for n, s in tasks.items() if not isinstance(n, str) or not isinstance(s, str)), None):
        raise InputError(f"{path}: task {bad!r}: expected a name and a folder (quote numbers)")
    options = facts.get("options") or {}
    output = facts.get("output")
    if not isinstance(options, dict) or not isinstance(output, str | None):
        raise InputError(f"{path}: `options` must be a map and `output` a path")
    return Job(
        _beside(path, facts["base"]),
        {name: _beside(path, source) for name, source in tasks.items()},
        output if output is None or is_address(output) else os.fspath(path.parent / output),
        options,
    )


class _OnceLoader(yaml.SafeLoader):
    """YAML's safe loader, which lets the last of two equal keys win silently; here two are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if doubled := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{doubled!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _beside(zoo_file: Path, source: str) -> str:
    """A source relative to the zoo file, if there is such a thing; else as it is (a Hub id, perhaps)."""
    path = zoo_file.parent / source
    try:
        return os.fspath(path) if path.exists() else source
    except OSError:  # it is there, perhaps; who opens it says why it cannot be read
        return os.fspath(path)


def _found_in(path: Path, base: Path | None) -> dict[str, str]:
    try:
        return _named_by_folder(path, base)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read ({error.strerror})") from error


def _named_by_folder(path: Path, base: Path | None) -> dict[str, str]:
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder or file; name a task as NAME={path} if it is a Hub id")
    if path.is_file():
        return {path.stem: os.fspath(path)}
    if _is_model(path):
        return {} if _same(path, base) else {path.resolve().name: os.fspath(path)}
    tasks = {
        child.name: os.fspath(child)
        for child in sorted(path.iterdir())
        if child.is_dir() and not child.name.startswith(".") and _is_model(child) and not _same(child, base)
    }
    if not tasks:
        tasks = _reasons(path, base)
    return tasks


def _is_model(folder: Path) -> bool:
    from tallstore.checkpoints.folder import is_model_folder  # torch is wanted from here on

    return is_model_folder(folder)


def _reasons(path: Path, base: Path | None) -> dict[str, str]:
    """Folders that are no model at first sight, and may hold one: whoever opens them says what they are instead."""
    inside = [child for child in sorted(path.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    inside = [child for child in inside if any(p.is_file() for p in child.rglob("*")) and not _same(child, base)]
    earlier = [child for child in inside if child.name.startswith(("checkpoint-", "global_step"))]
    if not inside:
        raise CheckpointError(f"{path}: neither a fine-tuned model nor a folder of them")
    return {path.resolve().name: os.fspath(path)} if earlier else {child.name: os.fspath(child) for child in inside}


def _same(left: Path, right: Path | None) -> bool:
    return right is not None and right.exists() and left.samefile(right)
