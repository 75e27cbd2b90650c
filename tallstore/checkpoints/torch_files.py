"""Files that torch.save wrote, known by their bytes; and which of what they hold are weights.

A pickle never runs code here: `torch.load` reads them with `weights_only`.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tallstore.checkpoints.base import Checkpoint
from tallstore.checkpoints.memory import MemoryCheckpoint
from tallstore.checkpoints.nested import left_out, sets_of, tree_of
from tallstore.checkpoints.weight_sets import ALL, MAIN, choose_by_prefix, named_set
from tallstore.errors import CheckpointError, FormatError
from tallstore.format.layout import WeightsFile
from tallstore.format.names import check_path

__all__ = ["is_torch_file", "open_torch"]

_GLOBAL = re.compile(r"GLOBAL (\S+)")
_LEGACY = (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02")
"""How torch's format before 1.6 begins: a pickle of protocol 2, usually of a number of its own."""
_SHARDED = re.compile(r"torch\.distributed\S*|\S*(ShardedTensor|DTensor)\S*")


def is_torch_file(path: Path) -> bool:
    """Whether a file is one that torch.save wrote, by its bytes."""
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(_LEGACY):
        return True
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return path.suffix in {".bin", ".pt", ".pth", ".ckpt"}  # damaged, and to be said so


def open_torch(paths: Sequence[Path], where: str, weights: str | None = None) -> Checkpoint:
    """Weights of one file, or of several that hold some tensors each.

    Args:
        paths: the files.
        where: how messages name them.
        weights: which set, where there are several; the main one if none is named.

    Raises:
        CheckpointError: a file cannot be read without running what it holds, holds no weights, or several sets of
            which none is the main one.
    """
    named = _load(paths, where, weights)
    checkpoint: Checkpoint = choose_by_prefix(named, None if named.chosen else weights)
    checkpoint.chosen = checkpoint.chosen or named.chosen
    return checkpoint


def _load(paths: Sequence[Path], where: str, weights: str | None = None) -> MemoryCheckpoint:
    state: dict[str, Any] = {}
    left: dict[str, str] = {}
    sets: list[str] = []
    chosen, key = False, ""
    for path in paths:
        content = _unpickle(path)
        try:
            tree = tree_of(content)
            named_sets = sets_of(tree, None if weights == ALL else weights)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        key = _choose(named_sets, weights, str(path))
        chosen = chosen or key == weights or (weights not in (None, ALL) and weights in key.split("."))
        tensors, rest = _split(named_sets[key] if named_sets else content)
        if doubled := next((name for name in tensors if name in state), None):
            raise CheckpointError(
                f"{path}: tensor {doubled!r} is in another of these files too: shards of a tensor-parallel save hold "
                "parts of tensors; merge them with the tool that saved them"
            )
        state |= tensors
        sets += [name for name in named_sets if name not in (key, *sets)]
        left |= dict.fromkeys((f"{path.name}: {name}" for name in rest), "no tensor")
        left |= {f"{path.name}: {name}": why for name, why in left_out(tree, list(named_sets), key).items()}
    out = MemoryCheckpoint(state, where, (partial(_load, weights=weights), paths))
    out.left_out, out.sets, out.chosen = left, tuple(sets), chosen
    if key:
        out.layout = (WeightsFile(path="model.safetensors", saved=_saved_as(paths[0]), key=key),)
    return out


def _saved_as(path: Path) -> str:
    """What such a file is called when it is written again: what it was, where an archive can hold that name."""
    try:
        return check_path(path.name)
    except FormatError:
        return f"pytorch_model{path.suffix}"


def _unpickle(path: Path) -> Mapping[Any, Any]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_classes()):
            warnings.simplefilter("ignore")  # what torch remarks on old and foreign pickles is nothing to act on
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:
                state = torch.load(path, map_location="cpu", weights_only=True)  # torch's format before 1.6: no mapping
    except Exception as error:  # a damaged pickle fails in whichever way its bytes happen to
        why = _why(error)
        if "TorchScript" in why:
            raise CheckpointError(
                f"{path}: a TorchScript program and no checkpoint: save its weights, "
                "torch.save(torch.jit.load(file).state_dict(), …), and give those"
            ) from error
        if _SHARDED.search(why):
            raise CheckpointError(
                f"{path}: holds parts of tensors, as a sharded training saves them ({why}): save it whole, with "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict and full_state_dict=True"
            ) from error
        raise CheckpointError(
            f"{path}: cannot be read as tensors alone ({why}); save the model's state_dict(), best as safetensors"
        ) from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state


def _plain_classes() -> list[Any]:
    """What training scripts keep beside weights, and what makes nothing but values when it is unpickled."""
    import argparse

    import numpy as np

    kinds = [np.float64, np.float32, np.int64, np.int32, np.bool_]
    scalar = np.float64(0).__reduce__()[0]
    return [argparse.Namespace, scalar, np.dtype, *{type(np.dtype(kind)) for kind in kinds}]


def _choose(sets: Mapping[str, object], weights: str | None, where: str) -> str:
    """The set that is asked for, else the main one, else the only one."""
    if weights not in (None, ALL) and any(weights in {name, *name.split(".")} for name in sets):
        return named_set(sets, str(weights), where)
    if len(sets) <= 1 or "" in sets:
        return next(iter(sets), "")
    for word in MAIN:
        if matching := [name for name in sets if word in name.split(".")]:
            return matching[0]
    names = list(sets)
    raise CheckpointError(
        f"{where}: holds several sets of weights, {', '.join(names)}: "
        f"say which with weights={names[0]!r} (--weights {names[0]})"
    )


def _split(content: Mapping[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
    """Tensors, and names of what is none. Where there is no tensor at all, everything, to be refused by name."""
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        return dict(content), []
    return tensors, [str(name) for name in content if name not in tensors]


def _why(error: Exception) -> str:
    """One line of what torch says; not its advice, which is to run whatever the file holds."""
    text = str(error).strip()
    if match := _GLOBAL.search(text):
        return f"it refers to {match[1]}, which is no tensor"
    return text.splitlines()[0] if text else type(error).__name__
