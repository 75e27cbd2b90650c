"""Input embeddings and output heads that are one memory, and what adapters do to them.

A model with `tie_word_embeddings` has one memory for both, and its files hold the embedding alone. Of a module that
PEFT changes in place, whichever of the two it is, the merged model has both changed. But a module in `modules_to_save`
is a copy: the merged model has that as its embedding and the base's embedding as its head. What the head is called,
only the model's class knows; a state dict without it would be tied again when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tallstore.adapters.tensors import TOKENS

__all__ = ["is_embedding", "tied_to"]

Shape = tuple[int, ...]

_EMBEDDING = re.compile(r"(?:^|\.)(?:\w*embed\w*|wte|shared)$")
_NOT_OF_TOKENS = re.compile(r"position|type|patch")
_HEAD = re.compile(r"(?:^|\.)(?:\w*head|embed_out|output|output_layer|proj_out|decoder)$")


def tied_to(module: str, own: Mapping[str, Shape], base: Mapping[str, Shape]) -> str | None:
    """The base's embedding that a module is tied to which the base has no weight of; None if it is not plainly tied.

    Args:
        module: its name in the model.
        own: shapes of the adapter's parameters of it.
        base: the base's tensors.
    """
    inner = module.removesuffix(".base_layer")
    if not (_HEAD.search(inner) or is_embedding(inner)):
        return None
    fits = [
        name
        for name, shape in base.items()
        if len(shape) == 2 and is_embedding(name.removesuffix(".weight")) and _has_shape(own, shape)
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


def is_embedding(module: str) -> bool:
    """Whether a module is by its name an embedding of tokens."""
    return bool(_EMBEDDING.search(module)) and not _NOT_OF_TOKENS.search(module.rpartition(".")[2])
