"""From what a user names to a checkpoint."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tallstore.checkpoints.adapters import (
    adapter_folder,
    adapter_of_model,
    is_peft_model,
    marked,
    with_config,
)
from tallstore.checkpoints.base import Checkpoint, Source, TensorInfo
from tallstore.checkpoints.companions import find_companions
from tallstore.checkpoints.folder import Component, Survey, has_weights, kind_of, survey
from tallstore.checkpoints.joined import JoinedCheckpoint
from tallstore.checkpoints.memory import MemoryCheckpoint
from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.checkpoints.torch_files import is_torch_file, open_torch
from tallstore.checkpoints.weight_sets import ALL, choose_by_prefix
from tallstore.checkpoints.weights_files import PICKLES, SAFE, check_shards_there, read_index
from tallstore.errors import CheckpointError
from tallstore.format.layout import PLAIN, WeightsFile
from tallstore.stores import is_address
from tallstore.tensors import as_bytes

_HUB_ID = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_DEFAULTS = {"model.safetensors": None, "open_clip_model.safetensors": "open_clip_config.json"}
"""Weights files of which nothing is recorded, and the configuration that gives them their name."""
_ONCE_MORE = "the model's weights once more"
_OTHER_VALUES = "weights of the model's names and shapes, and of other values: give it as a task of its own"
_COMPARED, _BEGINNING = 8, 1 << 12
_AGAIN = 0.5
"""Share of tensors that weights must have in common with the model's to be those once more."""


_Open = Callable[[Sequence[Path], str, str | None], Checkpoint]
"""Opens weights files: where they lie, how messages name them, and which set is asked for."""


def open_checkpoint(
    source: Source,
    where: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    weights: str | None = None,
) -> Checkpoint:
    """Open a checkpoint for reading.

    Args:
        source: a folder with weights as transformers, diffusers, sentence-transformers, timm or open_clip write them,
            its components below it, or with an adapter as PEFT writes it; a safetensors file, one of torch.save by
            whatever name, an index of shards; a Hub id, a state dict, or a module. A checkpoint that is open already is
            given back.
        where: how messages name it.
        storage_options: for fsspec's file systems, where the source is an address on one.
        weights: which weights, where there are several sets in a file (`ema`) or variants in a folder (`fp16`).

    Raises:
        CheckpointError: it is missing, unreadable, ambiguous, not whole, or of no known kind.
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
        return marked(choose_by_prefix(MemoryCheckpoint(source, where or "state dict"), weights))
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"{where or 'source'}: a {type(source).__name__} is no checkpoint: give a folder or a file, a state "
            "dict or a module; of a pipeline save the whole (save_pretrained), or give one of its components"
        )
    try:
        if is_address(source) and not os.fspath(source).startswith("hf://"):
            checkpoint = marked(_open_far(os.fspath(source), storage_options, weights))
        else:
            checkpoint = marked(_open_path(source, weights))
    except OSError as error:
        raise CheckpointError(f"{os.fspath(source)}: cannot be read ({error.strerror})") from error
    if weights not in (None, ALL) and not checkpoint.chosen:
        checkpoint.close()
        there = ", ".join(checkpoint.sets) or "one set alone"
        raise CheckpointError(f"{os.fspath(source)}: holds no weights {weights!r}; there is {there}")
    return checkpoint


@contextmanager
def opened_checkpoint(
    source: Source,
    where: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    weights: str | None = None,
) -> Iterator[Checkpoint]:
    """A checkpoint that is closed afterwards, unless it is the caller's own.

    Args:
        source: see `open_checkpoint`.
        where: how messages name a source that is no path.
        storage_options: see `open_checkpoint`.
        weights: see `open_checkpoint`.
    """
    named = None if isinstance(source, str | os.PathLike) else where
    checkpoint = open_checkpoint(source, named, storage_options, weights=weights)
    try:
        yield checkpoint
    finally:
        if checkpoint is not source:
            checkpoint.close()


def _open_path(source: str | os.PathLike[str], weights: str | None) -> Checkpoint:
    path = Path(source)
    if not path.exists():
        text = os.fspath(source)
        if (match := _HUB_ID.fullmatch(text)) and (text.startswith("hf://") or not path.parent.exists()):
            from tallstore.checkpoints.hub import download

            folder, facts = download(match[1], match[2])
            checkpoint = _open_folder(folder, weights)
            checkpoint.where, checkpoint.source = text, facts
            return checkpoint
        raise CheckpointError(f"{path}: no such folder or file")
    return _open_folder(path, weights) if path.is_dir() else _open_file(path, weights)


def _open_far(url: str, options: Mapping[str, Any] | None, weights: str | None) -> Checkpoint:
    """A file of safetensors at an address, or a folder, read as one here is."""
    from tallstore.checkpoints.mirror import Mirror
    from tallstore.checkpoints.remote import FarCheckpoint

    if url.split("?", maxsplit=1)[0].endswith(SAFE):
        return choose_by_prefix(FarCheckpoint(url, options), weights)
    mirror = Mirror(url, options)
    try:
        checkpoint = _open_folder(mirror.root, weights, mirror.open)
    except BaseException as error:
        mirror.folder.cleanup()
        if isinstance(error, CheckpointError):
            raise CheckpointError(mirror.told(str(error))) from error
        raise
    weakref.finalize(checkpoint, mirror.folder.cleanup)
    checkpoint.where = mirror.where
    told = {mirror.told(name): mirror.told(why) for name, why in checkpoint.left_out.items()}
    checkpoint.left_out = {**told, **mirror.left_out}
    return checkpoint


def _open_file(path: Path, weights: str | None) -> Checkpoint:
    if path.name.endswith(".json") and ".index" in path.name:
        return choose_by_prefix(_open_shards(path, str(path.parent), weights), weights)
    if path.suffix == SAFE:
        checkpoint = SafetensorsCheckpoint([path], str(path))
        if checkpoint.metadata not in ({}, PLAIN):
            checkpoint.layout = (WeightsFile(path="model.safetensors", metadata=checkpoint.metadata),)
        return choose_by_prefix(checkpoint, weights)
    if path.suffix in PICKLES or is_torch_file(path):
        return open_torch([path], str(path), weights)
    if path.suffix.lower() == ".gguf":
        raise CheckpointError(
            f"{path}: a GGUF file, of which no loader of fine-tunes takes tensors back: pack the checkpoint that it "
            f"was made from, or what transformers' from_pretrained(folder, gguf_file={path.name!r}).save_pretrained(…) "
            "makes of it"
        )
    raise CheckpointError(
        f"{path}: not a checkpoint: expected a .safetensors file, one that torch.save wrote, or a folder"
    )


def _open_files(paths: Sequence[Path], where: str, weights: str | None) -> Checkpoint:
    if all(path.suffix == SAFE for path in paths):
        return SafetensorsCheckpoint(paths, where)
    return open_torch(paths, where, weights)


def _open_shards(index: Path, where: str, weights: str | None, open_files: _Open = _open_files) -> Checkpoint:
    """The shards that an index names, each of its tensors among them."""
    table, shards = read_index(index)
    check_shards_there(shards, index)
    checkpoint = open_files(shards, where, weights)
    checkpoint.layout = ()
    if lost := next((name for name in table if name not in checkpoint.tensors), None):
        raise CheckpointError(f"{index}: names tensor {lost!r}, which no shard holds")
    return checkpoint


def _open_folder(folder: Path, weights: str | None, open_files: _Open = _open_files) -> Checkpoint:
    """A model's folder: its components' tensors, each under its component's prefix, and the files that travel."""
    if adapter := _adapter_in(folder):
        return _open_adapter(adapter, folder, open_files)
    seen = survey(folder, weights)
    opened: dict[Component, Checkpoint] = {}
    try:
        for component in seen.components:
            _open_component(component, seen, opened, weights, open_files)
        alone = len(opened) == 1
        parts = {"" if alone else each.prefix: part for each, part in opened.items()}
        layout = tuple(_layout(each, part, alone=alone) for each, part in opened.items())
        checkpoint = next(iter(parts.values())) if alone else JoinedCheckpoint.with_prefixes(str(folder), parts)
        for part in parts.values() if not alone else ():
            checkpoint.left_out = {**checkpoint.left_out, **part.left_out}
            checkpoint.sets = (*checkpoint.sets, *part.sets)
        variant = any(component.asked for component in opened)
        checkpoint = choose_by_prefix(checkpoint, None if variant else weights) if alone else checkpoint
        checkpoint.chosen = checkpoint.chosen or variant or any(part.chosen for part in parts.values())
    except BaseException:
        for part in opened.values():
            part.close()
        raise
    checkpoint.where = str(folder)
    checkpoint.files, left = find_companions(seen.root, seen.others)
    checkpoint.left_out = {**checkpoint.left_out, **seen.left_out, **left}
    checkpoint.layout = () if _is_default(layout, checkpoint.files) else layout
    return checkpoint


def _adapter_in(folder: Path) -> Path | None:
    """The weights of an adapter's folder; None of a model's, beside which an adapter may lie."""
    return None if has_weights(folder) else adapter_folder(folder)


def _open_adapter(weights: Path, folder: Path, open_files: _Open) -> Checkpoint:
    checkpoint = open_files([weights], str(weights), None)
    checkpoint.where, checkpoint.layout = str(folder), ()
    others = [path for path in weights.parent.rglob("*") if path.is_file() and path != weights]
    checkpoint.files, checkpoint.left_out = find_companions(
        weights.parent, sorted(path.relative_to(weights.parent).as_posix() for path in others)
    )
    return with_config(checkpoint, weights.parent)


def _open_component(
    component: Component, seen: Survey, opened: dict[Component, Checkpoint], weights: str | None, open_files: _Open
) -> None:
    """Open a component; one that no list names, only if its weights are not the model's once more."""
    files = component.weights
    try:
        if files.index is not None:
            part = _open_shards(files.index, str(files.index.parent), weights, open_files)
        else:
            where = files.files[0].parent if files.safe else files.files[0]
            part = open_files(files.files, str(where), weights)
    except CheckpointError as error:
        if component.listed or not opened:
            raise
        seen.left_out |= {f"{component.folder}{path.name}": f"not read: {error}" for path in files.used}
        return
    kind = "" if component.extra else kind_of(seen.root / component.folder)
    again = next(
        (
            other
            for each, other in opened.items()
            if _is_again(other.tensors, part.tensors) and kind in {"", kind_of(seen.root / each.folder)}
        ),
        None,
    )
    if component.listed or again is None:
        opened[component] = part
        return
    why = _ONCE_MORE if _is_equal(again, part) else _OTHER_VALUES
    part.close()
    seen.left_out |= {f"{component.folder}{path.name}": why for path in files.used}


def _is_equal(main: Checkpoint, other: Checkpoint) -> bool:
    """Whether the beginnings of the largest common tensors are equal."""
    common = [name for name, info in other.tensors.items() if main.tensors.get(name) == info]
    common.sort(key=lambda name: -other.tensors[name].numel)
    ends = {name: min(_BEGINNING, other.tensors[name].numel) for name in common[:_COMPARED]}
    pairs = ((as_bytes(main.read(n, 0, end)), as_bytes(other.read(n, 0, end))) for n, end in ends.items())
    return all(one.tobytes() == two.tobytes() for one, two in pairs)


def _is_again(main: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo]) -> bool:
    common = sum(name in main and main[name].shape == info.shape for name, info in other.items())
    return common >= _AGAIN * len(other)


def _layout(component: Component, part: Checkpoint, *, alone: bool) -> WeightsFile:
    files = component.weights
    metadata = getattr(part, "metadata", {})
    known = files.safe or files.stem
    name = files.called if known or not component.extra else f"{files.files[0].stem}{SAFE}"
    out = WeightsFile(
        path=f"{component.folder}{name}",
        prefix="" if alone else component.prefix,
        metadata=dict(metadata) or dict(PLAIN),
    )
    if not known:
        key = part.layout[0].key if part.layout else ""
        out = replace(out, saved=f"{component.folder}{files.files[0].name}", key=key)
    return out


def _is_default(layout: tuple[WeightsFile, ...], files: Mapping[str, Path]) -> bool:
    """Whether a folder is written so in any case, because nothing is recorded of it."""
    (first, *others) = layout
    beside = _DEFAULTS.get(first.path, "")
    clip = "open_clip_config.json" in files
    named = (beside is None and not clip) or (bool(beside) and beside in files)
    return not others and named and first == WeightsFile(path=first.path)
