"""The conversion between a checkpoint's names and a model's own that transformers does on loading and saving.

transformers 5 keeps tensors in memory otherwise than in files: experts are fused into one tensor, towers lie under
other prefixes. It describes this by transforms: renamings, and operations on tensors. Here they are applied to the
tensors of a model in memory, so that each tensor of a file is a view of the model's memory wherever that can be.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Conversion", "Route", "Shape", "computed_by", "conversion_of", "is_pretrained"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Route:
    """Where the tensors of a file belong in a model."""

    views: Mapping[str, Tensor]
    """File tensors that are a part of the model's memory, strided as they lie there."""
    owners: Mapping[str, str]
    """The model's tensors that those are parts of."""
    groups: tuple[ConvertedGroup, ...]
    """The others: what has to be converted together."""
    lost: tuple[str, ...]
    """File tensors that the model has no place for."""
    ignored: tuple[str, ...]
    """File tensors that the library leaves out by itself."""


@dataclass(frozen=True)
class ConvertedGroup:
    """Tensors of a file that become tensors of a model by operations that leave no view."""

    transform: Any
    target: str
    """The first of the model's tensors."""
    sources: tuple[tuple[str, str], ...]
    """Pattern and file tensor, in the order in which they are put together."""
    targets: tuple[str, ...]
    """The model's tensors that they become, as far as the patterns tell."""


@dataclass
class _Collected:
    """A transform and the file tensors that it takes for one target."""

    transform: Any
    sources: list[tuple[str, str, str]] = field(default_factory=list)
    """Pattern, file tensor, and its name after the renamings."""


def is_pretrained(model: object) -> bool:
    """Whether a model is one of transformers. Does not import it: who has such a model has imported it."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(model, library.PreTrainedModel)


_CONSTANT = re.compile(r"(^|\.)(attn|attention)\.masked_bias$")
"""What transformers once saved of attention, and computes now."""
_MOVED = ("rotary_emb.inv_freq", "position_ids")
"""Buffers that it once saved of every layer, and that a model has elsewhere, or computes, now."""


def computed_by(model: nn.Module) -> Callable[[str], bool]:
    """Tells by its name whether a file's tensor, which has no place in a model, is one that the model computes itself.

    Those are buffers that are not saved; and, of a model of transformers, what older versions of it saved.
    """
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    library = [end for end in _MOVED if is_pretrained(model) and any(name.endswith(end) for name in buffers)]
    moved = re.compile("|".join(rf"(^|\.){re.escape(end)}$" for end in library)) if library else None

    def computed(name: str) -> bool:
        if name in buffers or (moved is not None and moved.search(name)):
            return True
        return is_pretrained(model) and _CONSTANT.search(name) is not None

    return computed


def conversion_of(model: nn.Module) -> Conversion | None:
    """The conversion that belongs to a model; None where the library knows of none."""
    if not is_pretrained(model):
        return None
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5 files have the model's names
        return None
    return Conversion(model, get_model_conversion_mapping, revert_weight_conversion)


class Conversion:
    """Of one model's class and configuration. The model may be without memory (device meta)."""

    def __init__(self, model: nn.Module, mapping: Any, revert: Any) -> None:
        self._model: Any = model
        self._mapping, self._revert = mapping, revert

    @property
    def unsaved(self) -> frozenset[str]:
        """The model's tensors that `save_pretrained` leaves out, as the model computes them: sinusoidal positions."""
        return frozenset(getattr(self._model, "_keys_to_ignore_on_save", None) or ())

    def route(self, names: Mapping[str, Shape], own: Mapping[str, Tensor]) -> Route:
        """Where each tensor of a file goes.

        Args:
            names: the file's tensors and their shapes.
            own: the model's tensors, by its own names.
        """
        whole, collected, lost, ignored = self._collect(names, own)
        views = {name: own[target].detach() for name, target in whole.items()}
        owners = dict(whole)
        groups = []
        for target, each in collected.items():
            parts = self._parts(each, target, names, own)
            if parts is None:
                groups.append(_group(each, target, own))
            else:
                views |= {name: view for name, (_, view) in parts.items()}
                owners |= {name: owner for name, (owner, _) in parts.items()}
        return Route(views, owners, tuple(groups), tuple(lost), tuple(ignored))

    def convert(self, group: ConvertedGroup, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors that file tensors become, as the library makes them."""
        transform = copy.deepcopy(group.transform)
        for pattern, name in group.sources:
            transform.add_tensor(group.target, name, pattern, values[name])
        with torch.no_grad():
            converted = transform.convert(group.target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}

    def to_file(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under the names of files, as `save_pretrained` writes it; views where that can be."""
        with torch.no_grad(), _NoCopies():
            stored: dict[str, Tensor] = self._revert(self._model, dict(state))
        return stored

    def to_memory(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under the model's own names, as `from_pretrained` makes it; what has no place keeps its name."""
        own: dict[str, Tensor] = self._model.state_dict()
        whole, collected, lost, ignored = self._collect({n: tuple(t.shape) for n, t in state.items()}, own)
        converted = {target: state[name] for name, target in whole.items()}
        for target, each in collected.items():
            converted |= self.convert(_group(each, target, own), state)
        return converted | {name: state[name] for name in (*lost, *ignored)}

    def _collect(
        self, names: Mapping[str, Shape], own: Mapping[str, Tensor]
    ) -> tuple[dict[str, str], dict[str, _Collected], list[str], list[str]]:
        """What is only renamed, what is converted (by the first target), what has no place, and what is left out.

        As `convert_and_load_state_dict_in_model` of the library goes about it.
        """
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        transforms = self._mapping(self._model)
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
        prefix: str = self._model.base_model_prefix
        meta: dict[str, Any] = dict(own)
        computed = computed_by(self._model)
        leave = [re.compile(each) for each in getattr(self._model, "_keys_to_ignore_on_load_unexpected", None) or ()]
        whole: dict[str, str] = {}
        collected: dict[str, _Collected] = {}
        lost: list[str] = []
        ignored: list[str] = []
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, meta)
            if target not in own and name in own:
                target, pattern = rename_source_key(name, [], [], prefix, meta)
            if target not in own:
                left = computed(target) or any(each.search(target) for each in leave)
                (ignored if left else lost).append(name)
            elif pattern is None:
                whole[name] = target
            else:
                between, _ = rename_source_key(name, renamings, [])
                group = collected.setdefault(target, _Collected(by_pattern[pattern]))
                group.sources.append((pattern, name, between))
        return whole, collected, lost, ignored

    def _parts(
        self, each: _Collected, target: str, names: Mapping[str, Shape], own: Mapping[str, Tensor]
    ) -> dict[str, tuple[str, Tensor]] | None:
        """The views that the file tensors of one conversion are; None where they are none.

        The reverse of the conversion cuts the model's tensors into those of the file. It gives views as long as it
        only cuts, turns and renames.
        """
        try:
            back = each.transform.reverse_transform()
            sources = _targets(each.transform, target, own)
            for name in sources:
                first, pattern = back.rename_source_key(name)
                back.add_tensor(first, name, pattern, own[name].detach())
            with torch.no_grad(), _NoCopies():
                converted = back.convert(first, model=self._model, config=self._model.config)
        except Exception:  # what the library cannot undo fails in a way of each operation's own
            return None
        owners = {own[name].untyped_storage()._cdata: name for name in sources}
        parts: dict[str, tuple[str, Tensor]] = {}
        for _, name, between in each.sources:
            view = next((converted[key] for key in self._spellings(between) if key in converted), None)
            view = view[0] if isinstance(view, list) else view
            owner = None if view is None else owners.get(view.untyped_storage()._cdata)
            if view is None or owner is None or tuple(view.shape) != names[name]:
                return None
            parts[name] = (owner, view)
        covered = sum(view.numel() for _, view in parts.values())
        return parts if covered == sum(own[name].numel() for name in sources) else None

    def _spellings(self, name: str) -> tuple[str, ...]:
        """A name with and without the prefix that a head's model puts before its body's."""
        prefix = f"{self._model.base_model_prefix}."
        return (name, prefix + name, name.removeprefix(prefix))


def _group(each: _Collected, target: str, own: Mapping[str, Tensor]) -> ConvertedGroup:
    sources = tuple((pattern, name) for pattern, name, _ in each.sources)
    return ConvertedGroup(each.transform, target, sources, tuple(_targets(each.transform, target, own)))


def _targets(transform: Any, target: str, own: Mapping[str, Tensor]) -> list[str]:
    """The model's tensors that one conversion makes, by their patterns: the first is `target`."""
    first = transform.target_patterns[0]
    candidates = [target.replace(first, pattern) for pattern in transform.target_patterns]
    return list(dict.fromkeys(name for name in candidates if name in own))


class _NoCopies(TorchFunctionMode):
    """`contiguous` gives the tensor as it lies, so that what the library cuts out of tensors stays a view of them."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.contiguous:
            return args[0]
        return func(*args, **(kwargs or {}))
