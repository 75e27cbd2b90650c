"""Work that may fail for a moment, tried again: requests to servers that are busy, or far."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tallstore.errors import UnreachableError

__all__ = ["FIRST_WAIT", "TRIES", "TransientError", "with_retries"]

TRIES = 5
FIRST_WAIT = 0.25
"""Seconds before the second try; each further one waits twice as long."""
T = TypeVar("T")


class TransientError(Exception):
    """A request failed in a way that may pass. Its text says how. Never seen by a caller."""


def with_retries(what: str, work: Callable[[], T], tries: int = TRIES) -> T:
    """Work, tried again while it fails in a way that may pass; at last an UnreachableError that begins with `what`."""
    for number in range(tries):
        try:
            return work()
        except TransientError as error:
            why = str(error)
        if number + 1 < tries:
            time.sleep(FIRST_WAIT * 2**number)
    raise UnreachableError(f"{what}: no answer that can be used, {tries} times ({why}); try again later")
