"""Which rows of a batch are which task's, while a model runs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tallstore.errors import ModelMismatchError, OptionError

__all__ = ["BASE", "BatchRows", "Call", "Run", "Tokens"]

BASE = -1
"""Stands for the base in the place of a task's number."""


class Run(NamedTuple):
    """Neighbours of one task."""

    task: int
    """Its number, or `BASE`."""
    first: int
    last: int
    """The one behind its last."""


@dataclass(frozen=True, eq=False)
class BatchRows:
    """The task of each row of a batch. Layers see rows first; each may stand for several (beams, tokens made flat)."""

    tasks: tuple[int, ...]
    order: Tensor | None = field(init=False)
    """Rows with those of each task side by side: int64; None where they are."""
    back: Tensor | None = field(init=False)
    """Its inverse."""
    runs: tuple[Run, ...] = field(init=False)
    """Of ordered rows."""
    made: dict[Any, Any] = field(init=False, default_factory=dict)
    """What layers made for these rows, and use again while the call lasts."""

    def __post_init__(self) -> None:
        first: dict[int, int] = {}
        for at, task in enumerate(self.tasks):
            first.setdefault(task, at)
        places = sorted(range(len(self.tasks)), key=lambda at: (first[self.tasks[at]], at))
        order = torch.tensor(places) if places != list(range(len(places))) else None
        runs: list[Run] = []
        for at, row in enumerate(places):
            task = self.tasks[row]
            if runs and runs[-1].task == task:
                runs[-1] = runs[-1]._replace(last=at + 1)
            else:
                runs.append(Run(task, at, at + 1))
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "back", None if order is None else order.argsort())
        object.__setattr__(self, "runs", tuple(runs))

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def numbers(self) -> Tensor:
        """The tasks' numbers, int64, shape (rows,)."""
        return torch.tensor(self.tasks)

    @property
    def alone(self) -> bool:
        """Whether all rows are one task's: then it does not matter how layers see them."""
        return len(self.runs) == 1

    def each(self, size: int, name: str) -> int:
        """How many of a layer's `size` leading elements belong to each row."""
        if size % len(self.tasks):
            raise ModelMismatchError(
                f"the layer {name!r} sees {size} rows, and {len(self.tasks)} tasks were named: expected one for each "
                "row of the batch, and the model must have rows first in every layer"
            )
        return size // len(self.tasks)


@dataclass(frozen=True)
class Tokens:
    """A layer's input as tokens, those of each task side by side, and the way back."""

    flat: Tensor
    """Shape (tokens, …)."""
    runs: tuple[Run, ...]
    """Of tokens."""
    rows: BatchRows
    lead: tuple[int, ...]
    """The input's leading sizes."""

    @classmethod
    def of(cls, x: Tensor, own: int, rows: BatchRows, name: str) -> Tokens:
        """Of an input whose last `own` dimensions are a token's own."""
        lead, token = tuple(x.shape[: x.dim() - own]), x.shape[x.dim() - own :]
        if rows.alone:
            flat = x.reshape(-1, *token)
            return cls(flat, (Run(rows.runs[0].task, 0, len(flat)),), rows, lead)
        if lead and lead[0] == 1 < len(rows):  # one for all rows
            lead = (len(rows), *lead[1:])
            x = x.expand(*lead, *token)
        rows.each(lead[0] if lead else 1, name)
        own_rows = x.reshape(len(rows), -1, *token)
        if rows.order is not None:
            own_rows = own_rows[rows.order]
        n = own_rows.shape[1]
        runs = rows.runs if n == 1 else tuple(Run(t, a * n, b * n) for t, a, b in rows.runs)
        return cls(own_rows.reshape(-1, *token), runs, rows, lead)

    def back(self, y: Tensor) -> Tensor:
        """Outputs, shape (tokens, …), as a layer gives them."""
        if self.rows.order is not None and not self.rows.alone:
            y = y.reshape(len(self.rows), -1, *y.shape[1:])[self.rows.back]
            return y.reshape(*self.lead, *y.shape[2:])
        return y.reshape(*self.lead, *y.shape[1:])


class Call:
    """What a model's layers are told while it runs: of each thread and each task of asyncio its own."""

    def __init__(self) -> None:
        self._rows: ContextVar[BatchRows | None] = ContextVar("rows", default=None)

    def rows(self, name: str) -> BatchRows:
        """The rows of the batch that runs; `name`: of the layer that asks."""
        rows = self._rows.get()
        if rows is None:
            raise OptionError(
                f"layer {name!r}: which task is each row of the batch? Say it by forward(…, tasks=[…]) or in "
                "with model.using([…])"
            )
        return rows

    def begin(self, rows: BatchRows) -> object:
        """From now on; returns what `end` takes."""
        return self._rows.set(rows)

    def end(self, token: object) -> None:
        """As before."""
        self._rows.reset(token)  # type: ignore[arg-type]
