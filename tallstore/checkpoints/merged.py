"""An adapter's checkpoint and its base's as the one model that they make."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from tallstore.adapters import merged_model
from tallstore.checkpoints.base import Checkpoint
from tallstore.errors import CheckpointError, FormatError
from tallstore.format import strict_json

__all__ = ["merged_state"]


def merged_state(base: Checkpoint, adapter: Checkpoint) -> dict[str, Tensor]:
    """The model's state dict: the base's tensors, with what the adapter changes merged in.

    Raises:
        OptionError: the adapter cannot be merged; says how to use it.
        MissingExtraError: it is of a kind that PEFT itself must merge, and PEFT is missing.
    """
    assert adapter.adapter is not None
    read = partial(_whole, base)
    model = merged_model(
        {name: (info.dtype, info.shape) for name, info in adapter.tensors.items()},
        {name: (info.dtype, info.shape) for name, info in base.tensors.items()},
        partial(_whole, adapter),
        read,
        config=adapter.adapter.config,
        config_of=partial(_json_of, base),
        ties=base.ties,
        where=adapter.where,
        trainer=adapter.adapter.type,
        metadata=adapter.layout[0].metadata if adapter.layout else {},
    )
    made = {
        source: model.changes[source].make() if source in model.changes else read(source)
        for source in model.sources.values()
    }
    shared = {name: made[first] for name, first in base.ties.items() if not {name, first} & set(model.changes)}
    return {name: (made | shared)[source] for name, source in model.sources.items()}


def _whole(checkpoint: Checkpoint, name: str) -> Tensor:
    info = checkpoint.tensors[name]
    return checkpoint.read(name, 0, info.numel).reshape(info.shape)


def _json_of(base: Checkpoint, name: str) -> dict[str, Any] | None:
    path = base.files.get(name)
    if path is None:
        return None
    try:
        content = strict_json.loads(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except FormatError as error:
        raise CheckpointError(str(error)) from error
    return content if isinstance(content, dict) else None
