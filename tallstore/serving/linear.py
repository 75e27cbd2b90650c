"""Linear layers of rows of several tasks, by whichever of three ways is quickest for a task's tokens.

marks    what a task adds is computed from its marks, on top of the base's outputs, which all tasks share
rows     the task's own rows are made a tile at a time, and multiplied at once
whole    the task's layer is decoded, and multiplied by torch
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tallstore.kernels.device_rows import DeviceRows
from tallstore.kernels.products import Products, add, outputs, products
from tallstore.serving.low_rank import LowRankRows
from tallstore.serving.plan import Plan
from tallstore.serving.rows import BASE, Run, Tokens
from tallstore.serving.tensors import OwnTensor, RowsTensor, StoredTensor

__all__ = ["COPY", "THIN", "WRITE", "by_product", "linear", "ways", "wide"]

_FEW_ON_DEVICE = 128
"""Tokens up to which a device computes from codes; for more a layer is decoded and multiplied by its own library."""
_TOKEN, _MARK, WRITE = 0.045, 1.0, 0.35
"""Nanoseconds, as measured: a mark with each token; a mark that is put into a layer, more than one that is found; and
an element of a layer that is written and multiplied by itself."""
_PUT, COPY = 0.3, 0.1
"""The same of a tile of own rows: a mark that is put into it, more than one that is found; and an element of it."""
_COLUMNS = 1 << 21
"""Elements of a run's tokens up to which they stay near the processor while tiles go by."""
THIN, _ADDED = 0.04, 0.3
"""The same of thin matrices: a number of one with each token; and an element of a layer that the product of two is
added to."""
Share = tuple[Any, Tensor | None, int, int]
"""As `kernels.packed_rows.Share`, or of a device's rows."""


class _Ways(NamedTuple):
    """Runs of tokens by how they are computed."""

    marks: list[Share]
    rows: list[Share]
    whole: list[Run]
    added: list[tuple[LowRankRows, int, int]]
    """Of runs of the first two kinds, what is added beside, and the tokens [a, b) that it is for."""
    moved: list[tuple[LowRankRows, Share]]
    """Runs as those of `rows`, whose many tokens make it quicker to add to the base before than to outputs behind."""


def linear(plan: Plan, tokens: Tokens, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Outputs: shape (tokens, outputs). Where tasks have other numbers of them, those that are missing are −∞."""
    flat = tokens.flat
    if plan.outputs - {len(weight)}:
        weights = [plan.value("weight", run.task, weight) for run in tokens.runs]
        out = flat.new_full((len(flat), max({*plan.outputs, *map(len, weights)})), -torch.inf)
        for (task, a, b), own_weight in zip(tokens.runs, weights, strict=True):
            own_bias = None if bias is None else plan.value("bias", task, bias)
            out[a:b, : len(own_weight)] = functional.linear(flat[a:b], own_weight, own_bias)
        return out
    found = ways(plan, tokens, weight, bias)
    out = _without_added(found, plan, flat, weight, bias)
    for product, a, b in found.added:
        product.add_outputs(out[a:b], flat[a:b])
    return out


def _without_added(found: _Ways, plan: Plan, flat: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same but for what is added beside."""
    marks, rows, whole, moved = found.marks, found.rows, found.whole, found.moved
    if not rows and not whole and not moved:
        return outputs(flat, weight, bias, marks) if marks else functional.linear(flat, weight, bias)
    out = flat.new_empty(len(flat), len(weight))
    at = 0
    apart: list[tuple[int, int, Run | None]] = [(run.first, run.last, run) for run in whole]
    apart += [(a, b, None) for _, _, a, b in (*rows, *(share for _, share in moved))]
    for a, b, run in (*sorted(apart, key=lambda each: each[:2]), (len(flat), len(flat), None)):
        if a > at:
            _write(out[at:a], flat[at:a], weight, bias)
        if run is not None:
            own_bias = None if bias is None else plan.value("bias", run.task, bias)
            _write(out[a:b], flat[a:b], plan.value("weight", run.task, weight), own_bias)
        at = b
    if rows:
        products().own(out, flat.contiguous(), weight.detach(), wide(bias), rows)
    for product, share in moved:
        start = weight.detach().clone(memory_format=torch.contiguous_format)
        product.add_all(start)
        products().own(out, flat.contiguous(), start, wide(bias), [share])
    if marks:
        add(out, flat, weight, wide(bias), marks)
    return out


def ways(plan: Plan, tokens: Tokens, weight: Tensor, bias: Tensor | None) -> _Ways:
    """How each run is computed. It is the same in every step of a generation, and is made in the first."""
    key = (plan, len(tokens.flat), tokens.flat.dtype)
    made: _Ways | None = tokens.rows.made.get(key)
    if made is not None:
        return made
    made = _Ways([], [], [], [], [])
    backend = products(weight.device.type)
    for run in tokens.runs:
        if run.task == BASE:
            continue
        own, more = _share(plan, run.task, bias)
        if own is None and more is None:
            continue
        n = run.last - run.first
        share = (own.packed if isinstance(own, RowsTensor) else None, more, run.first, run.last)
        product = own.added if isinstance(own, RowsTensor) else None
        if own is not None and tokens.flat.dtype == torch.float32 and _by_rows(backend, own, weight, n):
            if product is not None and THIN * n * product.numbers > _ADDED * weight.numel():
                made.moved.append((product, share))
                continue
            made.rows.append(share)
        elif own is not None and not by_product(own, weight, n, backend):
            made.whole.append(run)
            continue
        else:
            made.marks.append(share)
        if product is not None:
            made.added.append((product, run.first, run.last))
    tokens.rows.made[key] = made
    return made


def _share(plan: Plan, task: int, bias: Tensor | None) -> tuple[OwnTensor | None, Tensor | None]:
    """A task's weight, and its bias as kernels take it."""
    kept: tuple[OwnTensor | None, Tensor | None] | None = plan.kept.get(task)
    if kept is not None:
        return kept
    more = None if bias is None else plan.own("bias", task)
    value = None if more is None or bias is None else wide(more.whole(bias))
    found = plan.own("weight", task), value
    if value is None or (isinstance(more, StoredTensor) and value.data_ptr() == more.values.data_ptr()):
        plan.kept[task] = found
    return found


def _write(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if bias is None:
        torch.mm(x, weight.T, out=out)
    else:
        torch.addmm(bias, x, weight.T, out=out)


def wide(bias: Tensor | None) -> Tensor | None:
    """As kernels take it."""
    return None if bias is None else bias.detach().float()


def by_product(own: OwnTensor, base: Tensor, tokens: int, backend: Products | None = None) -> bool:
    """Whether what a task adds is quicker computed from its marks than its layer is decoded."""
    backend = backend or products(base.device.type)
    if not isinstance(own, RowsTensor) or own.tail is not None or not backend.takes(own.packed, base):
        return False
    if isinstance(own.packed, DeviceRows):
        return tokens <= _FEW_ON_DEVICE
    return own.packed.marks * (_TOKEN * tokens - _MARK) < WRITE * own.packed.numel


def _by_rows(backend: Products, own: OwnTensor, base: Tensor, tokens: int) -> bool:
    """Whether a task's own rows are quicker made and multiplied than either of the other ways."""
    if not isinstance(own, RowsTensor) or own.tail is not None or not backend.makes(own.packed, base):
        return False
    if tokens * own.packed.width > _COLUMNS:
        return False
    marks, size = own.packed.marks, own.packed.numel
    return _PUT * marks + COPY * size < _TOKEN * tokens * marks
