"""Items that are made in a thread of their own while the one who asked works with those before."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import TypeVar

T = TypeVar("T")
_DEPTH = 8
"""Items that are made and not yet taken."""


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, and the same error at the same place.

    The thread, and those that it starts, may run on every core that any of the process's threads may: an engine that
    binds its own to one each would have them all on the core of the one who asks.
    """
    done = threading.Event()
    queue: Queue[tuple[bool, T | BaseException | None]] = Queue(_DEPTH)

    def work() -> None:
        _unbind()
        try:
            for item in items:
                queue.put((True, item))
                if done.is_set():
                    return
            queue.put((False, None))
        except BaseException as error:  # handed over
            queue.put((False, error))

    thread = threading.Thread(target=work, name="tallstore-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = queue.get()
            if not more:
                if isinstance(item, BaseException):
                    raise item
                return
            yield item  # type: ignore[misc] # an item: there are more
    finally:
        done.set()
        with contextlib.suppress(Empty):
            while True:
                queue.get_nowait()  # whoever waits to put one goes on, sees the end, and ends
        thread.join()


def _unbind() -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    cores: set[int] = set()
    with contextlib.suppress(OSError):
        for each in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that ended meanwhile
                cores |= os.sched_getaffinity(int(each.name))
        os.sched_setaffinity(0, cores)
