"""Which weights files a model's folder has: their names, the names of their tensors, and their headers' metadata.

Most folders have one, `model.safetensors`, and nothing is recorded of it. A model of several components (a diffusion
pipeline, a sentence encoder with modules) has one in each component's folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tallstore.errors import FormatError
from tallstore.format import limits
from tallstore.format.names import check_path, check_paths, check_tensor_name

__all__ = ["ENDING", "METHOD", "PLAIN", "WeightsFile", "check_layout", "claimed", "index_name", "shard_name"]

ENDING = ".safetensors"
METHOD = "tallstore"
"""What `quant_method` says in the configuration of a thin folder."""
PLAIN: Mapping[str, str] = {"format": "pt"}
"""The metadata that files have of which none is recorded: what transformers asks for."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights in a model's folder."""

    path: str
    """In the folder; ends with `.safetensors`. Where it is too large it becomes shards and an index of that name."""
    prefix: str = ""
    """What the archive puts before the names of its tensors, `unet/` say; in the file they stand without."""
    metadata: Mapping[str, str] = field(default_factory=lambda: dict(PLAIN))
    """Of its header."""
    saved: str | None = None
    """The torch file that it was, where the model's own loader may know that one alone."""
    key: str = ""
    """The key that the weights are under in that file; nothing where they are its whole content."""

    @property
    def folder(self) -> str:
        """The folder that it lies in, with a slash behind it; nothing for the model's own."""
        return self.path[: self.path.rfind("/") + 1]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        out: dict[str, Any] = {"path": self.path}
        if self.prefix:
            out["prefix"] = self.prefix
        if self.metadata != PLAIN:
            out["metadata"] = dict(self.metadata)
        if self.saved is not None:
            out["saved"] = {"path": self.saved, "key": self.key}
        return out

    @classmethod
    def from_json(cls, value: Any, where: str) -> WeightsFile:
        """Parse and validate."""
        if not isinstance(value, dict):
            raise FormatError(f"{where}: not an object")
        metadata, prefix = value.get("metadata", dict(PLAIN)), value.get("prefix", "")
        if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
            raise FormatError(f"{where}: metadata is not a map of strings")
        if not isinstance(prefix, str) or (prefix and (check_tensor_name(prefix) != prefix or prefix[-1] != "/")):
            raise FormatError(f"{where}: prefix {prefix!r} does not end with a slash")
        path = check_path(value.get("path"))
        if not PurePosixPath(path).name.removesuffix(ENDING) or not path.endswith(ENDING):
            raise FormatError(f"{where}: {path!r} is no name of a {ENDING} file")
        saved = value.get("saved", {})
        if not isinstance(saved, dict) or not isinstance(saved.get("key", ""), str):
            raise FormatError(f"{where}: saved is not a path and a key")
        was = check_path(saved["path"]) if "path" in saved else None
        return cls(path=path, prefix=prefix, metadata=metadata, saved=was, key=saved.get("key", ""))


def check_layout(layout: Sequence[WeightsFile], files: Iterable[str], where: str) -> None:
    """Raise FormatError unless the files can lie beside each other and each prefix is of one of them."""
    if len(layout) > limits.WEIGHTS_FILES:
        raise FormatError(f"{where}: {len(layout)} weights files are over the cap of {limits.WEIGHTS_FILES}")
    if len({file.prefix for file in layout}) != len(layout):
        raise FormatError(f"{where}: two weights files have one prefix")
    given = list(files)
    check_paths([*given, *(file.path for file in layout), *(index_name(file.path) for file in layout)])
    check_paths([*given, *(file.saved or file.path for file in layout)])


def claimed(layout: Sequence[WeightsFile], names: Iterable[str], where: str) -> list[dict[str, str]]:
    """For each weights file, the name of each of its tensors in it → the tensor's name in the archive, in order.

    A tensor belongs to the file with the longest prefix that its name begins with.

    Raises:
        FormatError: a tensor belongs to no file, or is left without a name.
    """
    longest = sorted(range(len(layout)), key=lambda number: -len(layout[number].prefix))
    by_file: list[dict[str, str]] = [{} for _ in layout]
    for name in names:
        number = next((n for n in longest if name.startswith(layout[n].prefix)), None)
        if number is None or name == layout[number].prefix:
            raise FormatError(f"{where}: tensor {name!r} belongs to none of the model's weights files")
        by_file[number][name.removeprefix(layout[number].prefix)] = name
    return by_file


def index_name(path: str) -> str:
    """What the index of a file's shards is called. A variant's stands at the end, where stock loaders look for it."""
    folder, stem, variant = _pieces(path)
    return f"{folder}{stem}{ENDING}.index.{variant + '.' if variant else ''}json"


def shard_name(path: str, number: int, count: int) -> str:
    """What a file's shard is called, counted from 1."""
    return f"{path.removesuffix(ENDING)}-{number:05}-of-{count:05}{ENDING}"


def _pieces(path: str) -> tuple[str, str, str]:
    """Folder, stem and variant: `unet/`, `diffusion_pytorch_model`, `fp16`."""
    at = path.rfind("/") + 1
    stem, _, variant = path[at:].removesuffix(ENDING).rpartition(".")
    return path[:at], stem or variant, variant if stem else ""
