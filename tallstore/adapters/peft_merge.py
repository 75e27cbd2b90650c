"""What PEFT itself makes of a base's tensors: a skeleton of the modules that an adapter changes, merged by PEFT.

An adapter's configuration is data of an archive: what of it would fetch, import or compute from elsewhere is left out,
and only methods are taken that merge from their own tensors alone.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tallstore.adapters.config import AdapterConfig
from tallstore.errors import MissingExtraError, ModelMismatchError, OptionError

__all__ = ["TAKEN", "load_adapter_into", "merged"]

TAKEN = frozenset(
    {
        "LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "VERA", "FOURIERFT", "HIRA", "DELORA", "MISS",
        "ROAD", "SHIRA", "C3A", "WAVEFT", "VBLORA", "RANDLORA",
    }
)  # fmt: skip
"""Methods that merge from their own tensors, module by module."""
_DROPPED = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save",
    "parent_library", "revision", "task_type", "trainable_token_indices",
)  # fmt: skip
_CONVOLUTIONS: Mapping[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def merged(
    config: AdapterConfig,
    weights: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    transposed: Collection[str],
    where: str,
) -> dict[str, Tensor]:
    """The same tensors of a model after `merge_and_unload`.

    Args:
        config: the adapter's.
        weights: `weight` and `bias` of each module that it changes, by the model's names.
        adapter: the adapter's tensors of these modules.
        transposed: modules whose weights have shape (in, out).
        where: how messages name the adapter.

    Raises:
        MissingExtraError: PEFT is missing; names the command that installs it.
        OptionError: PEFT cannot merge such an adapter.
    """
    peft = _peft(f"{where}: to merge an adapter of this kind ({config.type})")
    embeddings = {name.rpartition(".lora_embedding_A")[0] for name in adapter if "lora_embedding_A" in name}
    embeddings = {name.removeprefix("base_model.model.") for name in embeddings}
    modules = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            skeleton = nn.Module()
            for module in modules:
                layer = _layer(weights, module, embedding=module in embeddings, transposed=module in transposed)
                _put(skeleton, module, layer)
            skeleton.requires_grad_(False)
            model = peft.PeftModel(skeleton, _config(peft, config, modules, adapter), autocast_adapter_dtype=True)
            told = peft.set_peft_model_state_dict(model, dict(adapter))
            if told.unexpected_keys:
                raise ValueError(f"it has no place for {told.unexpected_keys[0]!r}")
            state = model.merge_and_unload().state_dict()
    except Exception as error:  # whatever the configuration makes PEFT do
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise OptionError(f"{where}: PEFT cannot merge it ({line.strip()})") from error
    return {name: state[name].detach() for name in weights}


def load_adapter_into(model: Any, tensors: Mapping[str, Tensor], task: str) -> None:
    """Write an adapter's tensors into a PEFT model's active adapter, in place and strictly.

    Raises:
        ModelMismatchError: the model's adapter has other tensors. Nothing was written.
    """
    peft = _peft("PEFT models")
    name = model.active_adapter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    needed = {key for key in tensors if ".base_layer." not in key}
    odd = sorted(set(there) ^ needed) or [k for k in there if tuple(there[k].shape) != tuple(tensors[k].shape)]
    if odd:
        raise ModelMismatchError(
            f"task {task!r} does not fit the model's adapter {name!r}: tensor {odd[0]!r} is in one alone or of another "
            "shape: make the model with the adapter's own configuration; nothing was written"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.set_peft_model_state_dict(model, dict(tensors), adapter_name=name)


def _peft(what: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(f'{what} needs PEFT: pip install "tallstore[peft]"') from error
    return peft


def _config(peft: Any, config: AdapterConfig, modules: Collection[str], adapter: Mapping[str, Tensor]) -> Any:
    facts = {key: value for key, value in config.facts.items() if key not in _DROPPED}
    if config.type in {"LORA", "ADALORA"}:
        facts["init_lora_weights"] = config.initial
    if config.type == "IA3":
        facts["feedforward_modules"] = [module for module in modules if _is_feedforward(config, adapter, module)]
    facts |= {"target_modules": sorted(modules), "inference_mode": True, "bias": "none"}
    with tempfile.TemporaryDirectory(prefix="tallstore-") as folder:
        (Path(folder) / "adapter_config.json").write_text(json.dumps(facts), encoding="utf-8")
        return peft.PeftConfig.from_pretrained(folder)


def _is_feedforward(config: AdapterConfig, adapter: Mapping[str, Tensor], module: str) -> bool:
    """Whether IA3 scales what goes into a module, not what comes out: its vector lies along the weight's columns."""
    scale = next((value for name, value in adapter.items() if name.endswith(f"{module}.ia3_l")), None)
    if scale is not None and scale.ndim == 2:
        return scale.shape[0] == 1
    named = config.facts.get("feedforward_modules")
    return isinstance(named, list) and any(isinstance(each, str) and module.endswith(each) for each in named)


def _layer(weights: Mapping[str, Tensor], module: str, *, embedding: bool, transposed: bool) -> nn.Module:
    """A layer of the class that such a weight belongs to."""
    weight, bias = weights[f"{module}.weight"], weights.get(f"{module}.bias")
    layer: nn.Module
    with torch.device("meta"):
        if embedding:
            layer = nn.Embedding(*weight.shape)
        elif weight.ndim in _CONVOLUTIONS:
            kind: Any = _CONVOLUTIONS[weight.ndim]
            layer = kind(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None)
        elif transposed:
            from transformers.pytorch_utils import Conv1D

            untyped: Any = Conv1D
            layer = untyped(weight.shape[1], weight.shape[0])
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _put(root: nn.Module, path: str, layer: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, layer)
