"""The encoder's options, checked once; the same names in Python, on the command line and in zoo files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from tallstore import codecs
from tallstore.errors import DeviceError, OptionError
from tallstore.format.manifest import STORAGES
from tallstore.recipes import RECIPES, make_recipe
from tallstore.recipes.base import Recipe


QUALITIES = {"small": 0.28, "balanced": 0.58, "high": 0.98}
"""Budgets of recipe `solo` by name, in bits a parameter and task: see `benchmarks/README.md`."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to pack. The defaults are what `benchmarks/README.md` measured to be good on a real zoo."""

    recipe: str = "solo"
    """How v and the masks are chosen: one of `tallstore.recipes.RECIPES`."""
    lam: float | None = None
    """λ of the recipes that have one."""
    bits: float | None = None
    """Bits a parameter and task, everything but the base, of recipe `solo`."""
    quality: str | None = None
    """In place of `bits`: `small`, `balanced` or `high`."""
    vector: str | None = None
    """Codec of the multi-task vector; by default the recipe's own."""
    mask: str = "adaptive"
    """Codec of the masks."""
    base_storage: str = "embed"
    """`embed` keeps the base in the archive; `reference` only identifies it."""
    base_codec: str = "planes+zstd"
    """Codec of whole tensors: the base and what tasks store whole."""
    device: str = "auto"
    """Where the arithmetic runs: `auto` takes CUDA where there is one."""
    allow_distant: bool = False
    """Take a base that looks like an unrelated model."""
    overwrite: bool = False
    """Replace an archive that is there already."""

    def __post_init__(self) -> None:
        _one_of("recipe", self.recipe, RECIPES)
        if self.vector is not None:
            _one_of("vector", self.vector, codecs.VECTOR)
        if self.quality is not None:
            _one_of("quality", self.quality, QUALITIES)
            if self.bits is not None:
                raise OptionError("bits and quality are two ways to say one thing: give one of them")
        _one_of("mask", self.mask, codecs.MASK)
        _one_of("base_codec", self.base_codec, codecs.WHOLE)
        _one_of("base_storage", self.base_storage, STORAGES)

    def make_recipe(self) -> Recipe:
        """The recipe with those options that it has. Raises OptionError for options that it has not."""
        bits = QUALITIES[self.quality] if self.quality is not None else self.bits
        given = {"lam": self.lam, "bits": bits}
        return make_recipe(self.recipe, **{name: value for name, value in given.items() if value is not None})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Options:
        """From a zoo file or keyword arguments. Raises OptionError for a name that is no option."""
        known = {f.name for f in fields(cls)}
        if odd := sorted(set(values) - known):
            raise OptionError(f"no such option: {', '.join(odd)}; there are {', '.join(sorted(known))}")
        return cls(**values)

    def torch_device(self) -> torch.device:
        """The device that `device` names."""
        return find_device(self.device)


def find_device(name: str | torch.device) -> torch.device:
    """`auto`, or any device torch knows; DeviceError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise DeviceError(f"device {str(name)!r} cannot be used ({line}); use 'cpu' or 'auto'") from error
    return device


def _one_of(name: str, value: object, table: Any) -> None:
    if value not in table:
        raise OptionError(f"{name} {value!r} is unknown; there are {', '.join(table)}")
