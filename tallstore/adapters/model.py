"""The model that an adapter makes of its base: its tensors by name, each the base's or one that is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tallstore.adapters.config import AdapterConfig
from tallstore.adapters.merge import AdapterDelta, changes
from tallstore.adapters.places import find_places
from tallstore.adapters.tensors import sorted_tensors
from tallstore.adapters.trainers import TRAINERS, converted
from tallstore.adapters.untying import check_untied
from tallstore.tensors import NAME

__all__ = ["Facts", "MergedModel", "merged_model"]

Facts = tuple[str, tuple[int, ...]]
"""Type (the format's name) and shape of a tensor."""


@dataclass(frozen=True)
class MergedModel:
    """Which tensors the merged model has."""

    changes: Mapping[str, AdapterDelta]
    """What is not the base's: by the base's name, or the model's where the base has no such tensor."""
    sources: Mapping[str, str]
    """The model's tensors → the base's, or the change, that each is."""


def merged_model(
    own: Mapping[str, Facts],
    base: Mapping[str, Facts],
    read: Callable[[str], Tensor],
    read_base: Callable[[str], Tensor],
    *,
    config: AdapterConfig | None,
    config_of: Callable[[str], Mapping[str, Any] | None],
    ties: Mapping[str, str],
    where: str,
    trainer: str | None = None,
    metadata: Mapping[str, str] = {},
) -> MergedModel:
    """What an adapter makes of a base. Nothing is computed before a tensor is asked for.

    Args:
        own: the adapter's tensors.
        base: the base's.
        read: gives one of the adapter's.
        read_base: gives one of the base's.
        config: the adapter's configuration.
        config_of: gives a configuration file of the base's, `config.json` say, as JSON, if there is one.
        ties: base tensors that share the memory of another one → that one.
        where: how messages name the adapter.
        trainer: whose file it is, if not PEFT's; its tensors are then read at once.
        metadata: of that file.

    Raises:
        OptionError: the adapter cannot be merged; says how to use it.
        WrongBaseError: a tensor that it changes is not in the base.
    """
    if trainer in TRAINERS:
        state, config = converted(str(trainer), {name: read(name) for name in own}, base, config_of, metadata, where)
        own = {name: (NAME[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}
        read = state.__getitem__
    tensors = sorted_tensors(own)
    places = find_places(
        tensors, {name: shape for name, (_, shape) in own.items()}, {name: shape for name, (_, shape) in base.items()}
    )
    check_untied(tensors, config, places, config_of("config.json"), where)
    dtypes = {name: dtype for name, (dtype, _) in base.items()}
    deltas = changes(tensors, config, places, own, dtypes, read, read_base, where, ties)
    # With a head of the model's own beside them, the base's tensors need the model's names too.
    beside = any(name not in base for name in deltas)
    names = dict.fromkeys([*base, *deltas])
    return MergedModel(deltas, {places.model_name(n) if beside and n in base else n: n for n in names})
