"""vLLM warns of every layer that a reload leaves as it is. Where only some are to change that is no news."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_LOGGERS = ("layerwise", "inplace")
_EXPECTED = ("Failed to load weights", "Following weights were not loaded")


def _is_news(record: logging.LogRecord) -> bool:
    return not any(text in str(record.msg) for text in _EXPECTED)


@contextmanager
def without_partial_warnings() -> Iterator[None]:
    """Leave these warnings out, and nothing else."""
    with ExitStack() as stack:
        for name in _LOGGERS:
            logger = logging.getLogger(f"vllm.model_executor.model_loader.reload.{name}")
            logger.addFilter(_is_news)
            stack.callback(logger.removeFilter, _is_news)
        yield
