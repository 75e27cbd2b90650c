"""Input embeddings and output heads that are one memory, and what adapters do to them.

A model with `tie_word_embeddings` has one memory for both, and its files hold the embedding alone. Of a module that
PEFT changes in place, whichever of the two it is, the merged model has both changed. But a module in `modules_to_save`
is a copy: the merged model has that as its embedding and the base's embedding as its head. What the head is called,
only the model's class knows; a state dict without it would be tied again when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tallstore.adapters.config import AdapterConfig
from tallstore.adapters.tensors import TOKENS, AdapterTensors
from tallstore.errors import OptionError

if TYPE_CHECKING:
    from tallstore.adapters.places import Places

__all__ = ["check_untied", "tied_to"]

Shape = tuple[int, ...]

_EMBEDDING = re.compile(r"(?:^|\.)(?:\w*embed\w*|wte|shared)$")
_NOT_OF_TOKENS = re.compile(r"position|type|patch")
_HEAD = re.compile(r"(?:^|\.)(?:\w*head|embed_out|output|output_layer|proj_out|decoder)$")
_HEADLESS = re.compile(
    r"(?:(?<!LMHead)(?<!Heads)Model|For(?:\w*Classification|\w*QuestionAnswering|MultipleChoice))$", re.ASCII
)
"""Architectures of transformers that have no output head over the vocabulary."""


def tied_to(module: str, own: Mapping[str, Shape], base: Mapping[str, Shape]) -> str | None:
    """The base's embedding that a module is tied to which the base has no weight of; None if it is not plainly tied.

    Args:
        module: its name in the model.
        own: shapes of the adapter's parameters of it.
        base: the base's tensors.
    """
    inner = module.removesuffix(".base_layer")
    if not (_HEAD.search(inner) or _is_embedding(inner)):
        return None
    fits = [
        name
        for name, shape in base.items()
        if len(shape) == 2 and _is_embedding(name.removesuffix(".weight")) and _has_shape(own, shape)
    ]
    return fits[0] if len(fits) == 1 else None


def _has_shape(own: Mapping[str, Shape], shape: Shape) -> bool:
    """Whether an adapter's parameters are plainly of a module whose weight has this shape."""
    if any(name.endswith(TOKENS) for name in own):
        return all(own[name][1:] == shape[1:] for name in own if name.endswith(TOKENS))
    for first, second in (("lora_B.weight", "lora_A.weight"), ("lora_embedding_A", "lora_embedding_B")):
        if first in own and second in own:
            rows, columns = own[first], own[second]
            return shape == ((rows[0], columns[-1]) if first == "lora_B.weight" else (rows[-1], columns[0]))
    return False


def check_untied(
    tensors: AdapterTensors,
    config: AdapterConfig | None,
    places: Places,
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
            if not _is_embedding(weight.removesuffix(".weight")):
                raise OptionError(
                    f"{where}: cannot be merged: it changes {weight!r}, which the base's files do not hold, and the "
                    f"base's configuration does not tie it to {embedding!r}"
                )
        return
    if any(name.endswith("head.weight") and places.of(name) is None for name in tensors.replaced):
        return  # the adapter comes with the head
    for name in tensors.replaced:
        there, module = places.of(name), name.removesuffix(".weight")
        if there is None or not _is_embedding(module) or not _saved(config, module):
            continue
        shape = places.base[there]
        beside = any(other != there and found == shape for other, found in places.base.items())
        if len(shape) == 2 and not beside:
            raise OptionError(
                f"{where}: cannot be merged: modules_to_save unties {there!r} from the output head, which the base's "
                "files do not hold: write its folder (zoo.export, tallstore extract) and load that with PEFT, or save "
                "the base with config.tie_word_embeddings=False"
            )


def _is_embedding(module: str) -> bool:
    return bool(_EMBEDDING.search(module)) and not _NOT_OF_TOKENS.search(module.rpartition(".")[2])


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
