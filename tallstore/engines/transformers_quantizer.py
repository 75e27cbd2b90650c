"""transformers' quantizer `tallstore`: a thin folder's task, decoded when its own loader asks for the weights.

The loader has found the folder's pointer where it looks for weights. Before it opens that, a quantizer is told which
files will be read: there the task is decoded into a temporary safetensors file, which takes the pointer's place in the
list. All that follows is transformers' own and as for any checkpoint: names that it converts, types, ties, heads,
shards of a parallel plan, device maps and offloading. The model that comes of it is a plain one: nothing of the
quantizer stays with it, and it is trained and saved as any other.

What reads archives is imported when a thin folder is loaded, and not by every process that uses transformers.
"""

from __future__ import annotations

import re
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tallstore.errors import CheckpointError, NoSuchTaskError
from tallstore.format.layout import METHOD

if TYPE_CHECKING:
    from tallstore.archive import Archive

__all__ = ["ArchiveConfig", "ArchiveQuantizer"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ONE_FILE = 1 << 62
"""Bytes of a shard: disk offload reads from the first file alone where there is no index."""


class ArchiveConfig(QuantizationConfigMixin):
    """What a thin folder's configuration says: which archive, and which of its tasks."""

    dequantize = True
    """The model is a plain one: transformers takes the configuration off it once it is loaded."""

    def __init__(self, archive: str, task: str, *, exact: bool = False, base: str | None = None, **_: Any) -> None:
        if not isinstance(archive, str) or not isinstance(task, str) or not isinstance(base, str | None):
            raise CheckpointError("a thin folder's config.json names no archive and task: export it anew")
        self.quant_method: Any = METHOD
        self.archive, self.task, self.exact, self.base = archive, task, bool(exact), base


class ArchiveQuantizer(HfQuantizer):
    """Gives transformers' loader a task's weights in place of the pointer that it found."""

    requires_calibration = False

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:  # noqa: ARG002 - as of any checkpoint
        return dtype

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
    ) -> Any:
        if not checkpoint_files:
            raise CheckpointError("a thin folder is loaded by its name: without config=… and state_dict=… alone")
        from tallstore.hub.resolve import open_named
        from tallstore.stores import Access

        said: Any = self.quantization_config
        scratch = tempfile.TemporaryDirectory(prefix="tallstore-")
        weakref.finalize(model, scratch.cleanup)  # offloaded weights are read from it as long as the model lives
        place = _place(Path(checkpoint_files[0]).parent, said.archive)
        with open_named(place.archive, Access(cache_dir=place.cache), revision=place.commit, base=said.base) as zoo:
            checkpoint_files[:] = [str(_decoded(zoo, said, Path(scratch.name) / "decoded"))]
        return model

    @property
    def is_trainable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return True


def _decoded(zoo: Archive, said: ArchiveConfig, folder: Path) -> Path:
    """A file with the task's weights."""
    from tallstore.format.manifest import names_of

    if said.task not in zoo.tasks:
        raise NoSuchTaskError(f"{zoo.url}: no task {said.task!r}; there are {names_of(zoo.tasks)}")
    merged = zoo.manifest.tasks[said.task].adapter is not None
    zoo.export(said.task, folder, exact=said.exact, merged=merged, max_shard_size=_ONE_FILE, durable=False)
    return next(folder.glob("*.safetensors"))


class _Found(NamedTuple):
    """An archive as it is opened."""

    archive: str
    commit: str | None = None
    cache: Path | None = None


def _place(folder: Path, archive: str) -> _Found:
    """Where the archive is that a folder names by its address or by a path.

    A folder of the Hub's cache holds what was fetched and no more: from there the path leads to the repository, at the
    commit that the folder is of.
    """
    from tallstore.stores import is_address

    if is_address(archive) or Path(archive).is_absolute():
        return _Found(archive)
    place = Path(*folder.absolute().parts)
    for part in Path(archive).parts:
        place = place.parent if part == ".." else place / part
    snapshots = place.parent
    if snapshots.name == "snapshots" and _COMMIT.fullmatch(place.name) and snapshots.parent.name.startswith("models--"):
        name = snapshots.parent.name.removeprefix("models--").replace("--", "/", 1)
        return _Found(f"hf://{name}", place.name, snapshots.parents[1])
    return _Found(str(place))


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:  # loaded twice by different names, say
    register_quantization_config(METHOD)(ArchiveConfig)
    register_quantizer(METHOD)(ArchiveQuantizer)
