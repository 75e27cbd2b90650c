"""Adapters that would untie an input embedding from an output head which the base's files do not hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tallstore.adapters.config import AdapterConfig
from tallstore.adapters.places import AdapterPlaces
from tallstore.adapters.tensors import AdapterTensors
from tallstore.adapters.tying import is_embedding
from tallstore.errors import OptionError

__all__ = ["check_untied"]

_HEADLESS = re.compile(
    r"(?:(?<!LMHead)(?<!Heads)Model|For(?:\w*Classification|\w*QuestionAnswering|MultipleChoice))$", re.ASCII
)
"""Architectures of transformers that have no output head over the vocabulary."""


def check_untied(
    tensors: AdapterTensors,
    config: AdapterConfig | None,
    places: AdapterPlaces,
    model: Mapping[str, Any] | None,
    where: str,
) -> None:
    """Raise OptionError for an adapter that unties an input embedding from a head that is not in the base's files.

    Args:
        tensors: the adapter's.
        config: its configuration; nothing is untied without one.
        places: where its tensors go in the base.
        model: the base's `config.json`; None if there is none, and the head is then taken to be tied.
        where: how messages name the adapter.
    """
    if config is None:
        return
    if _has_no_tied_head(model):
        for weight, embedding in places.tied.items():
            if not is_embedding(weight.removesuffix(".weight")):
                raise OptionError(
                    f"{where}: cannot be merged: it changes {weight!r}, which the base's files do not hold, and the "
                    f"base's configuration does not tie it to {embedding!r}"
                )
        return
    if any(name.endswith("head.weight") and places.of(name) is None for name in tensors.replaced):
        return  # the adapter comes with the head
    for name in tensors.replaced:
        there, module = places.of(name), name.removesuffix(".weight")
        if there is None or not is_embedding(module) or not _saved(config, module):
            continue
        shape = places.base[there]
        beside = any(other != there and own_shape == shape for other, own_shape in places.base.items())
        if len(shape) == 2 and not beside:
            raise OptionError(
                f"{where}: cannot be merged: modules_to_save unties {there!r} from the output head, which the base's "
                "files do not hold: write its folder (zoo.export, tallstore extract) and load that with PEFT, or save "
                "the base with config.tie_word_embeddings=False"
            )


def _saved(config: AdapterConfig, module: str) -> bool:
    """Whether PEFT trains a copy of a module; embeddings that it saves for their new size alone stay tied."""
    listed = config.facts.get("modules_to_save")
    return isinstance(listed, list) and any(isinstance(each, str) and each and module.endswith(each) for each in listed)


def _has_no_tied_head(model: Mapping[str, Any] | None) -> bool:
    if model is None:
        return False
    text = model.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    if model.get("tie_word_embeddings", inner) is False:
        return True
    classes = model.get("architectures")
    named = isinstance(classes, list) and classes and all(isinstance(each, str) for each in classes)
    return bool(named and not model.get("is_encoder_decoder") and all(_HEADLESS.search(each) for each in classes or ()))
