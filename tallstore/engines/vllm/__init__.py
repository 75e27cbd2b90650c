"""Tasks of an archive in vLLM: served by name, and swapped in a running engine.

    from vllm import LLM
    from tallstore.engines.vllm import engine_options, switch

    llm = LLM(**engine_options("zoo.tall", "trec"))
    switch(llm, "mr")

vLLM finds the loader by itself (`vllm.general_plugins`), in each of its processes: names here are loaded when they are
first used. Nothing here imports vLLM but what vLLM itself asks for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallstore.engines.vllm.options import engine_options
    from tallstore.engines.vllm.switching import serving, switch, switch_async

__all__ = ["engine_options", "serving", "switch", "switch_async"]

_WHERE = {"engine_options": "options", "serving": "switching", "switch": "switching", "switch_async": "switching"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
