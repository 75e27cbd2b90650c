"""A change that is killed at any moment: the archive as it was, or as it was to be; and no two at once."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Forks, stopped
from support import bytes_of, near, noise

import tallstore
from tallstore.errors import OutputError
from tallstore.stores import open_sink

from .conftest import FORMS, verified

MOMENTS = 2

ADD = """
import tallstore, support
tallstore.add(args[0], {"c": {f"layer{i}": support.near(support.noise(50, 500, seed=i), 23) for i in range(4)}})
"""
REMOVE = """
import tallstore
tallstore.remove(args[0], "a")
"""
COMPACT = """
import tallstore
tallstore.compact(args[0])
"""


def make(path: Path) -> None:
    """An archive for which each of the three has something to do."""
    base = {f"layer{i}": noise(50, 500, seed=i) for i in range(4)}
    tasks = {task: {name: near(w, seed) for name, w in base.items()} for seed, task in ((21, "a"), (22, "b"))}
    tasks["0"] = {name: near(w, 20) for name, w in base.items()}
    tallstore.pack(base, tasks, path, recipe="fit", overwrite=True)
    tallstore.remove(path, "0")


ADD_MERGE = """
import tallstore
tallstore.add_merge(args[0], "mix", "0.5*a + 0.5*b")
"""
HAND_OVER = """
import tallstore
tallstore.remove(args[0], "a", recode=True)
"""


def make_family(path: Path) -> None:
    """A task that shares a tensor with another, and a merge of both."""
    base = {f"layer{i}": noise(50, 500, seed=i) for i in range(4)}
    tasks = {task: {name: near(w, seed) for name, w in base.items()} for seed, task in ((21, "a"), (22, "b"))}
    for state in tasks.values():
        state["tower"] = noise(100, 300, seed=9)
    tallstore.pack(base, tasks, path, quality="lossless", overwrite=True)
    tallstore.add_merge(path, "half", "0.5*a + 0.5*b")


def duration(forks: Forks, job: str, path: Path, make: Callable[[Path], None]) -> float:
    """How long a change takes that is left alone: the shorter of two runs, the first of which imports."""
    taken = []
    for _ in range(2):
        make(path)
        began = time.perf_counter()
        code, text = forks.run(job, str(path))
        assert code == 0, text
        taken.append(time.perf_counter() - began)
    return min(taken)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("job", "make"),
    [(ADD, make), (REMOVE, make), (COMPACT, make), (ADD_MERGE, make_family), (HAND_OVER, make_family)],
    ids=["add", "remove", "compact", "add a merge", "remove a parent"],
)
def test_a_change_that_is_stopped_at_any_moment(
    form: str, job: str, make: Callable[[Path], None], tmp_path: Path, forks: Forks
) -> None:
    path = tmp_path / form
    make(path)
    old = bytes_of(tmp_path)
    length = duration(forks, job, path, make)
    whole = bytes_of(tmp_path)
    assert whole != old
    rng = random.Random(len(job))
    ends = []
    for number in (signal.SIGKILL, signal.SIGINT):
        for moment in range(MOMENTS):
            make(path)
            assert bytes_of(tmp_path) == old, "packing clears the litter of a killed change away"
            ends.append(stopped(forks, length * (moment + rng.random()) / MOMENTS, number, job, str(path)))
            if ends[-1] == 0:
                length *= 0.8  # the first run took longer than those after it
            found = bytes_of(tmp_path)
            visible = {name: data for name, data in found.items() if not name.startswith(".")}
            assert visible in (old, whole)
            if number == signal.SIGINT:
                assert found == visible, "an interrupt clears up"
            with verified(path):
                pass
    assert any(end != 0 for end in ends)
    make(path)
    assert forks.run(job, str(path))[0] == 0
    assert bytes_of(tmp_path) == whole


@pytest.mark.parametrize("form", FORMS)
def test_two_changes_at_once(form: str, tmp_path: Path) -> None:
    path = tmp_path / form
    make(path)
    with open_sink(path, overwrite=True) as sink:
        with pytest.raises(OutputError, match="another process is writing it"):
            tallstore.remove(path, "a")
        sink.abort()
    tallstore.remove(path, "a")
