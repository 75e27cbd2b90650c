"""What makes `import tallstore` enough for transformers to know thin folders, at no cost where it is not used.

transformers keeps its table of quantizers in one module. If that is loaded already, ours is entered at once; if not,
Python's own import machinery is told to enter it when that module has been loaded. transformers is not imported for it,
and nothing of it is replaced. (What finds and loads modules is told by its methods: the base classes in `importlib.abc`
cost more to import than all of this package.)
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_TABLE = "transformers.quantizers.auto"
_OURS = "tallstore.engines.transformers"


def register_with_transformers() -> None:
    """Enter our quantizer now, or when transformers loads its table of them. Any number of calls are as one."""
    if _TABLE in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    """An import that cannot be fulfilled (a transformers that is too old or too new) leaves transformers as it is."""
    try:
        importlib.import_module(_OURS)
    except ImportError as error:
        import warnings

        warnings.warn(f"thin folders of tallstore cannot be loaded by this transformers ({error})", stacklevel=2)


class _AfterImport:
    """Finds one module as Python itself would, and has something done once it is loaded. Then it is gone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TABLE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            sys.meta_path.remove(self)
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment] # by its methods
        return spec


class _Loader:
    """The module's own loader, and what comes behind it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._inner.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            module.__loader__ = spec.loader = self._inner
        self._inner.exec_module(module)
        _register()
