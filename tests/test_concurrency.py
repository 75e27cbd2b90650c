"""Threads: every job runs once, results are in order, and of several errors the earliest job's is raised."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial

import pytest

from tallstore.concurrency import Background, ordered, run_all


def failing(number: int) -> None:
    raise ValueError(number)


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_every_job_runs_once(threads: int) -> None:
    done: list[int] = []
    run_all([partial(done.append, number) for number in range(100)], threads)
    assert sorted(done) == list(range(100))
    run_all([], threads)


def test_the_calling_thread_works_too() -> None:
    seen: set[int] = set()
    run_all([lambda: seen.add(threading.get_ident())] * 3, 1)
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("threads", [1, 4])
def test_the_earliest_error_is_raised_and_nothing_begins_after_it(threads: int) -> None:
    begun: list[int] = []
    meeting = threading.Barrier(threads)

    def work(number: int) -> None:
        begun.append(number)
        if number < threads:
            meeting.wait(30)  # all of the first are at work when the first of them fails
            failing(number)

    with pytest.raises(ValueError, match="0"):
        run_all([partial(work, number) for number in range(100)], threads)
    assert len(begun) <= 2 * threads


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 3), (8, 40)])
def test_results_come_in_order_and_few_are_held(threads: int, ahead: int) -> None:
    taken = 0

    def jobs() -> object:
        nonlocal taken
        for number in range(60):
            taken += 1
            yield partial(int, number)

    for number, result in enumerate(ordered(jobs(), threads, ahead=ahead)):  # type: ignore[arg-type]
        assert result == number
        assert taken <= number + 1 + ahead
    assert taken == 60


def test_an_error_ends_what_is_ordered_and_cancels_the_rest() -> None:
    begun: list[int] = []

    def job(number: int) -> Callable[[], None]:
        return lambda: begun.append(number) if number != 2 else failing(number)

    results = ordered(map(job, range(1000)), 1, ahead=5)
    with pytest.raises(ValueError, match="2"):
        list(results)
    assert max(begun) < 20


def test_what_is_left_early_waits_for_what_is_at_work() -> None:
    running, release = threading.Event(), threading.Event()
    ended: list[int] = []

    def work() -> None:
        running.set()
        release.wait(30)
        ended.append(1)

    with closing(ordered([lambda: None, work, lambda: ended.append(2)], 1, ahead=3)) as results:
        next(results)
        assert running.wait(30)
        threading.Timer(0.05, release.set).start()
    assert ended == [1], "it ended before the caller went on, and the job after it never began"


def test_background_work_is_done_or_cancelled() -> None:
    pool, release = Background(1, "test"), threading.Event()
    first, second = pool.submit(release.wait, 30), pool.submit(int, "7")
    pool.close()
    release.set()
    assert first.result() is True
    assert second.cancelled()
