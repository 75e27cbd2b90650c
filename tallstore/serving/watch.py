"""What a model does with parameters outside the layers that they belong to: seen once, in its first call.

Rows are told apart where a layer is called. Code that takes a layer's parameter and computes with it by itself gets the
base's, for the rows of all tasks: no answer would say so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

__all__ = ["watched"]


@contextmanager
def watched(layers: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Within this, in this thread, note parameters that something else computes with.

    Args:
        layers: those that know of rows, by name.

    Yields:
        the names of parameters, as they are found.
    """
    watch = _Watch(layers)
    handles = []
    for layer in layers.values():
        handles.append(layer.register_forward_pre_hook(watch.enter))
        handles.append(layer.register_forward_hook(watch.leave, always_call=True))
    try:
        with watch:
            yield watch.found
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Sees every function of torch that this thread calls."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._thread, self._depth = threading.get_ident(), 0
        self._names = {
            tensor.untyped_storage().data_ptr(): f"{name}.{leaf}"
            for name, layer in layers.items()
            for leaf, tensor in layer.named_parameters()
        }

    def enter(self, *_: object) -> None:
        """A layer is called."""
        self._depth += threading.get_ident() == self._thread

    def leave(self, *_: object) -> None:
        """It has ended."""
        self._depth -= threading.get_ident() == self._thread

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not self._depth:
            given = {self._storage(each) for each in tree_iter((args, kwargs))} & self._names.keys()
            if given and any(self._storage(each) not in (None, *given) for each in tree_iter(out)):
                self.found |= {self._names[storage] for storage in given if storage is not None}
        return out

    @staticmethod
    def _storage(value: object) -> int | None:
        """Where a tensor's elements lie; views lie where their tensor does."""
        if not isinstance(value, Tensor) or value.is_meta:
            return None
        return value.untyped_storage().data_ptr()
