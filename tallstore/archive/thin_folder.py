"""A thin folder: a task's small files, and in the place of its weights a pointer to the archive that has them.

transformers loads it as any model once tallstore is imported: `config.json` names the quantizer that decodes the task.
Without tallstore every loader of weights fails at the pointer, which is no safetensors file; none goes on without them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tallstore.archive.archive import Archive
from tallstore.archive.export import WEIGHTS, check_folder
from tallstore.errors import OptionError
from tallstore.format.layout import METHOD
from tallstore.stores import is_address
from tallstore.stores.staging import Staging, followed, translated
from tallstore.tensors import TORCH

__all__ = ["CONFIG", "export_thin", "thin_files", "why_not_thin"]

CONFIG = "config.json"
_QUANTIZED = "quantization_config"
_POINTER = """\
This is no safetensors file: it stands for the weights of one task of a tallstore archive, which config.json names.
`pip install tallstore`, and `import tallstore` before transformers loads this folder; or write the weights out with
`tallstore extract`.
"""
"""Read as a safetensors file its first eight bytes are a header of 2 exabytes, which every reader refuses."""


def why_not_thin(zoo: Archive, task: str) -> str | None:
    """Why no thin folder can stand for a task; None where one can."""
    record = zoo.manifest.tasks[task]
    if record.adapter is None and len(zoo.components(task)) > 1:
        return "its weights lie in several components"
    config = _config(zoo, task)
    if config is None:
        return f"it holds no {CONFIG} of a model of transformers"
    if _QUANTIZED in config:
        return f"its {CONFIG} names a quantization of its own"
    return None


def thin_files(
    zoo: Archive, task: str, archive: str, *, exact: bool = False, base: str | None = None
) -> dict[str, bytes]:
    """The two files that make a folder thin: a configuration that names the archive, and the pointer.

    Args:
        zoo: the archive.
        task: its name.
        archive: an address, an absolute path, or a path as seen from the folder.
        exact: bit for bit the original, for tasks that were packed so.
        base: where the base is, if the archive only references it.

    Raises:
        OptionError: no thin folder can stand for this task; says why.
    """
    why = why_not_thin(zoo, task)
    if why is not None:
        raise OptionError(f"{zoo.url}: task {task!r}: no thin folder can stand for it: {why}; extract its weights")
    config = _config(zoo, task) or {}
    config.pop("transformers_weights", None)  # names a file that is not in the folder
    if not config.get("dtype") and not config.get("torch_dtype"):
        config["dtype"] = _dtype(zoo, task)  # which loaders would else ask the weights for
    said: dict[str, Any] = {"quant_method": METHOD, "archive": archive, "task": task}
    if exact:
        said["exact"] = True
    if base is not None:
        said["base"] = base
    config[_QUANTIZED] = said
    return {CONFIG: json.dumps(config, indent=2).encode() + b"\n", WEIGHTS: _POINTER.encode()}


def export_thin(
    zoo: Archive,
    task: str,
    out: str | os.PathLike[str],
    *,
    exact: bool = False,
    base: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a thin folder; it appears whole or not at all. Reads the task's small files and no weights.

    It names the archive by its address, by its absolute path, or, where the folder lies below the archive's own folder,
    by the path between them, so that the two can be moved together.
    """
    target = Path(out)
    check_folder(target, overwrite=overwrite)
    given = None if base is None else os.fspath(base)
    if given is not None and not is_address(given):
        given = str(Path(given).resolve())
    files = thin_files(zoo, task, _seen_from(target, zoo.url), exact=exact, base=given)
    with translated(target):
        place = followed(target)
    with Staging(place) as staging:
        folder = staging.path("model")
        with translated(target):
            folder.mkdir()
        zoo.write_files(task, folder, merged=True)
        with translated(target):
            for name, data in files.items():
                (folder / name).write_bytes(data)
        staging.publish("model", overwrite=True)
    return target


def _seen_from(folder: Path, url: str) -> str:
    if is_address(url):
        return url
    archive, place = Path(url).resolve(), folder.resolve()
    below = place.is_relative_to(archive.parent)
    return Path(os.path.relpath(archive, place)).as_posix() if below else str(archive)


def _config(zoo: Archive, task: str) -> dict[str, Any] | None:
    """The task's configuration, if it is one of transformers' models. Parsed as transformers does."""
    data = zoo.small_file(task, CONFIG)
    try:
        config = None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) and config.get("architectures") else None


def _dtype(zoo: Archive, task: str) -> str:
    """The type of its first tensor of floating point, as torch calls it."""
    for facts in zoo.tensors(task).values():
        if TORCH[facts.dtype].is_floating_point:
            return str(TORCH[facts.dtype]).removeprefix("torch.")
    return "float32"
