"""What base tensors become with an adapter merged into them, with PEFT's own arithmetic.

Plain LoRA and trained tokens are computed here, in PEFT's order of operations and types: adapters in bfloat16 or
float16 are widened to float32 first, the product is scaled in its own type, and the sum is rounded once to the base's.
For every other method PEFT itself is asked (`peft_merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tallstore.adapters.config import AdapterConfig
from tallstore.adapters.peft_merge import TAKEN
from tallstore.adapters.places import AdapterPlaces
from tallstore.adapters.tensors import TOKENS, AdapterTensors
from tallstore.errors import FormatError, OptionError, WrongBaseError
from tallstore.tensors import TORCH

__all__ = ["AdapterDelta", "changes"]

Read = Callable[[str], Tensor]
_LORA = {"lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_embedding_A", "lora_embedding_B"}
_HERE = {"LORA", "TRAINABLE_TOKENS", "LN_TUNING"}
"""Methods that are computed here."""
_NARROW = {torch.bfloat16, torch.float16}
_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {
    3: torch.nn.functional.conv1d,
    4: torch.nn.functional.conv2d,
    5: torch.nn.functional.conv3d,
}
_CONV1D = {"c_attn", "c_proj", "c_fc", "q_attn"}
"""Layers that transformers makes with weights of shape (in, out)."""


@dataclass(frozen=True)
class AdapterDelta:
    """A tensor of the merged model that is not the base's."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    in_place: bool
    """Whether the base's own memory changes, and with it every tensor that is tied to it."""


def changes(
    tensors: AdapterTensors,
    config: AdapterConfig | None,
    places: AdapterPlaces,
    own: Mapping[str, tuple[str, tuple[int, ...]]],
    dtypes: Mapping[str, str],
    read: Read,
    base: Read,
    where: str,
    ties: Mapping[str, str] = {},
) -> dict[str, AdapterDelta]:
    """What the merged model has in the place of the base's tensors, and beside them.

    Args:
        tensors: the adapter's.
        config: its configuration.
        places: where they go in the base.
        own: dtype and shape of each of the adapter's tensors.
        dtypes: of the base's tensors.
        read: gives one of the adapter's tensors.
        base: gives one of the base's.
        where: how messages name the adapter.
        ties: base tensors that share the memory of another one → that one.

    Raises:
        OptionError: an adapter that cannot be merged; says how to use it.
        WrongBaseError: a tensor that it changes is not in the base.
    """
    _check_mergeable(tensors, config, where)
    deltas: dict[str, AdapterDelta] = {}
    for name, source in tensors.replaced.items():
        in_place = ".base_layer." in source  # written to the module's own weight, and no copy of it
        there = places.changed(name) if in_place else places.of(name)
        dtype = own[source][0] if there is None else dtypes[there]
        make = partial(_taken, read, source, TORCH[dtype])
        target = there or places.model_name(name)
        deltas[ties.get(target, target) if in_place else target] = AdapterDelta(
            dtype, own[source][1], make, in_place=in_place
        )
    if config is None:
        _check_floats(deltas, dtypes, where)
        return deltas
    adapted = _AdaptedBase(places=places, dtypes=dtypes, read=base, ties=ties)
    merger = _Merger(tensors, config, read, adapted, deltas, where)
    by: dict[str, str] = {}
    copies = frozenset(name for name, change in deltas.items() if not change.in_place)
    for module in tensors.modules:
        for name, change in merger.module(module).items():
            first = ties.get(name, name)
            memory = first if change.in_place and first not in copies else name
            if memory not in by:
                by[memory] = module
                deltas[memory] = change
            elif not merger.same_tokens(by[memory], module):
                raise OptionError(
                    f"{where}: cannot be merged here: it changes {memory!r} twice, by the names {by[memory]!r} and "
                    f"{module!r}: {_REMEDY}"
                )
    _check_floats(deltas, dtypes, where)
    also = {name: deltas[first] for name, first in ties.items() if first in deltas and name not in deltas}
    return deltas | {name: change for name, change in also.items() if change.in_place}


_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that hold weights, and not the codes of a quantized model."""
_REMEDY = "write its folder (zoo.export, tallstore extract) and load that with PEFT"


def _check_mergeable(tensors: AdapterTensors, config: AdapterConfig | None, where: str) -> None:
    if config is None and tensors.modules:
        raise OptionError(
            f"{where}: cannot be merged: it was packed without its adapter_config.json, which says how it is scaled; "
            "pack the adapter's folder"
        )
    prompts = [name for name in tensors.loose if "prompt" in name]
    kind = config.type if config is not None else "PROMPT_TUNING"
    if prompts or not (tensors.modules or tensors.replaced):
        raise OptionError(f"{where}: an adapter of type {kind} changes no weights and cannot be merged: {_REMEDY}")
    if config is not None and config.type not in TAKEN | _HERE:
        raise OptionError(f"{where}: an adapter of type {config.type} cannot be merged here: {_REMEDY}")
    if config is not None and (setting := config.unmergeable):
        raise OptionError(f"{where}: an adapter with {setting} cannot be merged here: {_REMEDY}")


def _check_floats(deltas: Mapping[str, AdapterDelta], dtypes: Mapping[str, str], where: str) -> None:
    """Codes of a quantized base are no weights: what is added to them means nothing."""
    for name in deltas:
        if (dtype := dtypes.get(name)) is not None and dtype not in _FLOATS:
            raise _quantized(where, name, dtype)


def _quantized(where: str, name: str, dtype: str) -> OptionError:
    return OptionError(
        f"{where}: cannot be merged: the base's {name!r} is of type {dtype}, the codes of a quantized model: "
        f"{_REMEDY}, on the base as its own library loads it"
    )


def _taken(read: Read, name: str, dtype: torch.dtype) -> Tensor:
    return read(name).to(dtype)


@dataclass(frozen=True, kw_only=True)
class _AdaptedBase:
    """The base that an adapter changes: where its tensors are, their types, what reads one, and which share memory."""

    places: AdapterPlaces
    dtypes: Mapping[str, str]
    read: Read
    ties: Mapping[str, str]


class _Merger:
    """Merges an adapter module by module."""

    def __init__(
        self,
        tensors: AdapterTensors,
        config: AdapterConfig,
        read: Read,
        base: _AdaptedBase,
        replaced: Mapping[str, AdapterDelta],
        where: str,
    ) -> None:
        self._tensors, self._config, self._places, self._ties = tensors, config, base.places, base.ties
        self._dtypes, self._read, self._base, self._where = base.dtypes, read, base.read, where
        self._replaced = dict(replaced)
        self._foreign = cache(self._merged_by_peft)

    def module(self, module: str) -> dict[str, AdapterDelta]:
        """What becomes of a module's weight, and of its bias."""
        parameters = set(self._tensors.modules[module])
        weight = self._target(module, "weight")
        tokens = {name for name in parameters if name.endswith(TOKENS)}
        rest = parameters - tokens
        if tokens and not rest:
            return self._change(weight, partial(self._with_tokens, module, weight, tokens.pop()))
        if not tokens and self._config.plain and rest <= _LORA:
            deltas = self._change(weight, partial(self._low_rank, module, weight))
            if "lora_B.bias" in rest:
                bias = self._target(module, "bias")
                deltas |= self._change(bias, partial(self._biased, module, bias))
            return deltas
        if tokens:
            raise OptionError(
                f"{self._where}: {module!r} has trained tokens and another change at once: merge it with PEFT"
            )
        deltas = self._change(weight, partial(self._by_peft, f"{module}.weight"))
        if (there := self._places.of(f"{module}.bias")) is not None:
            deltas |= self._change(there, partial(self._by_peft, f"{module}.bias"))
        return deltas

    def same_tokens(self, left: str, right: str) -> bool:
        """Whether two modules train the same rows of one embedding to the same values."""
        names = [self._tensors.modules[module] for module in (left, right)]
        if not all(len(own) == 1 and next(iter(own)).endswith(TOKENS) for own in names):
            return False
        rows = [self._read(next(iter(own.values()))) for own in names]
        return self._tokens(left) == self._tokens(right) and torch.equal(*rows)

    def _tokens(self, module: str) -> list[int]:
        """Rows that a module trains; of one that PEFT wraps for being tied, those of the embedding."""
        try:
            return self._config.tokens(module)
        except FormatError:
            target = self._target(module, "weight")
            for other in self._tensors.modules:
                if other != module and self._places.changed(f"{other}.weight") == target:
                    return self._config.tokens(other)
            raise

    def _target(self, module: str, parameter: str) -> str:
        name = self._places.changed(f"{module}.{parameter}")
        if name is None:
            codes = [each for each in self._places.within(module) if self._dtypes[each] not in _FLOATS]
            if codes:
                raise _quantized(self._where, codes[0], self._dtypes[codes[0]])
            raise WrongBaseError(
                f"{self._where}: the base has no tensor {module + '.' + parameter!r}, which the adapter changes: "
                "it cannot be merged"
            )
        return name

    def _change(self, name: str, make: Callable[[], Tensor]) -> dict[str, AdapterDelta]:
        whole = self._brought(name)
        shape = whole.shape if whole is not None else self._places.base[name]
        dtype = whole.dtype if whole is not None else self._dtypes[name]
        return {name: AdapterDelta(dtype, shape, make, in_place=whole is None or whole.in_place)}

    def _brought(self, name: str) -> AdapterDelta | None:
        """What the adapter itself has in the place of a tensor of the base."""
        if name in self._replaced:
            return self._replaced[name]
        shared = self._replaced.get(self._ties.get(name, name))
        return shared if shared is not None and shared.in_place else None

    def _before(self, name: str) -> Tensor:
        """A tensor of the base as the adapter finds it: its own copy, where it comes with one."""
        whole = self._brought(name)
        return self._base(name) if whole is None else whole.make()

    def _parameter(self, module: str, parameter: str) -> Tensor:
        tensor = self._read(self._tensors.modules[module][parameter])
        return tensor.float() if tensor.dtype in _NARROW else tensor

    def _low_rank(self, module: str, name: str) -> Tensor:
        weight = self._before(name).clone()
        if "lora_embedding_A" in self._tensors.modules[module]:
            a, b = self._parameter(module, "lora_embedding_A"), self._parameter(module, "lora_embedding_B")
            weight += ((b @ a).T * self._config.scaling(module, a.shape[0])).to(weight.dtype)
            return weight
        a, b = self._parameter(module, "lora_A.weight"), self._parameter(module, "lora_B.weight")
        scaling = self._config.scaling(module, a.shape[0])
        if weight.ndim > 2:
            weight += _convolved(a, b, weight, scaling)
        else:
            product = b @ a
            weight += (product.T if self._transposed(module, name) else product) * scaling
        return weight

    def _transposed(self, module: str, name: str) -> bool:
        """Whether a weight has shape (in, out): by its shape, and where that is square by what is known of others."""
        rows, columns = self._places.base[name]
        if rows != columns:
            own = self._tensors.modules[module]
            return self._read(own["lora_B.weight"]).shape[0] != rows
        return self._config.transposed and (
            module.rpartition(".")[2] in _CONV1D or not any(self._plain(m) for m in self._tensors.modules)
        )

    def _plain(self, module: str) -> bool:
        """Whether a module is plainly one with a weight of shape (out, in)."""
        name = self._places.of(f"{module}.weight")
        shape = self._places.base[name] if name is not None else ()
        own = self._tensors.modules[module]
        if len(shape) != 2 or shape[0] == shape[1] or "lora_B.weight" not in own:
            return False
        return self._read(own["lora_B.weight"]).shape[0] == shape[0]

    def _biased(self, module: str, name: str) -> Tensor:
        bias = self._before(name).clone()
        rank = self._read(self._tensors.modules[module]["lora_A.weight"]).shape[0]
        bias += self._parameter(module, "lora_B.bias") * self._config.scaling(module, rank)
        return bias

    def _with_tokens(self, module: str, name: str, parameter: str) -> Tensor:
        weight = self._before(name)
        rows, index = self._read(self._tensors.modules[module][parameter]), self._tokens(module)
        if len(rows) != len(index) or not all(0 <= i < len(weight) for i in index):
            raise WrongBaseError(
                f"{self._where}: {len(index)} token indices do not fit {module!r} and its trained rows"
            )
        return weight.index_copy(0, torch.tensor(index, dtype=torch.int64), rows.to(weight.dtype))

    def _by_peft(self, name: str) -> Tensor:
        return self._foreign()[name]

    def _merged_by_peft(self) -> Mapping[str, Tensor]:
        from tallstore.adapters.peft_merge import merged

        weights: dict[str, Tensor] = {}
        transposed: set[str] = set()
        adapter: dict[str, Tensor] = {name: self._read(name) for name in self._tensors.loose}
        for module, parameters in self._tensors.modules.items():
            if any(parameter.endswith(TOKENS) for parameter in parameters):
                continue
            adapter |= {name: self._read(name) for name in parameters.values()}
            for kind in ("weight", "bias"):
                if (there := self._places.changed(f"{module}.{kind}")) is not None:
                    weights[f"{module}.{kind}"] = self._before(there).clone()
            weight = weights[f"{module}.weight"]
            if weight.ndim == 2 and self._turned(module):
                transposed.add(module)
        return merged(self._config, weights, adapter, transposed, self._where)

    def _turned(self, module: str) -> bool:
        """Whether PEFT must be given a module's weight as one of shape (in, out)."""
        if "lora_B.weight" in self._tensors.modules[module]:
            return self._transposed(module, str(self._places.changed(f"{module}.weight")))
        return self._config.transposed and module.rpartition(".")[2] in _CONV1D


def _convolved(a: Tensor, b: Tensor, weight: Tensor, scaling: float) -> Tensor:
    if tuple(weight.shape[2:4]) == (1, 1):
        product: Any = b.squeeze(3).squeeze(2) @ a.squeeze(3).squeeze(2)
        return product.unsqueeze(2).unsqueeze(3) * scaling  # type: ignore[no-any-return]  # torch says Any
    return _CONVOLUTIONS[weight.ndim](a.transpose(0, 1), b).transpose(0, 1) * scaling
