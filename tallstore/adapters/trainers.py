"""LoRA files of other trainers than PEFT's, without a configuration: kohya's, those of diffusers' pipelines, and those
that call modules as the model's publisher does.

    kohya      lora_unet_down_blocks_0_…_to_q.lora_down.weight, ….lora_up.weight, ….alpha
    diffusers  unet.down_blocks.0.….to_q.lora_A.weight, ….lora_B.weight; in older files ….lora.down.weight
    original   diffusion_model.blocks.0.self_attn.q.lora_A.weight; double_blocks.0.img_attn.qkv.lora_A.weight

Names without dots say less than names with them, and a publisher's are others than diffusers': to merge, diffusers' own
conversion to its models' names is asked, that of the base's pipeline.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from tallstore.adapters.config import AdapterConfig
from tallstore.errors import MissingExtraError, OptionError, WrongBaseError

__all__ = ["DIFFUSERS", "KOHYA", "ORIGINAL", "TRAINERS", "check_trainer", "converted", "trainer_of"]

Shape = tuple[int, ...]
KOHYA, DIFFUSERS, ORIGINAL = "KOHYA", "DIFFUSERS", "ORIGINAL"
TRAINERS = frozenset({KOHYA, DIFFUSERS, ORIGINAL})
"""Whose files they are, where PEFT has a name of a method."""
_COMPONENT = r"unet|text_encoder(?:_\d)?|transformer(?:_\d)?|prior|controlnet"
_KOHYA = re.compile(
    r"(?:lora_[a-z]+\d?|lycoris)_\w+\.(?:lora_|alpha$|dora_scale$|diff|hada_|lokr_|oft_|on_input$|scalar$)[\w.]*",
    re.ASCII,
)
_DIFFUSERS = re.compile(
    rf"(?:{_COMPONENT})\.(?!h\.)[\w.]+?[._](?:lora_[AB]|lora_magnitude_vector|lora\.(?:down|up)|lora_linear_layer\.(?:down|up)|alpha)"
    r"(?:\.weight|\.bias|)",
    re.ASCII,
)
_BESIDE_KOHYA = re.compile(r"bundle_emb\.[^.]+\.\w[\w.]*")
"""Embeddings of new words that a trainer puts into the same file."""
_BESIDE_DIFFUSERS = re.compile(rf"(?:{_COMPONENT})\.(?!h\.)(?:\w+\.)*\w*norm\w*\.(?:weight|bias)", re.ASCII)
"""Norms that are trained with a product, and are there as they are."""
_PUBLISHED = re.compile(
    r"(?:(?:model\.)?diffusion_model\.|(?:double|single|joint)_blocks\.\d+\.)[\w.]+?"
    r"[._](?P<role>(?:\w*lora|alpha$|diff|dora_scale|norm\w*\.scale$)\w*(?:\.\w+)*)",
    re.ASCII,
)
_BESIDE_PUBLISHED = re.compile(r"[\w.]+\.(?:lora_[AB]\.(?:weight|bias)|lora_(?:down|up)\.weight|alpha)", re.ASCII)
_PREFIX = re.compile(r"lora_(?:unet|te\d?|transformer|prior)_|lycoris_")
_OTHERWISE = re.compile(
    r"input_blocks|middle_block|output_blocks|double_blocks|single_blocks|joint_blocks|lora_unet_blocks_\d"
)
"""Names of the models that diffusers converts."""
_TEXT = "text_model."
"""What the names of a text encoder of CLIP's began with, and in newer versions of transformers do not."""
_ROLES = {"lora_down.weight", "lora_up.weight", "alpha"}
_PRODUCT = re.compile(r".+\.lora_[AB]\.(?:weight|bias)")
_AXES = (re.compile(r"up\.weight|lora_B"), re.compile(r"down\.weight|lora_A"))
"""Which of a product's matrices have the weight's rows, and which its columns."""
_LOAD = "write its folder (zoo.export, tallstore extract) and load that with the pipeline's load_lora_weights"


def trainer_of(names: Iterable[str]) -> str | None:
    """Whose LoRA file these are the tensors of; None if of none of these."""
    listed = list(names)
    for form, own, beside in (
        (KOHYA, _KOHYA, _BESIDE_KOHYA),
        (DIFFUSERS, _DIFFUSERS, _BESIDE_DIFFUSERS),
        (ORIGINAL, _PUBLISHED, _BESIDE_PUBLISHED),
    ):
        rest = [name for name in listed if not own.fullmatch(name)]
        if 2 * len(rest) < len(listed) and all(beside.fullmatch(name) for name in rest):
            return form if form != ORIGINAL or any("lora" in name for name in listed) else None
    return None


def check_trainer(
    form: str, shapes: Mapping[str, Shape], base: Mapping[str, Shape], *, where: str, base_where: str
) -> None:
    """Raise WrongBaseError if a file's modules are not the base's, or their shapes do not fit; names the first.

    Args:
        form: whose file it is.
        shapes: of each of its tensors.
        base: the base's tensors, and the weights that it has as packed codes: of these nothing is known, ().
        where: how messages name the file.
        base_where: how messages name the base.
    """
    said = f"{where}: {base_where} is not its base"
    remedy = "give the base that this adapter was trained on, or allow_distant=True (--allow-distant) if it is"
    table = {_flat(name.rpartition("/")[2].removesuffix(".weight")): name for name in base}
    inputs = {shape[1] for shape in base.values() if len(shape) > 1}
    unknown = any(not shape and name.endswith(".weight") for name, shape in base.items())
    elsewhere = form == ORIGINAL or (form == KOHYA and any(_OTHERWISE.search(name) for name in shapes))
    any_base = False
    for name, shape in shapes.items():
        module, inner = _module(form, name)
        there = table.get(module)
        any_base |= there is not None
        axis = next((axis for axis, role in enumerate(_AXES) if role.search(inner)), None)
        if there is None and elsewhere and not unknown and axis == 1 and len(shape) > 1 and shape[1] not in inputs:
            raise WrongBaseError(
                f"{said}: tensor {name!r} is {list(shape)}, and no weight of the base has {shape[1]} inputs; {remedy}"
            )
        if there is None or axis is None or len(shape) < 2 or len(base[there]) < 2:
            continue
        if shape[axis] != base[there][axis]:
            raise WrongBaseError(
                f"{said}: tensor {name!r} is {list(shape)} and does not fit the base's {there!r}, "
                f"{list(base[there])}; {remedy}"
            )
    if not any_base and not elsewhere:
        raise WrongBaseError(f"{said}: the base has no module for tensor {next(iter(shapes))!r}; {remedy}")


def _module(form: str, name: str) -> tuple[str, str]:
    """A tensor's module, its names joined by underscores and without its component's, and the parameter's name."""
    if form == KOHYA:
        module, _, inner = name.partition(".")
        return _flat(_PREFIX.sub("", module)), inner
    if form == ORIGINAL:
        match = re.fullmatch(r"(?:(?:model\.)?diffusion_model\.)?(.+?)[._]((?:lora|down|up).*|alpha)", name)
    else:
        match = re.fullmatch(r"(?:\w+?)\.(.+?)[._](lora.*|alpha)", name)
    module, inner = (match[1], match[2]) if match else (name, "")
    return _flat(module), inner


def _flat(module: str) -> str:
    return re.sub(r"\W", "_", module).removeprefix("text_model_")


@dataclass(frozen=True)
class _Scaled(AdapterConfig):
    """How each module is scaled: by its own alpha, else as the file's metadata says of its component, else by 1."""

    alphas: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, AdapterConfig] = field(default_factory=dict)

    def scaling(self, module: str, rank: int) -> float:
        if module in self.alphas:
            return self.alphas[module] / rank
        component, _, inner = module.partition("/" if "/" in module else ".")
        said = self.components.get(component) or (
            next(iter(self.components.values()), None) if "/" not in module else None
        )
        return 1.0 if said is None else said.scaling(inner if "/" in module else module, rank)


def converted(
    form: str,
    tensors: Mapping[str, Tensor],
    base: Collection[str],
    config_of: Callable[[str], Mapping[str, Any] | None],
    metadata: Mapping[str, str],
    where: str,
) -> tuple[dict[str, Tensor], AdapterConfig]:
    """A file's tensors by the names that PEFT would give them on this base, and what says how they are scaled.

    Args:
        form: whose file it is.
        tensors: its tensors.
        base: names of the base's tensors.
        config_of: gives a configuration file of the base's as JSON, if there is one.
        metadata: of the file.
        where: how messages name it.

    Raises:
        MissingExtraError: diffusers, which converts the names, is missing.
        OptionError: diffusers cannot convert it, or not to this base; says how to use it.
    """
    _check_plain([name for name in tensors if not _is_plain(form, name)], where)
    components = _described(metadata, where)
    try:
        state, alphas = _by_diffusers(form, tensors, config_of)
    except ImportError as error:
        raise MissingExtraError(f"{where}: to merge it needs diffusers and PEFT: pip install diffusers peft") from error
    except Exception as error:  # whatever its names make diffusers do
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise OptionError(f"{where}: diffusers cannot convert its names ({line.strip()}): {_LOAD}") from error
    _check_plain([f"{part}.{name}" for part, name in state if not _PRODUCT.fullmatch(name)], where)
    if (before := _outputs(tensors)) != (after := _outputs({name: tensor for (_, name), tensor in state.items()})):
        raise OptionError(
            f"{where}: cannot be merged here: of {before} elements diffusers' conversion leaves {after}: {_LOAD}"
        )
    known = frozenset(base)
    several = any("/" in name for name in base)
    modules: dict[Named, str] = {}
    made: dict[str, Tensor] = {}
    for (component, name), tensor in state.items():
        module, _, parameter = name.rpartition(".lora_")
        inner = module.removeprefix(_TEXT)
        options = [f"{component}/{each}" if several else each for each in (module, inner, _TEXT + inner)]
        there = next((each for each in options if f"{each}.weight" in known), None)
        if there is None or (not several and component.startswith("text_encoder")):
            raise OptionError(
                f"{where}: cannot be merged here: the base has no module {module!r} of {component!r}, as diffusers "
                f"calls what it changes: {_LOAD}"
            )
        modules[component, module] = there
        made[f"{there}.lora_{parameter}"] = tensor
    scales = {modules[key]: alpha for key, alpha in alphas.items()}
    return made, _Scaled({"peft_type": "LORA"}, where, scales, components)


def _is_plain(form: str, name: str) -> bool:
    """Whether a tensor is of a low-rank product, or scales one."""
    if form == KOHYA:
        return name.partition(".")[2] in _ROLES
    if form == DIFFUSERS:
        return _DIFFUSERS.fullmatch(name) is not None and "magnitude" not in name
    return (
        re.search(r"\.(?:lora_[AB]\.weight|lora_(?:down|up)\.weight|alpha|\w+_lora\d?\.(?:down|up)\.weight)$", name)
        is not None
    )


def _check_plain(odd: Sequence[str], where: str) -> None:
    if odd:
        raise OptionError(f"{where}: cannot be merged here: {odd[0]!r} is more than a plain low-rank product: {_LOAD}")


def _outputs(tensors: Mapping[str, Tensor]) -> int:
    """Elements of the matrices that have the weights' rows: a conversion may cut these, and drops none."""
    return sum(tensor.numel() for name, tensor in tensors.items() if _AXES[0].search(name) and "bias" not in name)


def _described(metadata: Mapping[str, str], where: str) -> dict[str, AdapterConfig]:
    """What diffusers wrote of each component's configuration."""
    try:
        described = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        described = {}
    components: dict[str, dict[str, Any]] = {}
    for key, value in (described if isinstance(described, dict) else {}).items():
        component, _, setting = str(key).partition(".")
        components.setdefault(component, {})[setting] = value
    made = {name: AdapterConfig({"peft_type": "LORA", **facts}, where) for name, facts in components.items()}
    if not all(each.plain and each.unmergeable is None for each in made.values()):
        raise OptionError(f"{where}: cannot be merged here: its metadata says that it is no plain LoRA: {_LOAD}")
    return made


Named = tuple[str, str]
"""Component, and name in it."""


def _loader(loaders: Any, config_of: Callable[[str], Mapping[str, Any] | None]) -> tuple[Any, dict[str, Any]]:
    """What of diffusers knows the names of such a base's files, and what it is to be told."""
    pipeline = str((config_of("model_index.json") or {}).get("_class_name"))
    facts = config_of("transformer/config.json") or config_of("config.json") or {}
    model = re.sub(r"Transformer\w*Model$", "", str(facts.get("_class_name")))
    if loader := getattr(loaders, f"{model}LoraLoaderMixin", None):
        return loader, {"return_alphas": True}
    if re.fullmatch(r"[A-Za-z0-9]{1,64}Pipeline", pipeline) and "transformer" in (config_of("model_index.json") or {}):
        return getattr(import_module("diffusers"), pipeline), {"return_alphas": True}
    facts = config_of("unet/config.json") or config_of("config.json") or {}
    unet = SimpleNamespace(**facts) if "layers_per_block" in facts else None
    return loaders.StableDiffusionXLLoraLoaderMixin, {"unet_config": unet}


def _by_diffusers(
    form: str, tensors: Mapping[str, Tensor], config_of: Callable[[str], Mapping[str, Any] | None]
) -> tuple[dict[Named, Tensor], dict[Named, float]]:
    loaders: Any = import_module("diffusers.loaders")
    utils: Any = import_module("diffusers.utils.state_dict_utils")
    state: dict[str, Tensor] = dict(tensors)
    alphas: dict[str, Any] = {}
    if form != DIFFUSERS:
        loader, options = _loader(loaders, config_of)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made_of = loader.lora_state_dict(state, **options)
        state, alphas = made_of if isinstance(made_of, tuple) else (made_of, {})
        alphas = dict(alphas or {})
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        component, _, inner = name.partition(".")
        if inner.endswith(".alpha"):
            alphas[name] = tensor.item()
        else:
            parts.setdefault(component, {})[inner] = tensor
    made: dict[Named, Tensor] = {}
    new: dict[str, Named] = {}
    """By the name before it was converted, its component's in front."""
    for component, part in parts.items():
        old = {name: name for name in part}
        if not all(re.search(r"\.lora_[AB]\.", name) for name in part):
            if component.startswith("text_encoder"):
                old = utils.convert_state_dict_to_peft(utils.convert_state_dict_to_diffusers(old))
            else:
                old = utils.convert_unet_state_dict_to_peft(old)
        made |= {(component, name): part[was] for name, was in old.items()}
        new |= {f"{component}.{was}": (component, name) for name, was in old.items()}
    scales: dict[Named, float] = {}
    for name, alpha in alphas.items():
        component, _, module = name.removesuffix(".alpha").partition(".")
        known = new.get(f"{component}.{module}", (component, f"{module}.lora_A.weight"))
        if known not in made:
            raise ValueError(f"no matrices for the alpha {name!r}")
        scales[component, known[1].removesuffix(".lora_A.weight")] = float(alpha)
    return made, scales
