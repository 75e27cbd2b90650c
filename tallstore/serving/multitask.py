"""`Zoo.multitask`: one model whose rows are each computed with a task's own weights.

The model is a copy in structure alone: modules are new objects, parameters are the given model's. That one stays as it
is, and is the base's model; forgetting the copy undoes everything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tallstore.archive.decode import Decoder
from tallstore.archive.load_into import version_of
from tallstore.errors import ModelChangedError, ModelMismatchError, NoSuchTaskError, OptionError
from tallstore.format.manifest import names_of
from tallstore.kernels.native import library
from tallstore.serving.layers import kind_of, planned, rows_of_places
from tallstore.serving.plan import Plan
from tallstore.serving.prepare import PreparedTensors, prepare
from tallstore.serving.rows import BASE, BatchRows, Call
from tallstore.serving.task_by_task import by_task
from tallstore.serving.tensors import OwnTensor, Shelf
from tallstore.serving.watch import watched

__all__ = ["MultitaskModel"]

_FULL = 512
"""Tokens of each task from which on tasks are computed one after the other."""
_OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""They use the parameters of modules inside them without calling these."""


class MultitaskModel(nn.Module):
    """A model that computes each row of a batch with the weights of the task that is named for it.

    Linear layers compute the base once for all rows, and what each task adds for its own rows, from packed weights. It
    is for inference: gradients are not computed. Several threads may use it at once.
    """

    def __init__(
        self,
        decoder: Decoder,
        url: str,
        model: nn.Module,
        tasks: Mapping[str, bool],
        *,
        decoded_bytes: int,
        write: bool,
    ) -> None:
        super().__init__()
        if decoded_bytes < 0:
            raise OptionError(f"decoded_bytes {decoded_bytes} is not a number of bytes (0 or more)")
        _check_kind(model)
        self._tasks, self._url = tuple(tasks), url
        self._number = {task: number for number, task in enumerate(self._tasks)}
        self._call, self._shelf = Call(), Shelf(decoded_bytes)
        self._prepared = prepare(decoder, model, tasks, self._shelf, url, write=write)
        self.model = _copied(model)
        self._layers = _layers(self.model, self._prepared)
        for name, module, tensors in self._layers:
            planned(module, Plan(name, self._call, tensors), kind_of(module, tensors))
        for name, module in self.model.named_modules():
            if hasattr(type(module), "compute_bias"):
                rows_of_places(module, name, self._call)
        self._seen_once = False
        self._seen = [(name, tensor, version_of(tensor), tensor.data_ptr()) for name, tensor in self._used()]
        self.train(model.training)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What rows can be."""
        return self._tasks

    @property
    def config(self) -> Any:
        """The model's configuration, if it has one."""
        return getattr(self.model, "config", None)

    @property
    def resident_bytes(self) -> int:
        """Memory held for tasks, without the model's own: packed rows, what is stored, and what is decoded now."""
        held: dict[int, int] = {}
        for own in (own for each in self._prepared.tensors.values() for own in each if own is not None):
            for part in own.memory:
                size = part.numel() * part.element_size() if isinstance(part, Tensor) else part.nbytes
                held[part.data_ptr() if isinstance(part, Tensor) else id(part)] = size
        plans = (module.__dict__.get("plan") for module in self.model.modules())
        tables = sum(plan.nbytes for plan in plans if isinstance(plan, Plan))
        return sum(held.values()) + self._prepared.vector_bytes + tables + self._shelf.nbytes

    @contextmanager
    def using(self, tasks: Sequence[str | None]) -> Iterator[nn.Module]:
        """Within this, in this thread, rows are these tasks'; gives the inner model.

        Args:
            tasks: a name for each row of the batch; None for the base.

        Raises:
            NoSuchTaskError, OptionError: nothing was computed.
        """
        token = self._call.begin(self._rows(tasks))
        try:
            with torch.no_grad(), library.held():
                yield self.model
        finally:
            self._call.end(token)

    def forward(self, *inputs: Any, tasks: Sequence[str | None], **options: Any) -> Any:
        """What the model computes.

        Args:
            *inputs: the model's.
            tasks: a name for each row of the batch; None for the base.
            **options: the model's.

        Returns:
            what the model gives. Where tasks have other numbers of outputs (heads), all have as many as the largest,
            and those that a task lacks are −∞: `outputs` says how many a task has.

        Raises:
            NoSuchTaskError: a name that this model was not made for.
            OptionError: other than one name for each row.
            ModelChangedError: the base's weights were changed since.
        """
        with self.using(tasks):
            self._check_rows(inputs, options, len(tasks))
            with self._watched():
                if self._full(inputs, options):
                    return by_task(self._call, "the model", lambda _: self.model, inputs, options)
                return self.model(*inputs, **options)

    def generate(self, *inputs: Any, tasks: Sequence[str | None], **options: Any) -> Any:
        """The same of the model's own `generate`, as transformers' models have it: `tasks` names each prompt's task.

        Beams and several answers a prompt are their prompt's task.
        """
        with self.using(tasks):
            self._check_rows(inputs, options, len(tasks))
            with self._watched():
                return self.model.generate(*inputs, **options)  # type: ignore[operator]

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """In the first call, raise for parameters that something other than their layers computed with."""
        if self._seen_once:
            yield
            return
        with watched({name: module for name, module, _ in self._layers}) as found:
            yield
        if found:
            raise ModelMismatchError(
                f"the model computes with its {', '.join(map(repr, sorted(found)[:3]))} outside the layer's own call: "
                "every row would get the base's; have it call the layer, or give each task a model of its own"
            )
        self._seen_once = True

    def _rows(self, tasks: Sequence[str | None]) -> BatchRows:
        if isinstance(tasks, str) or not len(tasks):
            raise OptionError(f"tasks={tasks!r}: expected one name for each row of the batch, in a list")
        for task in tasks:
            if task is not None and task not in self._number:
                raise NoSuchTaskError(f"{self._url}: the model has no task {task!r}; it has {names_of(self._tasks)}")
        for name, tensor, version, pointer in self._seen:
            if tensor.data_ptr() != pointer or version_of(tensor) != version:
                raise ModelChangedError(
                    f"the model's {name!r} was changed since the tasks were prepared: prepare them anew"
                )
        return BatchRows(tuple(BASE if task is None else self._number[task] for task in tasks))

    def _full(self, inputs: Sequence[Any], options: Mapping[str, Any]) -> bool:
        """Whether each task has so many tokens that there is nothing to share: then it is computed by itself.

        What layers pass on stays in the cache. Models that keep state between calls are computed at once.
        """
        rows, values = self._call.rows("the model"), (*inputs, *options.values())
        sizes = [value.numel() for value in values if isinstance(value, Tensor) and value.dim() == 2]
        few = min((run.last - run.first for run in rows.runs), default=0)
        keeps = getattr(self.model, "can_generate", bool)()
        known = all(isinstance(value, Tensor | bool | None) for value in values)
        return not keeps and known and bool(sizes) and few * max(sizes) >= _FULL * len(rows)

    def _used(self) -> Iterator[tuple[str, Tensor]]:
        """The base's tensors that are computed with."""
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and (name in self._prepared.bases or id(tensor) in self._prepared.tensors):
                yield name, tensor

    @staticmethod
    def _check_rows(inputs: Sequence[Any], options: Mapping[str, Any], named: int) -> None:
        first = next((x for x in (*inputs, *options.values()) if isinstance(x, Tensor) and x.dim()), None)
        if first is not None and first.shape[0] != named:
            raise OptionError(f"{named} tasks are named, the batch has {first.shape[0]} rows: expected one for each")


def _check_kind(model: nn.Module) -> None:
    """Raise for a model whose layers cannot be computed by row."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelMismatchError(
                f"the model's {name or 'whole'!r} is compiled: give the model that it was made from"
            )
        if getattr(module, "batch_first", True) is False:
            raise ModelMismatchError(f"the model's {name!r} has rows second (batch_first=False): tasks are told by row")
        if "forward" in module.__dict__:
            raise ModelMismatchError(f"the model's {name!r} has another forward (a hook of accelerate, perhaps)")
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor.is_meta:
                raise ModelMismatchError(
                    f"the model's {name!r} has no memory (device meta): a mixed batch needs all of a model in memory"
                )


def _copied(model: nn.Module) -> nn.Module:
    """The same modules in other objects, with the same parameters and buffers."""
    held = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})


def _layers(
    model: nn.Module, prepared: PreparedTensors
) -> list[tuple[str, nn.Module, dict[str, list[OwnTensor | None]]]]:
    """Modules with tensors that any task has otherwise, and these by the module's own names."""
    layers: list[tuple[str, nn.Module, dict[str, list[OwnTensor | None]]]] = []
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        opaque = isinstance(module, _OPAQUE) or parametrize.is_parametrized(module)
        if opaque:
            inside.append(name)
        tensors = module.state_dict(keep_vars=True) if opaque else {**module._parameters, **module._buffers}
        own = {n: prepared.tensors[id(t)] for n, t in tensors.items() if id(t) in prepared.tensors}
        if own:
            layers.append((name, module, own))
    return layers
