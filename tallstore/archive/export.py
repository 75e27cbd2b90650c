"""Write a task's model as a folder that stock loaders open: its weights and the files it was packed with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tallstore.checkpoints import TensorInfo
from tallstore.errors import OutputExistsError
from tallstore.format import safetensors, strict_json
from tallstore.format.adapter import WEIGHTS as ADAPTER
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.layout import PLAIN, WeightsFile, claimed, index_name, shard_name
from tallstore.humanize import parse_size
from tallstore.stores.staging import Staging, followed, refuse_existing, translated
from tallstore.tensors import as_bytes

WEIGHTS = "model.safetensors"
_WEIGHTS_BESIDE = {"open_clip_config.json": "open_clip_model.safetensors"}
"""What a library that has a name of its own for weights calls them, by its own configuration beside them."""
_MARKERS = ("model_index.json", "modules.json")
"""What says of a folder that it is a model of several components."""
FORMS = ("safetensors", "torch")
"""What weights can be written as."""
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
    layout: Sequence[WeightsFile] = (),
    form: str = FORMS[0],
    durable: bool = True,
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
        layout: the folder's weights files; one, under its library's name, by default.
        form: one of FORMS. Files of torch are not cut into shards, and a file's tensors are in memory together.
        durable: wait for the disk.
    """
    target = Path(out)
    most = parse_size(max_shard_size, "max_shard_size")
    check_folder(target, overwrite=overwrite, layout=layout)
    with translated(target):
        place = followed(target)
    layout = tuple(layout) or (WeightsFile(path=weights_name(files)),)
    held = claimed(layout, tensors, str(target))
    done = _Done(sum(_bytes(info) for info in tensors.values()), progress)
    with Staging(place) as staging:
        folder = staging.path("model")
        with translated(target):
            folder.mkdir()
            for file, names in zip(layout, held, strict=True):
                if form == "torch":
                    _write_torch(folder, file, names, read, done)
                else:
                    _write_safetensors(folder, file, names, tensors, read, done, most)
        for name, data in files.items():
            content = data()
            with translated(target):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        staging.publish("model", overwrite=True, durable=durable)
    return target


def _write_safetensors(
    folder: Path,
    file: WeightsFile,
    names: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    done: _Done,
    most: int,
) -> None:
    """Write one weights file, or shards of it and their index. `names`: in the file → in the archive."""
    own = {name: tensors[held] for name, held in names.items()}
    shards = _shards(own, most, file.path)
    for path, held in shards.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("xb") as weights:
            for piece in _pieces(held, own, lambda name: read(names[name]), done, file.metadata):
                weights.write(piece)
    if len(shards) > 1:
        (folder / index_name(file.path)).write_bytes(_index(shards, sum(map(_bytes, own.values()))))


def _write_torch(
    folder: Path, file: WeightsFile, names: Mapping[str, str], read: Callable[[str], Tensor], done: _Done
) -> None:
    """Write one weights file as torch.save does, under the name and the key that it had, if these are known."""
    state = {}
    for name, held in names.items():
        state[name] = read(held)
        done.add(name, state[name].nbytes)
    path = folder / (file.saved or torch_name(file.path))
    path.parent.mkdir(parents=True, exist_ok=True)
    content: Mapping[str, Any] = state
    for key in reversed(file.key.split(".") if file.key else ()):
        content = {key: content}
    torch.save(content, path)


def torch_name(path: str) -> str:
    """What a safetensors file is called as one of torch's, where the same library finds it."""
    folder, _, name = path.rpartition("/")
    for safe, pickled in (("model.", "pytorch_model."), ("open_clip_model.", "open_clip_pytorch_model.")):
        if name.startswith(safe):
            name = f"{pickled}{name.removeprefix(safe)}"
    return f"{folder}/{name}".lstrip("/").removesuffix(".safetensors") + ".bin"


def weights_name(files: Iterable[str]) -> str:
    """What the weights are called beside a model's small files, so that its own library finds them."""
    there = set(files)
    return next((name for beside, name in _WEIGHTS_BESIDE.items() if beside in there), WEIGHTS)


def check_folder(out: str | os.PathLike[str], *, overwrite: bool, layout: Sequence[WeightsFile] = ()) -> None:
    """Raise OutputExistsError if a model cannot be put there: before the work, not after it."""
    target = Path(out)
    with translated(target):
        if not (target.is_dir() and not any(target.iterdir())):
            refuse_existing(target, overwrite=overwrite, ours=_is_model(target, layout), what="a folder with a model")


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
    files = [called] if count == 1 else [shard_name(called, n, count) for n in range(1, count + 1)]
    ordered = [sorted(names, key=lambda name: -ITEM_BYTES[tensors[name].dtype]) for names in shards]
    return dict(zip(files, ordered, strict=True))


def _index(shards: Mapping[str, Sequence[str]], total: int) -> bytes:
    table = {name: file.rpartition("/")[2] for file, names in shards.items() for name in names}
    return strict_json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}, indent=2)


def _pieces(
    order: Sequence[str],
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    done: _Done,
    metadata: Mapping[str, str] = PLAIN,
) -> Iterator[memoryview | bytes]:
    yield safetensors.build([(n, tensors[n].dtype, tensors[n].shape) for n in order], metadata, align=8)
    for name in order:
        data = as_bytes(read(name)).data
        yield data
        done.add(name, len(data))


def _is_model(folder: Path, layout: Sequence[WeightsFile]) -> bool:
    """Whether a folder is plainly a model's and nothing more precious: weights at its top, no repository."""
    if not folder.is_dir() or (folder / ".git").exists():
        return False
    if folder.resolve() in {Path.home().resolve(), Path.cwd().resolve(), *Path.cwd().resolve().parents}:
        raise OutputExistsError(f"{folder}: is where you are, or above it; choose another name")
    names = [WEIGHTS, ADAPTER, *_WEIGHTS_BESIDE.values(), *(file.path for file in layout)]
    names += [*map(index_name, names), *(torch_name(name) for name in names), *(file.saved or "" for file in layout)]
    return any((folder / name).is_file() for name in (*names, *_MARKERS))
