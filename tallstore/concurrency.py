"""Threads: jobs side by side, results in order, and work in the background.

One rule for all three. Of errors, the one of the earliest job is raised. After an error, or an interrupt of the caller,
no further job begins, and what is at work ends before the caller goes on: nothing works on memory that was given up.
What a user chooses as an engine to pack with is `encoder.engine`; nothing else in the package starts threads.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

__all__ = ["Background", "ordered", "run_all"]

_T = TypeVar("_T")


def run_all(
    jobs: Sequence[Callable[[], object]],
    threads: int,
    name: str = "tallstore",
    within: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """Run jobs side by side, the calling thread among the workers.

    Args:
        jobs: what to run, in the order in which they begin.
        threads: how many at a time, at most. Where no more threads can be had, those that there are do all of it.
        name: of the threads, for debuggers.
        within: what each of the workers is in meanwhile.
    """
    waiting = deque(enumerate(jobs))
    failed: list[tuple[int, BaseException]] = []

    def work() -> None:
        index = -1
        try:
            with within():
                while waiting and not failed:
                    try:
                        index, job = waiting.popleft()
                    except IndexError:  # another worker took it
                        return
                    job()
        except BaseException as error:  # raised below
            failed.append((index, error))

    helpers = []
    with contextlib.suppress(RuntimeError):  # no more threads can be had
        for n in range(1, min(threads, len(jobs))):
            helper = threading.Thread(target=work, name=f"{name}-{n}", daemon=True)
            helper.start()
            helpers.append(helper)
    try:
        work()
        for helper in helpers:
            helper.join()
    except BaseException as error:  # interrupted while waiting: the others end with what they are at
        failed.append((-1, error))
        for helper in helpers:
            helper.join()
    if failed:
        raise min(failed, key=itemgetter(0))[1]


def ordered(
    jobs: Iterable[Callable[[], _T]],
    threads: int,
    *,
    ahead: int,
    name: str = "tallstore",
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Generator[_T, None, None]:
    """Results of jobs, in order, some of them worked on before they are asked for.

    Args:
        jobs: taken one by one, as there is room; the iterable is used by the calling thread alone.
        threads: how many jobs at a time.
        ahead: results that are waited for or held at a time: what bounds the memory.
        name: of the threads, for debuggers.
        initializer: called in each thread at its beginning, with `initargs`.
        initargs: its arguments.
    """
    coming = iter(jobs)
    waiting: deque[Future[_T]] = deque()
    pool = ThreadPoolExecutor(threads, name, initializer=initializer, initargs=initargs)
    try:
        while True:
            waiting.extend(pool.submit(job) for job in islice(coming, ahead - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Background:
    """Threads to which work is given as it comes up."""

    def __init__(self, threads: int | None, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)

    def submit(self, work: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have it done, as soon as a thread is free."""
        return self._pool.submit(work, *arguments)

    def close(self, *, wait: bool = False) -> None:
        """Cancel what has not begun; `wait` for the end of what has, where that uses memory that goes."""
        self._pool.shutdown(wait=wait, cancel_futures=True)
