"""Who does the work: anything behind `concurrent.futures.Executor`. Results come in the order of their numbers.

Threads share the context; processes and a cluster's workers load it. A worker that dies takes its batch with it: the
batch is done again, by another one.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch

from tallstore.encoder.batches import Context, in_worker, publish
from tallstore.errors import MissingExtraError, OptionError, UnreachableError, WorkerError

_R = TypeVar("_R")
Work = Callable[[Context, int], _R]
DASK = "dask"
NAMES = ("threads", "processes", DASK)
_DEATHS = 3
"""How often in a row workers may die before the work is given up."""
PATIENCE = 30
"""Seconds that a scheduler is waited for."""
_AHEAD = 3
"""Batches for each worker that are given out at a time."""


class _Batch(NamedTuple, Generic[_R]):
    """What was given out."""

    number: int
    future: Future[_R]
    executor: Executor

    @property
    def is_lost(self) -> bool:
        """Whether it went with its executor: what had not begun may have been cancelled as that was let go."""
        future = self.future
        return not future.done() or future.cancelled() or isinstance(future.exception(), BrokenExecutor)


class Engine(ABC):
    """Workers. A context manager: they go when it is left."""

    workers: int
    """How many work at a time."""
    hopeless: tuple[type[BaseException], ...] = ()
    """Errors that say that workers died with a batch too often."""
    advice: str = "out of memory, perhaps: take fewer with workers=… (--workers)"
    """What to do about it."""

    @abstractmethod
    def bind(self, work: Work[_R], context: Context) -> Callable[[int], _R]:
        """The work as it is given to workers."""

    @abstractmethod
    def executor(self) -> Executor:
        """What runs it; a new one after `restart`."""

    def restart(self) -> None:
        """Let go of an executor that broke."""

    def close(self) -> None:
        """Let the workers go."""

    def run(self, work: Work[_R], context: Context, numbers: Iterable[int], ahead: int = _AHEAD) -> Iterator[_R]:
        """Work on the batches of these numbers; results in their order.

        Args:
            work: a function of a module.
            context: what it needs.
            numbers: of batches.
            ahead: how many batches are given out at a time, for each worker.

        Raises:
            WorkerError: workers died again and again, or cannot see what they need.
        """
        bound = self.bind(work, context)
        waiting: deque[_Batch[_R]] = deque()
        deaths = 0
        try:
            for number in numbers:
                waiting.append(self._submit(bound, number))
                if len(waiting) >= self.workers * ahead:
                    deaths = self._settle(bound, waiting, deaths)
                    yield waiting.popleft().future.result()
            while waiting:
                deaths = self._settle(bound, waiting, deaths)
                yield waiting.popleft().future.result()
        finally:
            for batch in waiting:
                batch.future.cancel()

    def _submit(self, bound: Callable[[int], _R], number: int) -> _Batch[_R]:
        executor = self.executor()
        try:
            return _Batch(number, executor.submit(bound, number), executor)
        except BrokenExecutor:
            self.restart()
            executor = self.executor()
            return _Batch(number, executor.submit(bound, number), executor)

    def _settle(self, bound: Callable[[int], _R], waiting: deque[_Batch[_R]], deaths: int) -> int:
        """Wait for the first result; where a worker died, give out again what it had. How many died in a row."""
        while True:
            first = waiting[0]
            error = first.future.exception()
            if not isinstance(error, (BrokenExecutor, *self.hopeless)):
                return 0
            deaths += 1
            if deaths >= _DEATHS or isinstance(error, self.hopeless):
                raise WorkerError(f"workers died with batch {first.number}, again and again: {self.advice}") from error
            if first.executor is self.executor():  # else another one took its place when the next batch was given out
                self.restart()
            for place, batch in enumerate(waiting):
                if batch.executor is first.executor and batch.is_lost:
                    waiting[place] = self._submit(bound, batch.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_TURN = 0.0005
"""Seconds that a thread goes on in Python while another one, back from a kernel, waits for its turn: a tenth of what is
usual, since most of the work needs no turn."""


class _ShortTurns:
    """Short turns while any engine of threads is open, and what was before when none is: they are the process's own.

    So are objects that are there already, torch's by the hundred thousand: meanwhile no collection looks at them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines = 0
        self._before = _TURN
        self._froze = False

    def begin(self) -> None:
        with self._lock:
            if not self._engines:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, _TURN))
                self._froze = not gc.get_freeze_count()
                if self._froze:
                    gc.freeze()
            self._engines += 1

    def end(self) -> None:
        with self._lock:
            self._engines -= 1
            if not self._engines:
                sys.setswitchinterval(self._before)
                if self._froze:
                    gc.unfreeze()


_SHORT_TURNS = _ShortTurns()


class Threads(Engine):
    """Threads of this process, each of which computes on one core: items run side by side, not torch's loops in them.

    (Loops over a cache-sized tile are too short to share; waiting for each other costs them many times their work.)
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._before = torch.get_num_threads()
        _SHORT_TURNS.begin()
        self._pool = ThreadPoolExecutor(workers, "tallstore-pack", initializer=torch.set_num_threads, initargs=(1,))

    def bind(self, work: Work[_R], context: Context) -> Callable[[int], _R]:
        return partial(work, context)

    def executor(self) -> Executor:
        return self._pool

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._before)
        _SHORT_TURNS.end()


class GivenExecutor(Engine):
    """An executor that the caller made, and keeps."""

    def __init__(self, executor: Executor, workers: int) -> None:
        self._executor, self.workers = executor, workers

    def bind(self, work: Work[_R], context: Context) -> Callable[[int], _R]:
        return partial(in_worker, publish(context), work)

    def executor(self) -> Executor:
        return self._executor

    def restart(self) -> None:
        raise WorkerError("the executor broke and takes no more work: a worker died, perhaps: make a new one")


class Processes(GivenExecutor):
    """Processes of this machine."""

    advice = f"""{Engine.advice}; a script's own call of pack belongs under `if __name__ == "__main__":`"""

    def __init__(self, workers: int) -> None:
        super().__init__(self.make_executor(workers), workers)

    @staticmethod
    def make_executor(workers: int) -> Executor:
        # Not forked: a process that has threads, torch's and ours, must not be.
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        how = multiprocessing.get_context(kind)
        if kind == "forkserver":
            how.set_forkserver_preload(["tallstore.encoder.batches"])
            multiprocessing.forkserver.ensure_running()  # and so importing, before there is work
        return ProcessPoolExecutor(workers, mp_context=how)

    def restart(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = self.make_executor(self.workers)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


class Dask(GivenExecutor):
    """Workers of a Dask cluster: one that is running, or one of this machine that goes with the job."""

    def __init__(self, address: str | None, workers: int | None) -> None:
        dask = _distributed()
        self.hopeless = (dask.KilledWorker,)
        self._cluster = None
        if address is None:
            self._cluster = dask.LocalCluster(
                n_workers=workers or os.cpu_count() or 1,
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
        try:
            self._client = dask.Client(address or self._cluster, timeout=PATIENCE)
            self._client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, TimeoutError) as error:
            raise UnreachableError(
                f"engine dask: no scheduler with workers answers at {address}: start it, or give another"
            ) from error
        # Work is not pure in Dask's sense: a batch that is given out again is done again.
        super().__init__(self._client.get_executor(pure=False), workers or sum(self._client.nthreads().values()))

    def close(self) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError('engine dask: needs distributed: pip install "tallstore[dask]"') from error
    return distributed


def open_engine(chosen: str | Executor, workers: int | None, most: int) -> Engine:
    """The engine of that name.

    Args:
        chosen: one of `NAMES`; `dask:ADDRESS` of a scheduler; or an executor of any kind.
        workers: how many; by default as many as there are cores.
        most: how many fit this machine's memory.
    """
    if isinstance(chosen, Executor):
        return GivenExecutor(chosen, workers or os.cpu_count() or 1)
    name, _, address = chosen.partition(":")
    if name == DASK:
        return Dask(address or None, workers)
    return _LOCAL[name](workers or max(1, min(os.cpu_count() or 1, most)))


_LOCAL: Mapping[str, Callable[[int], Engine]] = {"threads": Threads, "processes": Processes}


def check_engine(chosen: object) -> None:
    """Raise OptionError for what is no engine."""
    known = isinstance(chosen, str) and (chosen in NAMES or chosen.startswith(f"{DASK}:"))
    if not known and not isinstance(chosen, Executor):
        raise OptionError(f"engine {chosen!r} is unknown; there are {', '.join(NAMES)}, {DASK}:ADDRESS, or an Executor")
