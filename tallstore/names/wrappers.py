"""Wrappers around modules put a segment into the names of all that is inside: `module.`, `_orig_mod.` and so on.

They stand anywhere in a name: torch.compile, FSDP and activation checkpointing wrap blocks as well as whole models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache

from torch import nn

__all__ = ["WRAPPERS", "bare", "inner_model", "short_names", "unwrapped"]

WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel, DeepSpeed, AveragedModel
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_fpw_module",  # the same in torch before 1.12
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning Fabric
        "_module",  # Opacus
    }
)
_RENAMED = (
    (re.compile(r"\.parametrizations\.(\w+)\.original0$"), r".\1_g"),
    (re.compile(r"\.parametrizations\.(\w+)\.original1$"), r".\1_v"),
    (re.compile(r"\.parametrizations\.(\w+)\.original$"), r".\1_orig"),
    (re.compile(r"(norm\w*)\.gamma$", re.IGNORECASE), r"\1.weight"),
    (re.compile(r"(norm\w*)\.beta$", re.IGNORECASE), r"\1.bias"),
)
"""What a parameter is called by newer and older versions of a library: weight, spectral and layer norm."""


def unwrapped(name: str) -> str:
    """A name without the segments of wrappers."""
    return ".".join(segment for segment in name.split(".") if segment not in WRAPPERS) or name


@lru_cache(maxsize=1 << 14)  # every task of a zoo has the same names
def bare(name: str) -> str:
    """A name without the segments of wrappers, and with weight norm and layer norm called one way."""
    name = unwrapped(name)
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def short_names(names: Iterable[str], short_of: Callable[[str], str]) -> dict[str, str]:
    """Names → their short forms (`bare` or `unwrapped`); those that would be the same as another stay as they are."""
    shortened = {name: short_of(name) for name in names}
    count = Counter(shortened.values())
    return {name: short if count[short] == 1 else name for name, short in shortened.items()}


def inner_model(model: nn.Module) -> nn.Module:
    """The model in wrappers around all of it; the model itself where there are none."""
    while len(children := list(model.named_children())) == 1 and children[0][0] in WRAPPERS:
        if next(model.parameters(recurse=False), None) is not None:
            break
        model = children[0][1]
    return model
