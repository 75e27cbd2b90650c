"""What vLLM calls in each of its processes: enters the loader, if this vLLM has the ways in that it needs.

Most of these processes load no weights, and most engines are not ours: the loader is entered when vLLM loads its table
of loaders, and is loaded itself when it is asked for.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from tallstore.engines.on_import import after_import
from tallstore.errors import EngineError

__all__ = ["FORMAT", "check_vllm", "register"]

FORMAT = "tallstore"
"""The name of the load format."""
_TABLE = "vllm.model_executor.model_loader"

entered: list[str] = []
"""vLLM asks more than once, and warns of what is entered again."""


def register() -> None:
    """Enter the loader as the load format `tallstore`. Does not stop a vLLM that lacks the ways in.

    A vLLM that never asks for the format is not to be bothered; one that does says that it does not know it, and the
    warning says why.
    """
    try:
        there = find_spec(_TABLE) is not None
    except (ImportError, ValueError):
        there = False
    if there:
        after_import(_TABLE, _enter)
    else:
        _enter()


def _enter() -> None:
    """Enter it, or warn."""
    if entered:
        return
    try:
        check_vllm()
    except EngineError as error:
        warnings.warn(str(error), stacklevel=2)
        return
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class LoaderWhenAsked(BaseModelLoader):
        """Makes the loader, which is imported then."""

        def __new__(cls, load_config: Any) -> Any:
            from tallstore.engines.vllm import loader

            return loader.ArchiveLoader(load_config)

    register_model_loader(FORMAT)(LoaderWhenAsked)
    entered.append(FORMAT)


def check_vllm() -> None:
    """Raise EngineError for a vLLM that is too old or too new for the ways in."""
    lacks = _lacks()
    if lacks is not None:
        try:
            there = version("vllm")
        except ImportError:
            there = "of an unknown version"
        raise EngineError(f"vLLM {there} has no {lacks}: tallstore's loader needs vLLM 0.32, or a newer tallstore")


def _lacks() -> str | None:
    """The first way in that this vLLM has not."""
    import inspect

    try:
        from vllm.model_executor.model_loader import register_model_loader  # noqa: F401
        from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    except ImportError:
        return "register_model_loader"
    if not {"download_model", "load_weights", "load_model"} <= set(vars(BaseModelLoader)):
        return "BaseModelLoader with load_weights"
    try:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload  # noqa: F401
        from vllm.model_executor.model_loader.reload.inplace import reload_weights
    except ImportError:
        return "reload_weights of workers"
    if "weights_iterator" not in inspect.signature(reload_weights).parameters:
        return "reload_weights with a weights_iterator"
    return None
