"""Which base tensors an adapter changes, and whether it can be this base's: names and shapes must fit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tallstore.adapters.config import AdapterConfig
from tallstore.adapters.tensors import AdapterTensors
from tallstore.adapters.tying import tied_to
from tallstore.errors import WrongBaseError

__all__ = ["AdapterPlaces", "check_base", "find_places"]

Shape = tuple[int, ...]
_WEIGHTS = ("weight", "in_proj_weight")
"""What a module that an adapter changes calls its weight."""


@dataclass(frozen=True)
class AdapterPlaces:
    """The base's names of a model's tensors: the model's, one prefix put in the place of another."""

    strip: str
    add: str
    base: Mapping[str, Shape]
    tied: Mapping[str, str] = field(default_factory=dict)
    """Weights of modules that the base's files do not hold since they are tied → the embedding that they are."""

    def changed(self, name: str) -> str | None:
        """The base tensor that changes with a tensor of the model, which may be tied to it; None if there is none."""
        return self.of(name) or self.tied.get(name)

    def of(self, name: str) -> str | None:
        """The base tensor that a tensor of the model is; None if the base has none."""
        renamed = self.add + name.removeprefix(self.strip) if name.startswith(self.strip) else name
        return next((each for each in (renamed, name) if each in self.base), None)

    def within(self, module: str) -> list[str]:
        """The base's tensors of a module of the model."""
        inner = f"{self.add}{module.removeprefix(self.strip)}."
        return [name for name in self.base if name.startswith(inner)]

    def model_name(self, name: str) -> str:
        """The model's name of a base tensor."""
        return self.strip + name.removeprefix(self.add) if name.startswith(self.add) else name


def find_places(tensors: AdapterTensors, shapes: Mapping[str, Shape], base: Mapping[str, Shape]) -> AdapterPlaces:
    """Find the prefixes that bring the most of an adapter's modules together with base tensors, and what is tied.

    Args:
        tensors: the adapter's.
        shapes: of each of its tensors.
        base: the base's tensors.
    """
    places = _prefixes(tensors, base)
    tied = {}
    for module, parameters in tensors.modules.items():
        weight = f"{module}.weight"
        if places.of(weight) is None and (
            shared := tied_to(module, {p: shapes[n] for p, n in parameters.items()}, base)
        ):
            tied[weight] = shared
    return replace(places, tied=tied)


def _prefixes(tensors: AdapterTensors, base: Mapping[str, Shape]) -> AdapterPlaces:
    by_suffix: dict[str, list[str]] = defaultdict(list)
    for name in base:
        for suffix in _suffixes(name):
            by_suffix[suffix].append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for target in [*(f"{module}.weight" for module in tensors.modules), *tensors.replaced]:
        for suffix in _suffixes(target):
            if suffix in by_suffix:
                if len(by_suffix[suffix]) == 1:
                    votes[target.removesuffix(suffix), by_suffix[suffix][0].removesuffix(suffix)] += 1
                break
    if not votes:
        return AdapterPlaces("", "", base)
    return AdapterPlaces(*max(votes, key=lambda pair: (votes[pair], -len(pair[0]) - len(pair[1]), pair)), base)


def check_base(
    tensors: AdapterTensors,
    shapes: Mapping[str, Shape],
    base: Mapping[str, Shape],
    *,
    config: AdapterConfig | None,
    where: str,
    base_where: str,
) -> None:
    """Raise WrongBaseError if an adapter's modules are not the base's, or their shapes do not fit; names the first.

    Args:
        tensors: the adapter's.
        shapes: of each of its tensors.
        base: the base's tensors, and the weights that it has as packed codes: of these nothing is known, ().
        config: the adapter's, if there is one.
        where: how messages name the adapter.
        base_where: how messages name the base.
    """
    places = find_places(tensors, shapes, base)
    remedy = "give the base that this adapter was trained on, or allow_distant=True (--allow-distant) if it is"
    lost = []
    nested = config is not None and (config.facts.get("target_parameters") or config.facts.get("layer_replication"))
    for module, parameters in tensors.modules.items():
        weight = next((n for w in _WEIGHTS if (n := places.changed(f"{module}.{w}"))), None)
        if weight is None:
            lost.append(next(iter(parameters.values())))
            continue
        resized = tensors.replaced.get(f"{module}.weight")
        target = shapes[resized] if resized is not None else base[weight]
        own = {parameter: shapes[name] for parameter, name in parameters.items()}
        if (odd := _misfit(own, target)) and not nested:
            name = parameters[odd]
            raise WrongBaseError(
                f"{where}: {base_where} is not its base: tensor {name!r} is {list(shapes[name])} and does not fit "
                f"the base's {weight!r}, {list(target)}; {remedy}"
            )
    enough = len(tensors.modules) if config is not None and not nested else len(tensors.modules) / 2
    if lost and len(tensors.modules) - len(lost) < enough:
        raise WrongBaseError(
            f"{where}: {base_where} is not its base: the base has no module for tensor {lost[0]!r}"
            f"{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}; {remedy}"
        )
    _check_prompts(tensors, shapes, base, config, f"{where}: {base_where} is not its base", remedy)


def _check_prompts(
    tensors: AdapterTensors,
    shapes: Mapping[str, Shape],
    base: Mapping[str, Shape],
    config: AdapterConfig | None,
    said: str,
    remedy: str,
) -> None:
    """Prompts are rows of the base's embeddings: some base tensor must have rows of their length."""
    if config is None or config.type != "PROMPT_TUNING":
        return
    for name in tensors.loose:
        shape = shapes[name]
        if len(shape) == 2 and not any(len(other) == 2 and other[1] == shape[1] for other in base.values()):
            raise WrongBaseError(f"{said}: no tensor of the base has rows of {shape[1]} as {name!r} has; {remedy}")


def _misfit(own: Mapping[str, Shape], weight: Shape) -> str | None:
    """The parameter whose shape does not fit a weight; None where all do, or nothing is known of them."""
    if not weight:
        return None
    outer = (weight[0], weight[1]) if len(weight) > 1 else (weight[0], weight[0])
    if len(weight) == 2 and "lora_A.weight" in own and "lora_B.weight" in own:
        inner = own["lora_B.weight"][:1] + own["lora_A.weight"][1:2]
        if inner not in (outer, outer[::-1]):
            return "lora_A.weight" if inner[1:] != outer[1:] else "lora_B.weight"
    if len(weight) > 2 and own.get("lora_B.weight", weight)[:1] != weight[:1]:
        return "lora_B.weight"
    if len(weight) > 2 and own.get("lora_A.weight", weight)[1:] != weight[1:]:
        return "lora_A.weight"
    for name, expected in (("lora_embedding_A", outer[0]), ("lora_embedding_B", outer[1])):
        if name in own and own[name][-1 if name.endswith("A") else 0] != expected:
            return name
    scale = own.get("ia3_l")
    if scale is not None and max(scale, default=0) not in outer:
        return "ia3_l"
    return None


def _suffixes(name: str) -> Iterator[str]:
    """The name, and what is left of it after each of its dots, longest first."""
    yield name
    at = name.find(".")
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)
