"""Items that are made in a thread of their own while the one who asked works with those before."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from queue import Empty, Queue
from typing import TypeVar

from tallstore.engines.cores import unbind

T = TypeVar("T")
_DEPTH = 8
"""Items that are made and not yet taken."""


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, and the same error at the same place.

    The thread, and those that it starts, may run on every core that the engine may use.
    """
    done = threading.Event()
    queue: Queue[tuple[bool, T | BaseException | None]] = Queue(_DEPTH)

    def work() -> None:
        unbind()
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
