"""What is made in a thread of its own while the one who asked works with other things: one result, or items in turn."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Empty, Queue
from typing import TypeVar

from tallstore.engines.cores import unbind

T = TypeVar("T")
_DEPTH = 8
"""Items that are made and not yet taken."""


def begun(work: Callable[[], T]) -> Callable[[], T]:
    """Begin some work; what is given back waits for it, and gives its result or raises its error.

    The thread, and those that it starts, may run on every core that the engine may use.
    """
    result: Future[T] = Future()

    def run() -> None:
        unbind()
        try:
            result.set_result(work())
        except BaseException as error:  # handed over
            result.set_exception(error)

    threading.Thread(target=run, name="tallstore-begun", daemon=True).start()
    return result.result


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
