"""Tasks of an archive in vLLM: served by name, and swapped in a running engine.

    from vllm import LLM
    from tallstore.engines.vllm import engine_options, switch

    llm = LLM(**engine_options("zoo.tall", "trec"))
    switch(llm, "mr")

vLLM finds the loader by itself (`vllm.general_plugins`). Nothing here imports vLLM but what vLLM itself asks for.
"""

from __future__ import annotations

from tallstore.engines.vllm.options import engine_options
from tallstore.engines.vllm.switching import serving, switch, switch_async

__all__ = ["engine_options", "serving", "switch", "switch_async"]
