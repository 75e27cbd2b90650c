"""Functions with two implementations: the reference, which is the truth, and the native library's, which equals it.

Such a function is declared where it belongs, by its reference, and its native kernel below that:

    @kernel
    def bits_on(words): ...  # in numpy or torch

    @bits_on.native
    def _(words):
        return encode.bits_on(words)

Whoever calls it gets the native one where the library is in use (see `native.library`); `bits_on.reference` is what
tests hold it against. `KERNELS` is the table of all. Jobs of several steps that share memory between them have backends
as classes in place of this: decoding and merging (`decoding_backends`), products (`products`), whole rows
(`encoder.backend`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

from tallstore.kernels.native import library

__all__ = ["KERNELS", "Kernel", "kernel"]

P = ParamSpec("P")
R = TypeVar("R")


class Kernel(Generic[P, R]):
    """A function with a reference and a native implementation; `kernel` makes one."""

    def __init__(self, reference: Callable[P, R]) -> None:
        update_wrapper(self, reference)
        self.reference = reference
        self.name = f"{reference.__module__.removeprefix('tallstore.')}.{reference.__qualname__}"
        """By which `KERNELS` knows it: module and function."""
        self._native = reference
        self._takes: Callable[P, bool] | None = None

    def native(self, function: Callable[P, R]) -> Callable[P, R]:
        """Declare what calls the native library: the same arguments, the same bits."""
        self._native = function
        return function

    def takes(self, condition: Callable[P, bool]) -> Callable[P, bool]:
        """Declare which arguments the native library takes; the reference gets the others. By default it takes all."""
        self._takes = condition
        return condition

    def is_native(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether a call with these arguments goes to the native library."""
        return library.chosen() is not None and (self._takes is None or self._takes(*args, **kwargs))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the backend in use."""
        return (self._native if self.is_native(*args, **kwargs) else self.reference)(*args, **kwargs)

    def __reduce__(self) -> str:
        """By name, as functions are: another process has its own."""
        return self.reference.__qualname__


KERNELS: dict[str, Kernel[..., Any]] = {}
"""Every kernel of the modules that are loaded, by name."""


def kernel(reference: Callable[P, R]) -> Kernel[P, R]:
    """Declare a function that has a native kernel, by its reference: a decorator."""
    made = Kernel(reference)
    KERNELS[made.name] = made
    return made
