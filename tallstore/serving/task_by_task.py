"""Rows of a batch task by task: inputs cut, outputs put together; and modules in their own class with other tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from tallstore.errors import ModelMismatchError
from tallstore.serving.rows import BatchRows, Call, Run

__all__ = ["PlacesRows", "by_task", "like", "tensor_of"]


def by_task(
    call: Call,
    name: str,
    of: Callable[[int], Callable[..., Any]],
    inputs: Sequence[Any],
    options: Mapping[str, Any],
) -> Any:
    """Each task's rows by themselves: inputs and outputs that have rows first are cut and put together.

    Args:
        call: the batch that runs; it is each task's alone while that is computed.
        name: the layer's, for messages.
        of: what computes a task's rows, by the task's number.
        inputs: what it is given.
        options: likewise, by name.
    """
    rows = call.rows(name)
    if rows.alone:
        return of(rows.runs[0].task)(*inputs, **options)
    lead = next((x.shape[0] for x in (*inputs, *options.values()) if isinstance(x, Tensor) and x.dim()), 0)
    each = rows.each(lead, name)

    def ordered(value: Any, run: Run) -> Any:
        if not (isinstance(value, Tensor) and value.dim() and value.shape[0] == lead):
            return value
        own = value.reshape(len(rows), each, *value.shape[1:])
        own = own if rows.order is None else own[rows.order]
        return own[run.first : run.last].reshape(-1, *value.shape[1:])

    outputs = []
    for run in rows.runs:
        token = call.begin(BatchRows((run.task,) * (run.last - run.first)))
        try:
            own = [ordered(value, run) for value in inputs]
            outputs.append(of(run.task)(*own, **{n: ordered(v, run) for n, v in options.items()}))
        finally:
            call.end(token)
    return _joined(outputs, rows, name)


def _joined(each_run: Sequence[Any], rows: BatchRows, name: str) -> Any:
    """Outputs of runs as those of all rows, in the batch's order."""
    first = each_run[0]
    if isinstance(first, Tensor):
        out = torch.cat(list(each_run))
        if rows.back is None:
            return out
        each = rows.each(len(out), name)
        return out.reshape(len(rows), each, *out.shape[1:])[rows.back].reshape(out.shape)
    if isinstance(first, Mapping):
        made = {key: _joined([each[key] for each in each_run], rows, name) for key in first}
        return made if type(first) is dict else type(first)(**made)
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(each), rows, name) for each in zip(*each_run, strict=True))
    if all(each is first or each == first for each in each_run):
        return first
    raise ModelMismatchError(f"the layer {name!r} gives a {type(first).__name__} that cannot be put together by rows")


_each: ContextVar[int] = ContextVar("each", default=1)
"""Of each row of the batch, how many an attention sees: beams."""


class PlacesRows(nn.Module):
    """Attention with biases between places, which a method `compute_bias` makes of a table, one for all rows (T5)."""

    call: Call
    places_name: str

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """As it is."""
        rows = self.call.rows(self.places_name)
        lead = next((x.shape[0] for x in (*inputs, *options.values()) if isinstance(x, Tensor) and x.dim()), len(rows))
        token = _each.set(1 if rows.alone else rows.each(lead, self.places_name))
        try:
            return super().forward(*inputs, **options)
        finally:
            _each.reset(token)

    def compute_bias(self, *inputs: Any, **options: Any) -> Tensor:
        """Of every row: shape (rows, heads, places, places)."""
        compute: Callable[..., Tensor] = getattr(super(), "compute_bias")  # noqa: B009 - the model's own
        rows = self.call.rows(self.places_name)
        if rows.alone:
            return compute(*inputs, **options)
        own = []
        for run in rows.runs:
            token = self.call.begin(BatchRows((run.task,)))
            try:
                bias = compute(*inputs, **options)
            finally:
                self.call.end(token)
            if bias.dim() != 4 or bias.shape[0] != 1:
                raise ModelMismatchError(
                    f"the layer {self.places_name!r} makes one bias for all rows, of shape {list(bias.shape)}: this "
                    "model cannot compute rows of several tasks at once; give each task a call of its own"
                )
            own.append(bias.expand(run.last - run.first, *bias.shape[1:]))
        every = torch.cat(own)
        return (every if rows.back is None else every[rows.back]).repeat_interleave(_each.get(), 0)


def like(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module in its original class with other tensors, some perhaps of modules inside it; it stays as it is."""
    own: nn.Module = object.__new__(getattr(type(module), "original", type(module)))
    own.__dict__.update(module.__dict__)
    for kept in ("_parameters", "_buffers", "_modules"):
        own.__dict__[kept] = dict(module.__dict__[kept])
    own.__dict__.pop("plan", None)
    inner: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, rest = name.partition(".")
        if rest:
            inner.setdefault(path, {})[rest] = tensor
        else:
            own.__dict__["_parameters" if name in own._parameters else "_buffers"][name] = tensor
    for path, within in inner.items():
        child = own._modules[path]
        assert child is not None
        own._modules[path] = like(child, within)
    return own


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a module or of one inside it."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    parameter = owner._parameters.get(leaf)
    held = owner._buffers[leaf] if parameter is None else parameter
    assert held is not None
    return held
