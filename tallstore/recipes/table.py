"""Making an object from a closed table of classes, by id and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from tallstore.errors import OptionError

__all__ = ["make"]

Made = TypeVar("Made")


def make(noun: str, table: Mapping[str, Callable[..., Made]], chosen: str, options: Mapping[str, object]) -> Made:
    """Call the entry `chosen` of a table with options by name. What is unknown is refused with what there is."""
    if chosen not in table:
        raise OptionError(f"no {noun} {chosen!r}; there are {_listed(table)}")
    known = inspect.signature(table[chosen]).parameters
    if unknown := sorted(options.keys() - known.keys()):
        raise OptionError(f"{noun} {chosen!r} has no option {_listed(unknown)}; it has {_listed(known)}")
    return table[chosen](**options)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
