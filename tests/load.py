"""Many readers at once: threads and processes on one archive, readers while it is replaced, thousands of openings.

    PYTHONPATH=.:tests python -m load            # 64 threads, 8 processes, 200 replacements, 5,000 openings

Whatever is given is compared, to the bit, with what was packed. Memory and file handles must not grow.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from pathlib import Path

from support import State, assert_same, near, noise

import tallstore

NAMES = ("zoo", "zoo.tall")
TASKS = 8
GROWTH = 32 << 20
"""Bytes of memory that may stay after thousands of openings: what allocators keep. One leaked map is more than that."""


def generation(n: int, size: int = 60_000) -> tuple[State, dict[str, State]]:
    """Base and tasks; those of two generations differ in every task."""
    base = {"layer": noise(size // 100, 100, seed=1), "bias": noise(300, seed=2)}
    tasks = {
        f"task{t}": {name: near(weight, 1000 * n + 10 * t + i) for i, (name, weight) in enumerate(base.items())}
        for t in range(TASKS)
    }
    return base, tasks


def put(path: Path, n: int, size: int = 60_000) -> dict[str, State]:
    """Pack a generation there, in the place of any other, exactly; gives its tasks."""
    base, tasks = generation(n, size)
    tallstore.pack(base, tasks, path, exact="all", overwrite=True)
    return tasks


def handles() -> int:
    """Files that this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone


def memory() -> int:
    """Bytes of memory that this process has in use."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads_on_one_zoo(path: Path, tasks: dict[str, State], threads: int, rounds: int) -> int:
    """Decode all tasks from one open zoo in so many threads at once; gives how many decodes were right."""
    start = threading.Barrier(threads)
    with tallstore.open(path, threads=2) as zoo:

        def work(number: int) -> int:
            start.wait()
            for turn in range(rounds):
                task = f"task{(number + turn) % TASKS}"
                assert_same(zoo.state_dict(task, exact=True), tasks[task])
            return rounds

        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(work, range(threads)))


def fresh() -> ForkServerContext:
    """Processes of their own, of one that has imported what takes seconds and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "tallstore.zoo", "tallstore.encoder.pack"])
    return context


def _process(path: Path, tasks: dict[str, State], threads: int, rounds: int) -> None:
    threads_on_one_zoo(path, tasks, threads, rounds)


def processes(path: Path, tasks: dict[str, State], count: int, threads: int, rounds: int) -> int:
    """The same in so many processes at once, of so many threads each."""
    context = fresh()
    running = [context.Process(target=_process, args=(path, tasks, threads, rounds)) for _ in range(count)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * count
    return count * threads * rounds


def _replace(path: Path, times: int, size: int, ready: Event) -> None:
    ready.set()
    for n in range(1, times + 1):
        put(path, n % 2, size)


def replaced_while_read(path: Path, readers: int, times: int, size: int = 6_000) -> int:
    """Readers open, decode every task and close, while another process replaces the archive; gives their decodes.

    Every reading is of one generation, whole; nothing is refused.
    """
    generations = [put(path, 1, size), put(path, 0, size)]
    generations.reverse()
    context = fresh()
    ready = context.Event()
    writer = context.Process(target=_replace, args=(path, times, size, ready))

    def read(_: int) -> int:
        done = 0
        while writer.is_alive() or not done:
            with tallstore.open(path, threads=1) as zoo:
                first = zoo.state_dict("task0", exact=True)
                mine = generations[not (first["layer"] == generations[0]["task0"]["layer"]).all()]
                for task in reversed(zoo.tasks):
                    assert_same(zoo.state_dict(task, exact=True), mine[task])
                done += len(zoo.tasks)
        return done

    writer.start()
    assert ready.wait(120), "the writer has imported: from here on they are at it together"
    with ThreadPoolExecutor(readers) as pool:
        decodes = sum(pool.map(read, range(readers)))
    writer.join()
    assert writer.exitcode == 0
    put(path, 0, size)
    assert [p.name for p in path.parent.iterdir() if "partial" in p.name] == [], "nothing piles up"
    return decodes


def openings(path: Path, tasks: dict[str, State], times: int) -> tuple[int, int]:
    """Open, decode a task, close, again and again; gives what is left of handles and bytes, beyond the first tenth's."""

    def once(turn: int) -> None:
        task = f"task{turn % TASKS}"
        with tallstore.open(path, threads=1, mapped=bool(turn % 3)) as zoo:
            assert_same(zoo.state_dict(task, exact=True), tasks[task])

    for turn in range(times // 10 + 1):
        once(turn)
    before = handles(), memory()
    for turn in range(times):
        once(turn)
    return handles() - before[0], memory() - before[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--replacements", type=int, default=200)
    parser.add_argument("--openings", type=int, default=5000)
    args = parser.parse_args()
    print("| what | archive | right | seconds |\n|---|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            path = Path(folder) / name
            tasks = put(path, 0)
            _row(f"{args.threads} threads", name, partial(threads_on_one_zoo, path, tasks, args.threads, args.rounds))
            each = partial(processes, path, tasks, args.processes, 8, args.rounds)
            _row(f"{args.processes} processes of 8 threads", name, each)
            what = f"8 readers, replaced {args.replacements} times"
            _row(what, name, partial(replaced_while_read, path, 8, args.replacements))
            tasks = put(path, 0)
            begun = time.monotonic()
            left = openings(path, tasks, args.openings)
            assert left[0] <= 0 and left[1] < GROWTH, left  # noqa: PT018 - both are shown
            print(
                f"| {args.openings:,} openings: {left[0]:+} handles, {left[1] / 2**20:+.1f} MiB | {name} "
                f"| {args.openings:,} | {time.monotonic() - begun:.0f} |"
            )
    return 0


def _row(what: str, name: str, work: Callable[[], int]) -> None:
    begun = time.monotonic()
    done = work()
    print(f"| {what} | {name} | {done:,} | {time.monotonic() - begun:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
