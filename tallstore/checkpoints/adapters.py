"""Adapters as checkpoints: PEFT's folders, PEFT's models in memory, and state dicts that hold an adapter's tensors."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

from torch import nn

from tallstore.adapters import AdapterConfig, recognised, trainer_of
from tallstore.checkpoints.base import AdapterFacts, Checkpoint
from tallstore.checkpoints.memory import MemoryCheckpoint
from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.errors import CheckpointError, FormatError, MissingExtraError
from tallstore.format.adapter import CONFIG, WEIGHTS
from tallstore.format.layout import PLAIN, WeightsFile

__all__ = ["adapter_folder", "adapter_of_model", "is_adapter_file", "is_peft_model", "marked", "with_config"]

_WEIGHTS = (WEIGHTS, "adapter_model.bin")


def adapter_folder(folder: Path) -> Path | None:
    """The weights of an adapter's folder, or of the one adapter that lies in a folder of its own below; else None.

    Raises CheckpointError where several adapters lie below.
    """
    if weights := _weights(folder):
        return weights
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and (path / CONFIG).is_file()]
    inside = [weights for path in below if (weights := _weights(path))]
    if len(inside) > 1:
        names = ", ".join(path.parent.name for path in inside[:5])
        raise CheckpointError(f"{folder}: holds the adapters {names}: name the folder of the one that is meant")
    return inside[0] if inside else None


def is_adapter_file(path: Path) -> bool:
    """Whether a file holds an adapter's weights, by its name."""
    return path.name in _WEIGHTS


def _weights(folder: Path) -> Path | None:
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)


def with_config(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """An adapter's checkpoint, with what its folder's configuration says."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder}: an adapter without its {CONFIG}, which says what it is: save it with PEFT")
    try:
        config = AdapterConfig.parse(path.read_bytes(), str(path))
        checkpoint.adapter = AdapterFacts(config.type, config)
    except FormatError as error:
        raise CheckpointError(str(error)) from error
    return checkpoint


def is_peft_model(model: nn.Module) -> bool:
    """Whether a module is one of PEFT's."""
    return hasattr(model, "peft_config") and hasattr(model, "active_adapter") and hasattr(model, "get_base_model")


def adapter_of_model(model: Any, where: str) -> Checkpoint:
    """The active adapter of a PEFT model in memory, as PEFT would save it."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(f'{where}: a PEFT model needs PEFT: pip install "tallstore[peft]"') from error
    name = model.active_adapter
    if not isinstance(name, str):
        raise CheckpointError(f"{where}: several adapters are active: make the one that is meant active, alone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which embeddings are saved too
        checkpoint = MemoryCheckpoint(peft.get_peft_model_state_dict(model, adapter_name=name), where)
    folder = tempfile.TemporaryDirectory(prefix="tallstore-")
    weakref.finalize(checkpoint, folder.cleanup)
    model.peft_config[name].save_pretrained(folder.name)
    path = Path(folder.name) / CONFIG
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**facts, "inference_mode": True}, indent=2, sort_keys=True), encoding="utf-8")
    with_config(checkpoint, Path(folder.name))
    checkpoint.files = {CONFIG: path}
    return checkpoint


def marked(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of any kind; as an adapter, where its tensors are plainly one's."""
    if checkpoint.adapter is not None:
        return checkpoint
    if (trainer := trainer_of(checkpoint.tensors)) is not None:
        checkpoint.adapter = AdapterFacts(trainer)
        if not checkpoint.layout or checkpoint.layout[0].path == "model.safetensors":
            metadata = checkpoint.metadata if isinstance(checkpoint, SafetensorsCheckpoint) else {}
            checkpoint.layout = (
                WeightsFile(path=_called(Path(checkpoint.where).name), metadata=dict(metadata) or dict(PLAIN)),
            )
    elif (kind := recognised(checkpoint.tensors)) is not None:
        checkpoint.adapter = AdapterFacts(kind)
    return checkpoint


def _called(name: str) -> str:
    """What a trainer's weights are called; the name that diffusers looks for, where they have none of their own."""
    return (
        name if re.fullmatch(r"[\w][\w. -]{0,150}\.safetensors", name, re.ASCII) else "pytorch_lora_weights.safetensors"
    )
