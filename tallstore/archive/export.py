"""Write a task's model as a folder that stock loaders open: its weights and the files it was packed with."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tallstore.checkpoints import TensorInfo
from tallstore.errors import OutputExistsError
from tallstore.format import safetensors, strict_json
from tallstore.format.adapter import WEIGHTS as ADAPTER
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.stores.staging import Staging, followed, refuse_existing, translated
from tallstore.tensors import as_bytes
from tallstore.words import parse_size

WEIGHTS = "model.safetensors"
_WEIGHTS_BESIDE = {"open_clip_config.json": "open_clip_model.safetensors"}
"""What a library that has a name of its own for weights calls them, by its own configuration beside them."""
INDEX = ".index.json"
"""What is added to that name for the index of several files."""
SHARD = "5GB"
"""What the Hub likes files to have at most."""


def export_folder(
    out: str | os.PathLike[str],
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    files: Mapping[str, Callable[[], bytes]],
    *,
    overwrite: bool,
    progress: Callable[[str, int, int], None] | None = None,
    max_shard_size: int | str = SHARD,
    weights: str | None = None,
) -> Path:
    """Write weights and files into a new folder; it appears whole or not at all. One tensor is in memory at a time.

    Weights that are larger than a shard may be become several files and an index, as transformers writes them.

    Args:
        out: the folder.
        tensors: every tensor to write.
        read: gives a tensor.
        files: name in the folder → what gives its bytes.
        overwrite: replace a model folder that is there.
        progress: called with a text, bytes done, bytes in all.
        max_shard_size: bytes of tensors in a file, unless one alone has more.
        weights: what the weights are called; by default as the files beside them have it.
    """
    target = Path(out)
    most = parse_size(max_shard_size, "max_shard_size")
    check_folder(target, overwrite=overwrite)
    with translated(target):
        place = followed(target)
    called = weights or weights_name(files)
    shards = _shards(tensors, most, called)
    done = _Done(sum(_bytes(info) for info in tensors.values()), progress)
    with Staging(place) as staging:
        folder = staging.path("model")
        with translated(target):
            folder.mkdir()
            for file, names in shards.items():
                with (folder / file).open("xb") as stream:
                    for piece in _pieces(names, tensors, read, done):
                        stream.write(piece)
            if len(shards) > 1:
                (folder / f"{called}{INDEX}").write_bytes(_index(shards, done.total))
        for name, data in files.items():
            content = data()
            with translated(target):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        staging.publish("model", overwrite=True)
    return target


def weights_name(files: Collection[str]) -> str:
    """What the weights are called beside a model's small files, so that its own library finds them."""
    return next((name for beside, name in _WEIGHTS_BESIDE.items() if beside in files), WEIGHTS)


def check_folder(out: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise OutputExistsError if a model cannot be put there: before the work, not after it."""
    target = Path(out)
    with translated(target):
        if not (target.is_dir() and not any(target.iterdir())):
            refuse_existing(target, overwrite=overwrite, ours=_is_model(target), what="a folder with a model")


@dataclass
class _Done:
    """How much is written."""

    total: int
    progress: Callable[[str, int, int], None] | None
    bytes: int = 0

    def add(self, name: str, count: int) -> None:
        self.bytes += count
        if self.progress is not None:
            self.progress(name, self.bytes, self.total)


def _bytes(info: TensorInfo) -> int:
    return info.numel * ITEM_BYTES[info.dtype]


def _shards(tensors: Mapping[str, TensorInfo], most: int, called: str) -> dict[str, list[str]]:
    """File → its tensors: in the checkpoint's order from file to file; within one, largest elements first.

    Every tensor then begins at a multiple of its element size.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in tensors.items():
        if shards[-1] and size + _bytes(info) > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(info)
    count = len(shards)
    stem, ending = called.split(".")
    files = [called] if count == 1 else [f"{stem}-{n:05}-of-{count:05}.{ending}" for n in range(1, count + 1)]
    ordered = [sorted(names, key=lambda name: -ITEM_BYTES[tensors[name].dtype]) for names in shards]
    return dict(zip(files, ordered, strict=True))


def _index(shards: Mapping[str, Sequence[str]], total: int) -> bytes:
    table = {name: file for file, names in shards.items() for name in names}
    return strict_json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}, indent=2)


def _pieces(
    order: Sequence[str], tensors: Mapping[str, TensorInfo], read: Callable[[str], Tensor], done: _Done
) -> Iterator[memoryview | bytes]:
    yield safetensors.build([(n, tensors[n].dtype, tensors[n].shape) for n in order], {"format": "pt"}, align=8)
    for name in order:
        data = as_bytes(read(name)).data
        yield data
        done.add(name, len(data))


def _is_model(folder: Path) -> bool:
    """Whether a folder is plainly a model's and nothing more precious: weights at its top, no repository."""
    if not folder.is_dir() or (folder / ".git").exists():
        return False
    if folder.resolve() in {Path.home().resolve(), Path.cwd().resolve(), *Path.cwd().resolve().parents}:
        raise OutputExistsError(f"{folder}: is where you are, or above it; choose another name")
    names = (WEIGHTS, ADAPTER, *_WEIGHTS_BESIDE.values())
    return any((folder / name).is_file() or (folder / f"{name}{INDEX}").is_file() for name in names)
