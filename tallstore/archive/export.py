"""Write a task's model as a folder that stock loaders open: its weights and the files it was packed with."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from tallstore.checkpoints import TensorInfo
from tallstore.errors import OutputExistsError
from tallstore.format import safetensors
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.stores.staging import Staging, followed, refuse_existing, translated
from tallstore.tensors import as_bytes

WEIGHTS = "model.safetensors"
_WEIGHTS_BESIDE = {"open_clip_config.json": "open_clip_model.safetensors"}
"""What a library that has a name of its own for weights calls them, by its own configuration beside them."""


def export_folder(
    out: str | os.PathLike[str],
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    files: Mapping[str, Callable[[], bytes]],
    *,
    overwrite: bool,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write weights and files into a new folder; it appears whole or not at all. One tensor is in memory at a time.

    Args:
        out: the folder.
        tensors: every tensor to write.
        read: gives a tensor.
        files: name in the folder → what gives its bytes.
        overwrite: replace a model folder that is there.
        progress: called with a text, bytes done, bytes in all.
    """
    target = Path(out)
    check_folder(target, overwrite=overwrite)
    with translated(target):
        place = followed(target)
    # Largest elements first: every tensor then begins at a multiple of its element size.
    order = sorted(tensors, key=lambda name: -ITEM_BYTES[tensors[name].dtype])
    total = sum(tensors[name].numel * ITEM_BYTES[tensors[name].dtype] for name in order)
    with Staging(place) as staging:
        folder = staging.path("model")
        with translated(target):
            folder.mkdir()
            with (folder / weights_name(files)).open("xb") as weights:
                for piece in _pieces(order, tensors, read, progress, total):
                    weights.write(piece)
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


def _pieces(
    order: list[str],
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    progress: Callable[[str, int, int], None] | None,
    total: int,
) -> Iterator[memoryview | bytes]:
    yield safetensors.build([(n, tensors[n].dtype, tensors[n].shape) for n in order], {"format": "pt"}, align=8)
    done = 0
    for name in order:
        data = as_bytes(read(name)).data
        yield data
        done += len(data)
        if progress is not None:
            progress(name, done, total)


def _is_model(folder: Path) -> bool:
    """Whether a folder is plainly a model's and nothing more precious: weights at its top, no repository."""
    if not folder.is_dir() or (folder / ".git").exists():
        return False
    if folder.resolve() in {Path.home().resolve(), Path.cwd().resolve(), *Path.cwd().resolve().parents}:
        raise OutputExistsError(f"{folder}: is where you are, or above it; choose another name")
    return any((folder / name).is_file() for name in (WEIGHTS, *_WEIGHTS_BESIDE.values()))
