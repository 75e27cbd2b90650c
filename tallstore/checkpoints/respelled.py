"""A checkpoint under the names of another one: converted between files and memory as transformers converts.

`save_pretrained(…, save_original_format=False)`, a module, and what a trainer saves of one have the names that a model
has in memory, where experts are fused and towers lie elsewhere; published files have others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tallstore.checkpoints.base import Checkpoint
from tallstore.checkpoints.memory import MemoryCheckpoint
from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.errors import CheckpointError
from tallstore.names import Conversion, conversion_of, inner_model, short_names, unwrapped

__all__ = ["Respelled", "respelled", "same_share"]

_SAME = 0.99
"""Share of a checkpoint's parameters that have the other's names and shapes: from here on nothing is converted."""
Shapes = Mapping[str, tuple[int, ...]]


class Respelled(MemoryCheckpoint):
    """Another checkpoint's tensors under other names, most of them views of its files or memory."""

    def __init__(
        self, origin: Checkpoint, state: Mapping[str, Tensor], rebuild: Callable[[Checkpoint], Respelled]
    ) -> None:
        super().__init__(state, origin.where)
        self.origin = origin
        """The checkpoint as it was given."""
        self._rebuild = rebuild
        self.files, self.left_out, self.source = origin.files, origin.left_out, origin.source

    def fingerprint(self) -> str:
        return f"{list(self.tensors)} of {self.origin.fingerprint()}"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        self.origin.__reduce__()  # says so where other processes cannot see it
        return _again, (self._rebuild, self.origin)

    def close(self) -> None:
        self._state.clear()
        self.origin.close()


def _again(rebuild: Callable[[Checkpoint], Respelled], origin: Checkpoint) -> Respelled:
    return rebuild(origin)


class _ToFile:
    """To the names of files; picklable."""

    def __init__(self, config: Path | nn.Module) -> None:
        self.config = config

    def state(self, conversion: Conversion, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return conversion.to_file(state)

    def __call__(self, origin: Checkpoint) -> Respelled:
        conversion = _conversion(self.config)
        if conversion is None:
            raise CheckpointError(f"{origin.where}: the library that converts its names is not there")
        return Respelled(origin, self.state(conversion, _whole(origin)), self)


class _ToMemory(_ToFile):
    """To the names that a model has in memory."""

    def state(self, conversion: Conversion, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return conversion.to_memory(state)


def respelled(task: Checkpoint, like: Checkpoint | None, share_of: Callable[[Checkpoint], float]) -> Checkpoint:
    """A checkpoint under the names of another one, if that brings more of them together; else as it is.

    Args:
        task: the checkpoint.
        like: the other one, if it is at hand: its model or configuration may say how names are converted.
        share_of: the share of a checkpoint's parameters that find a counterpart in the other one.

    Raises:
        CheckpointError: the library's conversion cannot be undone; names tensors.
    """
    best, share = task, share_of(task)
    if share >= _SAME:
        return task
    reason = ""
    for config in _configs(task, like):
        for way in (_ToFile, _ToMemory):
            try:
                spelling = way(config)(task)
            except CheckpointError:
                raise
            except Exception as error:  # operations of the library fail in ways of their own
                reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0]
                continue
            if (now := share_of(spelling)) > share:
                best, share = spelling, now
        if best is not task:
            return best
    if reason and share < 0.5:
        lost = next(iter(task.tensors))
        raise CheckpointError(
            f"{task.where}: transformers cannot convert its tensors, such as {lost!r}, to the names of "
            f"{like.where if like is not None else 'the archive'} ({reason}): save it with save_pretrained"
        )
    return best


def same_share(task: Checkpoint, shapes: Shapes) -> float:
    """Share of a checkpoint's parameters whose names and shapes, wrappers aside, are among some."""
    theirs = {short: shapes[name] for name, short in short_names(shapes, unwrapped).items()}
    fits = same = 0
    for name, short in short_names(task.tensors, unwrapped).items():
        info = task.tensors[name]
        fits += info.numel
        same += info.numel if theirs.get(short, ())[1:] == info.shape[1:] and short in theirs else 0
    return same / fits if fits else 1.0


def _configs(*checkpoints: Checkpoint | None) -> Iterator[Path | nn.Module]:
    """What says how names are converted: a model, or the configuration of one."""
    for checkpoint in checkpoints:
        if checkpoint is None:
            continue
        if checkpoint.model is not None and conversion_of(inner_model(checkpoint.model)) is not None:
            yield inner_model(checkpoint.model)
        if "config.json" in checkpoint.files and find_spec("transformers") is not None:
            path = checkpoint.files["config.json"]
            if _conversion(path) is not None:
                yield path


def _conversion(config: Path | nn.Module) -> Conversion | None:
    if isinstance(config, nn.Module):
        return conversion_of(config)
    try:
        return _conversion_of_file(config.absolute(), config.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(8)
def _conversion_of_file(config: Path, changed: int) -> Conversion | None:  # noqa: ARG001 - a key
    """Of the model that a configuration describes, built without memory; None if the library has no such model.

    No code of the checkpoint's own is run: only classes of the library are looked up.
    """
    try:
        name = json.loads(config.read_bytes())["architectures"][0]
        import transformers

        kind = getattr(transformers, name)
        if not issubclass(kind, transformers.PreTrainedModel):
            return None
        with torch.device("meta"):
            return conversion_of(kind(kind.config_class.from_pretrained(config.parent)))
    except Exception:  # a configuration of another library, or of another version of this one
        return None


def _whole(origin: Checkpoint) -> dict[str, Tensor]:
    """All tensors, by names without wrappers: of files mapped, not read."""
    if isinstance(origin, SafetensorsCheckpoint):
        origin.map()
    state = {
        name: origin.whole(name)
        if isinstance(origin, MemoryCheckpoint)
        else origin.read(name, 0, info.numel).reshape(info.shape)
        for name, info in origin.tensors.items()
        if name not in origin.ties
    }
    state |= {name: state[first] for name, first in origin.ties.items()}
    short = short_names(origin.tensors, unwrapped)
    return {short[name]: state[name] for name in origin.tensors}
