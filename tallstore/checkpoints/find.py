"""From what a user names to a checkpoint: which files of a folder hold the weights, and which travel with them."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tallstore.checkpoints.adapters import (
    adapter_folder,
    adapter_of_model,
    is_adapter_file,
    is_peft_model,
    marked,
    with_config,
)
from tallstore.checkpoints.base import Checkpoint, Source
from tallstore.checkpoints.memory import MemoryCheckpoint
from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.errors import CheckpointError, FormatError
from tallstore.format import limits
from tallstore.format.names import check_path, folded
from tallstore.stores import is_address

_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_WEIGHTS = _PICKLES | {".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".npz", ".tflite"}
_COMPANIONS = {".json", ".jsonl", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".yaml", ".yml", ".spm", ".bpe"}
_TRAINING = {"trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "all_results.json"}
_HUB_ID = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_NESTED = ("state_dict", "model", "model_state_dict", "module")
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_FOLDER_ORDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Which weights are taken where there are several: as transformers chooses."""
_OTHER_FORMS = re.compile(r"((diffusion_)?pytorch_model|(tf_|flax_|rust_)?model|open_clip_(pytorch_)?model)\b[^/]*")
"""Names under which a folder holds the same weights once more, in another form."""
_EARLIER = re.compile(r"(.*/)?checkpoint-[^/]+/.*")
"""What a trainer saved on the way."""


def open_checkpoint(
    source: Source, where: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Open a checkpoint for reading.

    Args:
        source: a folder with weights as transformers, timm or open_clip write them (one file, or shards with an
            index) or with an adapter as PEFT writes it, a `.safetensors`, `.bin`, `.pt`, `.pth` or `.ckpt` file, a Hub
            id, a state dict, or a module. A checkpoint that is open already is given back.
        where: how messages name it.
        storage_options: for fsspec's file systems, where the source is an address on one.

    Raises:
        CheckpointError: it is missing, unreadable, ambiguous, or of no known kind.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, nn.Module):
        if is_peft_model(source):
            return adapter_of_model(source, where or type(source).__name__)
        state = MemoryCheckpoint(source.state_dict(), where or type(source).__name__)
        state.model = source
        return state
    if isinstance(source, Mapping):
        return marked(MemoryCheckpoint(source, where or "state dict"))
    if is_address(source) and not os.fspath(source).startswith("hf://"):
        from tallstore.checkpoints.far import FarCheckpoint

        return marked(FarCheckpoint(os.fspath(source), storage_options))
    try:
        return marked(_open_path(source))
    except OSError as error:
        raise CheckpointError(f"{os.fspath(source)}: cannot be read ({error.strerror})") from error


@contextmanager
def opened_checkpoint(
    source: Source, where: str, storage_options: Mapping[str, Any] | None = None
) -> Iterator[Checkpoint]:
    """A checkpoint that is closed afterwards, unless it is the caller's own.

    Args:
        source: see `open_checkpoint`.
        where: how messages name a source that is no path.
        storage_options: see `open_checkpoint`.
    """
    found = open_checkpoint(source, None if isinstance(source, str | os.PathLike) else where, storage_options)
    try:
        yield found
    finally:
        if found is not source:
            found.close()


def _open_path(source: str | os.PathLike[str]) -> Checkpoint:
    path = Path(source)
    if not path.exists():
        text = os.fspath(source)
        if (match := _HUB_ID.fullmatch(text)) and (text.startswith("hf://") or not path.parent.exists()):
            from tallstore.checkpoints.hub import download

            folder, facts = download(match[1], match[2])
            found = _open_folder(folder)
            found.where, found.source = text, facts
            return found
        raise CheckpointError(f"{path}: no such folder or file")
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        return SafetensorsCheckpoint([path], str(path))
    if path.suffix in _PICKLES:
        return _open_pickles([path], str(path))
    if path.name.endswith(".index.json"):
        return _open_index(path)
    raise CheckpointError(
        f"{path}: not a checkpoint: a .safetensors, .bin, .pt, .pth or .ckpt file, or a folder, is due"
    )


def _open_folder(folder: Path) -> Checkpoint:
    weights = _weights(folder)
    found = _open_file(weights)
    found.where = str(folder)
    used = {weights, *(_shards(weights)[1] if weights.name.endswith(".index.json") else ())}
    found.files, found.left_out = find_companions(weights.parent, used)
    return with_config(found, weights.parent) if is_adapter_file(weights) else found


def _weights(folder: Path) -> Path:
    for name in _FOLDER_ORDER:
        if (folder / name).is_file():
            return folder / name
    if adapter := adapter_folder(folder):
        return adapter
    for endings in ({".safetensors"}, _PICKLES):
        files = sorted(p for p in folder.iterdir() if p.suffix in endings and p.name not in _TRAINING)
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(p.name for p in files[:5])
            raise CheckpointError(f"{folder}: which of {names} is meant? Name the file, or add an index")
    inside = next((c.name for c in sorted(folder.iterdir()) if c.is_dir() and any(c.glob("*.safetensors"))), None)
    hint = f"; its folder {inside!r} does: name that, and remember that the base comes first" if inside else ""
    raise CheckpointError(f"{folder}: holds no checkpoint (no .safetensors, .bin, .pt or .pth file){hint}")


def _shards(index: Path) -> tuple[Mapping[str, str], list[Path]]:
    """An index's table, tensor → file, and the files."""
    try:
        table = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(table.values()))
        if not all(check_path(name) == name for name in names):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FormatError) as error:
        raise CheckpointError(f"{index}: not an index of shards") from error
    return table, [index.parent / name for name in names]


def _open_index(index: Path) -> Checkpoint:
    table, shards = _shards(index)
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{shard}: missing, and {index.name} names it")
    found: Checkpoint
    if all(shard.suffix == ".safetensors" for shard in shards):
        found = SafetensorsCheckpoint(shards, str(index.parent))
    else:
        found = _open_pickles(shards, str(index.parent))
    if lost := next((name for name in table if name not in found.tensors), None):
        raise CheckpointError(f"{index}: names tensor {lost!r}, which no shard holds")
    return found


def _open_pickles(paths: Sequence[Path], where: str) -> MemoryCheckpoint:
    state: dict[str, Any] = {}
    for path in paths:
        state |= _unpickle(path)
    return MemoryCheckpoint(state, where, (_open_pickles, paths))


def _unpickle(path: Path) -> dict[str, Tensor]:
    """`torch.load` with `weights_only`: a pickle never runs code here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch remarks on old and foreign pickles is nothing to act on
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:
                state = torch.load(path, map_location="cpu", weights_only=True)  # torch's format before 1.6: no mapping
    except Exception as error:  # a damaged pickle fails in whichever way its bytes happen to
        raise CheckpointError(
            f"{path}: cannot be read as tensors alone ({_why(error)}); "
            "save the model's state_dict(), best as safetensors"
        ) from error
    for key in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return dict(state)


def _why(error: Exception) -> str:
    """One line of what torch says; not its advice, which is to run whatever the file holds."""
    text = str(error).strip()
    if found := _GLOBAL.search(text):
        return f"it refers to {found[1]}, which is no tensor"
    return text.splitlines()[0] if text else type(error).__name__


def is_companion(name: str) -> bool:
    """Whether a file may be one that travels with a model, by its name."""
    return Path(name).suffix in _COMPANIONS and not any(piece.startswith(".") for piece in name.split("/"))


def find_companions(folder: Path, used: Set[Path] = frozenset()) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Files beside the weights that are `used`: which to take along, and which are left out."""
    taken: dict[str, Path] = {}
    left: list[str] = []
    seen: set[str] = set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(piece.startswith(".") for piece in name.split("/")):
            continue
        weights = path.suffix in _WEIGHTS or name.endswith(".index.json")
        if path in used or path.name in _TRAINING or _EARLIER.fullmatch(name):
            continue
        if (weights and _OTHER_FORMS.fullmatch(name)) or (not weights and _is_model(folder, path)):
            continue
        if not weights and _wanted(name, path) and _is_free(name, seen):
            taken[name] = path
        else:
            left.append(name)
    return taken, tuple(left)


def _is_free(name: str, seen: set[str]) -> bool:
    """Whether a name is neither a file nor a folder already, on a file system that ignores letter case. Notes it."""
    pieces = folded(name).split("/")
    folders = ["/".join(pieces[:n]) for n in range(1, len(pieces))]
    if "/".join(pieces) in seen or f"{folded(name)}/" in seen or any(folder in seen for folder in folders):
        return False
    seen.update(["/".join(pieces), *(f"{folder}/" for folder in folders)])
    return True


def _is_model(folder: Path, path: Path) -> bool:
    """Whether a file lies in a folder with weights of its own."""
    return any(
        parent != folder and any(p.suffix in _WEIGHTS for p in parent.iterdir())
        for parent in path.parents
        if folder in parent.parents
    )


def _wanted(name: str, path: Path) -> bool:
    try:
        check_path(f"tasks/{'x' * limits.TASK_NAME_LENGTH}/files/{name}")
    except FormatError:
        return False
    return path.suffix in _COMPANIONS and path.stat().st_size <= limits.FILE_BYTES and name.lower() != "readme.md"
