"""Entering what is ours into a library's tables once that library loads them, at no cost where it never does.

`import tallstore` is enough for transformers to know thin folders, and for vLLM to know our load format. If the module
that has the table is loaded already, ours is entered at once; if not, Python's own import machinery is told to enter it
when that module has been loaded. The library is not imported for it, and nothing of it is replaced. (What finds and
loads modules is told by its methods: the base classes in `importlib.abc` cost more to import than all of this package.)
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_TABLE = "transformers.quantizers.auto"
_OURS = "tallstore.engines.transformers_quantizer"


def after_import(module: str, work: Callable[[], object]) -> None:
    """Have something done now, or when a module has been loaded. Any number of calls for a module are as one."""
    if module in sys.modules:
        work()
    elif not any(isinstance(finder, _AfterImport) and finder.module == module for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(module, work))


def register_with_transformers() -> None:
    """Enter our quantizer now, or when transformers loads its table of them."""
    after_import(_TABLE, _register)


def _register() -> None:
    """An import that cannot be fulfilled (a transformers that is too old or too new) leaves transformers as it is."""
    try:
        importlib.import_module(_OURS)
    except ImportError as error:
        import warnings

        warnings.warn(f"thin folders of tallstore cannot be loaded by this transformers ({error})", stacklevel=2)


class _AfterImport:
    """Finds one module as Python itself would, and has something done once it is loaded. Then it is gone."""

    def __init__(self, module: str, work: Callable[[], object]) -> None:
        self.module, self._work = module, work

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._loaded)  # type: ignore[assignment] # by its methods
        return spec

    def _loaded(self) -> None:
        with suppress(ValueError):
            sys.meta_path.remove(self)
        self._work()


class _Loader:
    """The module's own loader, and what comes behind it."""

    def __init__(self, inner: Any, behind: Callable[[], object]) -> None:
        self._inner, self._behind = inner, behind

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._inner.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            module.__loader__ = spec.loader = self._inner
        self._inner.exec_module(module)
        self._behind()
