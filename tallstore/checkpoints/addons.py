"""Files that hold weights and are a fine-tune of nothing: a pipeline loads them beside a model.

Known by the names that trainers give, so that whoever packs one is told what it is, and not that the base is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["addon_of"]

_TOKEN = re.compile(r"<[^<>]+>|(string_to_param\.)?\*|emb_params|clip_[lg]|t5xxl?")
"""A trained token: of diffusers by the token itself, of others' trainers by the text encoder that it is for."""
_TOKENS = 8


def addon_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What a set of tensors is, if it is no model's; None of everything else.

    Args:
        shapes: of each tensor, by name.
    """
    if len(shapes) <= _TOKENS and all(_TOKEN.fullmatch(name) and len(shape) <= 2 for name, shape in shapes.items()):
        return "a textual inversion: vectors of new tokens, which change no weight of the model"
    if {"ip_adapter", "image_proj"} <= {name.partition(".")[0] for name in shapes}:
        return "an IP-Adapter: layers beside the model's, which change none of its weights"
    return None
