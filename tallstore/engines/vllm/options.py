"""What vLLM is started with to serve a task: a folder of the task's small files, and the options that name the archive.

vLLM reads configuration and tokenizer itself, before any plug-in: from a folder, then, which is made of the archive. It
lies in the user's cache under a name that follows from its content, so that any number of engines share it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from tallstore.engines.worker_catalogue import ArchiveSource, Catalogue
from tallstore.errors import OptionError
from tallstore.stores import is_address
from tallstore.stores.staging import Staging, translated

__all__ = ["PLUGIN", "WORKER", "allowed_plugins", "engine_options"]

WORKER = "tallstore.engines.vllm.worker.TaskWorker"
"""What each worker of the engine is given besides, so that tasks can be swapped."""
PLUGIN = "tallstore"
"""The name of our entry points."""
_FORMAT = "tallstore"
_GROUPS = ("vllm.general_plugins", "vllm.io_processor_plugins", "vllm.platform_plugins", "vllm.stat_logger_plugins")


def engine_options(source: str | os.PathLike[str], task: str, **how: Any) -> dict[str, Any]:
    """The options of vLLM's `LLM` or `AsyncEngineArgs` that serve a task: `LLM(**engine_options("zoo.tall", "trec"))`.

    Args:
        source: the archive: a path, an address (`hf://user/zoo@v1`), a repository's id.
        task: its name.
        **how: `base`, `exact`, `revision`, `cache_dir`, `local_files_only`, as for `tallstore.open`.

    Returns:
        `model` (a folder with the task's configuration and tokenizer), `load_format`, `model_loader_extra_config`, and
        `worker_extension_cls`, which makes tasks exchangeable.

    Raises:
        NoSuchTaskError: with the tasks that there are.
        CheckpointError: the task is no model that an engine could load.
    """
    place = os.fspath(source)
    if not is_address(place) and Path(place).exists():
        place = str(Path(place).resolve())
    try:
        asked = ArchiveSource(archive=place, **how)
    except TypeError as error:
        raise OptionError(f"engine_options: {error}") from None
    catalogue = Catalogue(asked)
    try:
        if task in catalogue.tasks:
            catalogue.config(task)
        else:
            catalogue.check(task)
        folder = _folder(catalogue, task)
    finally:
        catalogue.close()
    return {
        "model": str(folder),
        "load_format": _FORMAT,
        "model_loader_extra_config": {"task": task, **asked.to_json()},
        "worker_extension_cls": WORKER,
    }


def allowed_plugins() -> str:
    """What `VLLM_PLUGINS` has to be for our route to be there, and every other plug-in as before."""
    given = os.environ.get("VLLM_PLUGINS")
    if given is not None:
        return ",".join(dict.fromkeys([*given.split(","), PLUGIN]))
    names = [each.name for group in _GROUPS for each in entry_points(group=group)]
    return ",".join(dict.fromkeys([*names, PLUGIN]))


def _folder(catalogue: Catalogue, task: str) -> Path:
    """The folder of a task's small files, made now or before."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tallstore" / "served"
    with translated(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tallstore-") as scratch:
        names = sorted(catalogue.write_files(task, Path(scratch)))
        digest = hashlib.sha256()
        contents = {name: (Path(scratch) / name).read_bytes() for name in names}
    for name, data in contents.items():
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    target = cache / f"{task}-{digest.hexdigest()[:24]}"
    if _holds(target, contents):
        return target
    with Staging(target) as staging:
        folder = staging.path("folder")
        with translated(target):
            folder.mkdir()
            for name, data in contents.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        staging.publish("folder", overwrite=True)
    return target


def _holds(folder: Path, contents: dict[str, bytes]) -> bool:
    """Whether a folder is there and has these files as they are."""
    try:
        return all((folder / name).read_bytes() == data for name, data in contents.items())
    except OSError:
        return False
