"""Layers that compute rows of several tasks: the base once for all, and what each task adds for its own.

A layer is the model's own module in another class, which has its original class above it: attributes, hooks and what
`isinstance` says stay; parameters are the base's. What it needs of the tasks is in its `plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tallstore.errors import ModelMismatchError, OptionError
from tallstore.kernels.products import add
from tallstore.serving.linear import by_product, linear, wide
from tallstore.serving.plan import Plan
from tallstore.serving.rows import BatchRows, Call, Tokens
from tallstore.serving.task_by_task import PlacesRows, by_task, like, tensor_of
from tallstore.serving.tensors import OwnTensor, RowsTensor, StoredTensor

__all__ = ["kind_of", "planned", "rows_of_places"]

_INDICES = (torch.int64, torch.int32)
"""Types that torch looks up by."""


class _LinearRows(nn.Linear):
    """A layer x · Wᵀ + b."""

    plan: Plan

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Of rows of several tasks. Where tasks have other numbers of outputs, those that are missing are −∞."""
        tokens = Tokens.of(input, 1, self.plan.rows, self.plan.name)
        return tokens.back(linear(self.plan, tokens, self.weight, self.bias))


class _TurnedLinearRows(nn.Module):
    """transformers' Conv1D: x · W + b."""

    plan: Plan
    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Of rows of several tasks."""
        plan = self.plan
        tokens = Tokens.of(x, 1, plan.rows, plan.name)
        out = x.new_empty(len(tokens.flat), self.weight.shape[1])
        for task, a, b in tokens.runs:
            weight, bias = plan.value("weight", task, self.weight), plan.value("bias", task, self.bias)
            torch.addmm(bias, tokens.flat[a:b], weight, out=out[a:b])
        return tokens.back(out)


class _EmbeddingRows(nn.Embedding):
    """A table that is looked up."""

    plan: Plan

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Of rows of several tasks: no more of a task's table is decoded than is looked up."""
        plan, weight = self.plan, self.weight
        if input.dtype not in _INDICES:
            raise OptionError(f"the layer {plan.name!r} is looked up by {input.dtype}: expected int64 or int32")
        tokens = Tokens.of(input.long(), 0, plan.rows, plan.name)
        if not tokens.rows.alone and _between_places(input):
            raise ModelMismatchError(
                f"the layer {plan.name!r} is looked up by pairs of places, and not by row: this model cannot compute "
                "rows of several tasks at once; give each task a call of its own"
            )
        out = weight.new_empty(len(tokens.flat), weight.shape[1])
        for task, a, b in tokens.runs:
            own = plan.own("weight", task)
            if own is None:
                out[a:b] = functional.embedding(tokens.flat[a:b], weight)
            elif b > a:
                index, where = torch.unique(tokens.flat[a:b], return_inverse=True)
                if index[0] < 0 or index[-1] >= own.shape[0]:
                    raise IndexError(f"index out of range: {plan.name!r} has {own.shape[0]} rows")
                out[a:b] = own.rows(weight, index)[where]
        return tokens.back(out)


class _ConvolutionRows(nn.Module):
    """A convolution, of any number of dimensions."""

    plan: Plan

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Of rows of several tasks."""
        plan = self.plan
        tokens = Tokens.of(input, input.dim() - 1, plan.rows, plan.name)
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        out = self._conv_forward(tokens.flat, weight, bias)
        for task, a, b in tokens.runs:
            own, own_bias = plan.own("weight", task), None if bias is None else plan.value("bias", task, bias)
            places = out[0, 0].numel() * (b - a)
            if own is None or not (self._unfolds() and by_product(own, weight, places)):
                if own is not None or own_bias is not bias:
                    out[a:b] = self._conv_forward(tokens.flat[a:b], plan.value("weight", task, weight), own_bias)
                continue
            seen = self._unfolded(tokens.flat[a:b])
            flat = out[a:b].flatten(2).transpose(1, 2).reshape(places, -1).contiguous()
            share = (own.packed if isinstance(own, RowsTensor) else None, wide(own_bias), 0, places)
            add(flat, seen, weight.flatten(1), wide(bias), [share])
            if isinstance(own, RowsTensor) and own.added is not None:
                own.added.add_outputs(flat, seen)
            out[a:b] = flat.reshape(b - a, -1, flat.shape[1]).transpose(1, 2).reshape(out[a:b].shape)
        return tokens.back(out)

    def _unfolds(self) -> bool:
        """Whether its windows can be laid out as tokens."""
        plain = self.padding_mode == "zeros" and self.groups == 1 and not isinstance(self.padding, str)
        return plain and len(self.kernel_size) < 3

    def _unfolded(self, x: Tensor) -> Tensor:
        """A window a row: shape (rows · places, elements of a window)."""
        flat = len(self.kernel_size) == 1
        one = (1,) if flat else ()
        windows = functional.unfold(
            x.unsqueeze(2) if flat else x,
            (*one, *self.kernel_size),
            (*one, *self.dilation),
            (*((0,) if flat else ()), *self.padding),
            (*one, *self.stride),
        )
        return windows.transpose(1, 2).reshape(-1, windows.shape[1])

    padding_mode: str
    groups: int
    padding: tuple[int, ...] | str
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]


class _LayerNormRows(nn.LayerNorm):
    """Layer normalization."""

    plan: Plan

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Of rows of several tasks."""
        plan = self.plan
        tokens = Tokens.of(input, len(self.normalized_shape), plan.rows, plan.name)
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        out = torch.empty_like(tokens.flat)
        for task, a, b in tokens.runs:
            scale = None if weight is None else plan.value("weight", task, weight)
            shift = None if bias is None else plan.value("bias", task, bias)
            out[a:b] = functional.layer_norm(tokens.flat[a:b], self.normalized_shape, scale, shift, self.eps)
        return tokens.back(out)


class _BroadcastRows(nn.Module):
    """A module without children whose vectors may as well be one for each row: most norms."""

    plan: Plan

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Of rows of several tasks."""
        rows, plan = self.plan.rows, self.plan
        own: dict[str, Tensor] = {}
        for name in plan.tensors:
            base = self._parameters[name]
            assert base is not None
            if rows.alone:
                own[name] = plan.value(name, rows.runs[0].task, base)
            elif (by_row := _by_row(plan, name, base, rows, inputs[0])) is not None:
                own[name] = by_row
        return like(self, own).forward(*inputs, **options)


class _RowsByTask(nn.Module):
    """Any other module: each task's rows by themselves, with its tensors in the place of the base's."""

    plan: Plan

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Of rows of several tasks: inputs and outputs that have rows first are cut and put together."""
        return by_task(self.plan.call, self.plan.name, lambda task: self._of(task).forward, inputs, options)

    def _of(self, task: int) -> nn.Module:
        """The original module, with a task's tensors."""
        plan = self.plan
        own = {}
        for name in plan.tensors:
            held = plan.own(name, task)
            if held is not None:
                own[name] = held.whole(tensor_of(self, name))
        return like(self, own)


def _between_places(index: Tensor) -> bool:
    """Whether what is looked up is a function of two places' distance, as relative positions are."""
    if index.dim() != 2 or index.shape[0] != index.shape[1] or len(index) < 2:
        return False
    return bool((index[1:, 1:] == index[:-1, :-1]).all()) and not bool((index == index[0]).all())


def _by_row(plan: Plan, name: str, base: Tensor | None, rows: BatchRows, x: Tensor) -> Tensor | None:
    """A small tensor of every row, to be broadcast over an input: shape (rows of x, 1 …, *base.shape)."""
    if base is None:
        return None
    if name not in plan.tensors:
        return base
    if name not in plan.tables:
        every = [base.detach(), *(plan.value(name, t, base).detach() for t in range(len(plan.tensors[name])))]
        plan.tables[name] = torch.stack(every)
        own_rows = zip(plan.tensors[name], plan.tables[name][1:], strict=True)
        plan.tensors[name][:] = [own and StoredTensor(row) for own, row in own_rows]
    each = 1 if x.shape[0] == 1 < len(rows) else rows.each(x.shape[0], plan.name)
    numbers = rows.numbers + 1 if each == 1 else (rows.numbers + 1).repeat_interleave(each)
    own = plan.tables[name][numbers]
    return own.reshape(len(own), *(1,) * (x.dim() - 1 - base.dim()), *base.shape)


def kind_of(module: nn.Module, tensors: Mapping[str, Sequence[OwnTensor | None]]) -> type[nn.Module]:
    """How a layer is computed."""
    plain = {nn.Linear: _LinearRows, nn.Embedding: _EmbeddingRows, nn.LayerNorm: _LayerNormRows}
    kind = type(module)
    if kind is nn.Embedding and module.max_norm is not None:
        return _RowsByTask
    if kind in plain:
        return plain[kind]
    if kind.__module__ == "transformers.pytorch_utils" and kind.__name__ == "Conv1D":
        return _TurnedLinearRows
    if kind in {nn.Conv1d, nn.Conv2d, nn.Conv3d}:
        return _ConvolutionRows
    vectors = all(tensor is None or len(tensor.shape) == 1 for own in tensors.values() for tensor in own)
    bare = not module._modules and tensors.keys() <= module._parameters.keys()
    if vectors and bare and _broadcasts(module, tensors):
        return _BroadcastRows
    return _RowsByTask


def _broadcasts(module: nn.Module, names: Mapping[str, object]) -> bool:
    """Whether vectors that are one for each row give what each row's vector gives; tried."""
    bases = {name: module._parameters[name] for name in names}
    size = {tensor.numel() for tensor in bases.values() if tensor is not None}
    if len(size) != 1 or any(tensor is None for tensor in bases.values()):
        return False
    (width,) = size
    some = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, width, generator=some).to(next(iter(bases.values())).dtype)  # type: ignore[union-attr]
    own = {name: torch.randn(2, 1, width, generator=some).to(x.dtype) for name in bases}
    try:
        with torch.no_grad():
            together = like(module, own).forward(x)
            apart = [like(module, {n: v[row, 0] for n, v in own.items()}).forward(x[row : row + 1]) for row in (0, 1)]
    except Exception:  # whatever it is, this is not such a module
        return False
    return isinstance(together, Tensor) and torch.equal(together, torch.cat(apart))


def planned(module: nn.Module, plan: Plan, kind: type[nn.Module]) -> None:
    """Put a module, one of our own copy of a model, into the class that computes it."""
    object.__setattr__(module, "__class__", _class_of((type(module), kind)))
    module.__dict__["plan"] = plan


def rows_of_places(module: nn.Module, name: str, call: Call) -> None:
    """The same for attention that has `compute_bias`."""
    object.__setattr__(module, "__class__", _class_of((type(module), PlacesRows)))
    module.__dict__.update(call=call, places_name=name)


_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _class_of(pair: tuple[type[nn.Module], type[nn.Module]]) -> type[nn.Module]:
    """A class of both, made once: how a layer is computed, above the layer's own class."""
    original, kind = pair
    if pair not in _CLASSES:
        more = {"__module__": __name__, "original": original}
        _CLASSES[pair] = type(f"Multitask{original.__name__}", (kind, original), more)
    return _CLASSES[pair]
