"""Which tensors are an adapter's: told by their names, which PEFT gives them.

A name is the module's, `base_model.model.` before it, and the parameter's behind: `…q_proj.lora_A.weight`. In a state
dict of a model in memory the adapter's own name stands in the parameter's: `lora_A.default.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["AdapterTensors", "recognised", "sorted_tensors"]

PREFIX = "base_model.model."
TOKENS = "trainable_tokens_delta"
_TYPES = {
    "lora_E": "ADALORA",
    "lora": "LORA",
    "ia3": "IA3",
    "hada": "LOHA",
    "lokr": "LOKR",
    "boft": "BOFT",
    "oft": "OFT",
    "vera_lambda": "VERA",
    "hra": "HRA",
    "fourierft": "FOURIERFT",
    "vblora": "VBLORA",
    "randlora": "RANDLORA",
    "c3a": "C3A",
    "miss": "MISS",
    "shira": "SHIRA",
    "waveft": "WAVEFT",
    "delora": "DELORA",
    "road": "ROAD",
    "hira": "HIRA",
    "ln_tuning": "LN_TUNING",
    "trainable_tokens": "TRAINABLE_TOKENS",
}
"""What the name of a parameter begins with → the method. More telling ones come first."""
_PARAMETER = re.compile(
    r"^(?P<module>.+?)\.(?P<parameter>(?:token_adapter\.)?(?P<kind>" + "|".join(_TYPES) + r")(?=_|\.|$)[\w.]*)$"
)
_NAMED = re.compile(
    r"^(?P<what>(?:token_adapter\.)?(?!token_adapter\b)\w+)\.(?!weight$|bias$)\w+(?P<rest>\.weight|\.bias|)$"
)
_REPLACED = re.compile(r"\.(?:ln_tuning_layers|modules_to_save)(?=\.)")
_PROMPTS = ("prompt_embeddings", "prompt_encoder.")


@dataclass(frozen=True)
class AdapterTensors:
    """An adapter's tensors by what they do. Names of modules are the model's own, without PEFT's prefix."""

    modules: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Module → its parameter's name (`lora_A.weight`) → the tensor's."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """The model's tensor → the adapter's that takes its place: modules_to_save, biases, resized embeddings."""
    loose: tuple[str, ...] = ()
    """Tensors that belong to no module: prompts, projections that all modules share."""


def sorted_tensors(names: Iterable[str]) -> AdapterTensors:
    """Tell what each of an adapter's tensors does, by its name."""
    modules: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    loose = []
    for name in names:
        inner = name.removeprefix(PREFIX)
        if inner == name and (name.startswith((*_PROMPTS, "base_model.")) or "." not in name):
            loose.append(name)
        elif match := _parameter(inner):
            module, parameter = match
            modules.setdefault(module, {})[parameter] = name
        elif ".original_module." not in inner:  # what was there before another took its place
            replaced[_plain(inner)] = name
    return AdapterTensors(modules, replaced, tuple(loose))


def recognised(names: Iterable[str]) -> str | None:
    """The method, if these are the tensors of an adapter: some of its parameters, and not the base's beside them."""
    listed = list(names)
    sorted_by = sorted_tensors(listed)
    kinds = {_kind(parameter) for parameters in sorted_by.modules.values() for parameter in parameters}
    if not kinds:
        return "PROMPT_TUNING" if listed and all(name.startswith(_PROMPTS) for name in listed) else None
    own = {f"{module}.weight" for module in sorted_by.modules}
    if 2 * len(own & set(sorted_by.replaced)) > len(own):
        return None  # a whole model with an adapter in it
    return next(_TYPES[kind] for kind in _TYPES if kind in kinds)


def _parameter(name: str) -> tuple[str, str] | None:
    match = _PARAMETER.match(name)
    if match is None or match["kind"] == "ln_tuning":
        return None
    parameter = match["parameter"]
    if named := _NAMED.match(parameter):
        parameter = named["what"] + named["rest"]
    return match["module"], parameter


def _kind(parameter: str) -> str:
    plain = parameter.removeprefix("token_adapter.")
    return next(kind for kind in _TYPES if plain.startswith(kind))


def _plain(name: str) -> str:
    """The model's own name of a tensor, without what PEFT wraps around its module."""
    return _REPLACED.sub("", name).replace(".base_layer.", ".")
