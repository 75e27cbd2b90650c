"""Readers that have an archive open keep what they had, whoever replaces it; and what it was goes with the last of them."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from pathlib import Path

import pytest
from processes import Forks
from support import State, assert_same, leftovers, raw, tiny_zoo

import tallstore
from tallstore.errors import DamagedError

Zoo = tuple[State, dict[str, State]]


def zoo(n: int) -> Zoo:
    """Generations that differ in every weight; the first has the tasks `a` and `b`, so has every other."""
    base, tasks = tiny_zoo(2)
    return base, {name: {tensor: value + 0.01 * n for tensor, value in state.items()} for name, state in tasks.items()}


def put(target: Path, n: int) -> Zoo:
    held = zoo(n)
    tallstore.pack(*held, target, exact="all", overwrite=True)
    return held


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "plain"])
def test_a_reader_keeps_what_it_had(target: Path, mapped: bool) -> None:
    _, before = put(target, 0)
    with tallstore.open(target, mapped=mapped) as old:
        _, after = put(target, 1)
        with tallstore.open(target, mapped=mapped) as new:
            for task in old.tasks:
                assert_same(old.state_dict(task, exact=True), before[task])
                assert_same(new.state_dict(task, exact=True), after[task])
            assert old.verify().unlisted == ()
            copy = old.write_subset(old.tasks, target.with_name("copy"))
    with tallstore.open(copy) as kept:
        assert_same(kept.state_dict("a", exact=True), before["a"])
    shutil.rmtree(copy)
    assert {name.split("/")[0] for name in leftovers(target.parent)} == {target.name}


def test_every_generation_stays_with_its_readers(tmp_path: Path) -> None:
    path, generations = tmp_path / "zoo", []
    for n in range(4):
        _, tasks = put(path, n)
        generations.append((tallstore.open(path), tallstore.open(path), tasks))
    for first, second, tasks in generations:
        assert_same(first.state_dict("a", exact=True), tasks["a"])
        first.close()
        assert_same(second.state_dict("b", exact=True), tasks["b"])
        second.close()
    assert {name.split("/")[0] for name in leftovers(tmp_path)} == {"zoo"}


@pytest.mark.usefixtures("few_objects")
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Python names files that were not closed
def test_a_reader_that_was_forgotten_lets_go(tmp_path: Path) -> None:
    put(tmp_path / "zoo", 0)
    forgotten = tallstore.open(tmp_path / "zoo")
    forgotten.state_dict("a")
    put(tmp_path / "zoo", 1)
    assert (tmp_path / ".zoo.partial").exists()
    del forgotten
    gc.collect()
    assert not (tmp_path / ".zoo.partial").exists()


HOLD = """
import os, signal, tallstore
held = tallstore.open(args[0])
held.state_dict("a")
from stores.test_folder_lock import zoo
tallstore.pack(*zoo(1), args[0], overwrite=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_reader_that_was_killed_leaves_its_folder_to_the_next_writer(tmp_path: Path, forks: Forks) -> None:
    put(tmp_path / "zoo", 0)
    code, text = forks.run(HOLD, str(tmp_path / "zoo"))
    assert code == -signal.SIGKILL, text
    assert [name for name in leftovers(tmp_path) if name.startswith(".zoo.partial/held-")]
    put(tmp_path / "zoo", 2)
    assert not (tmp_path / ".zoo.partial").exists()


def test_a_reader_that_is_interrupted_as_it_lets_go_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "zoo", 0)
    opened = tallstore.open(tmp_path / "zoo")
    put(tmp_path / "zoo", 1)
    remove, interrupts = shutil.rmtree, [KeyboardInterrupt()]

    def interrupted(folder: Path) -> None:
        if interrupts:
            next(folder.iterdir()).rename(tmp_path / "elsewhere")
            raise interrupts.pop()
        remove(folder)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened.close()
    assert not (tmp_path / ".zoo.partial").exists()


def test_a_forked_process_keeps_the_folder_too(tmp_path: Path) -> None:
    path = tmp_path / "zoo"
    _, tasks = put(path, 0)
    wanted = raw(tasks["b"]["fc.weight"]).tobytes()
    opened = tallstore.open(path, threads=1)
    go, gone = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(gone)
            os.read(go, 1)
            code = 0 if raw(opened.state_dict("b", exact=True)["fc.weight"]).tobytes() == wanted else 2
            opened.close()
        finally:
            os._exit(code)
    put(path, 1)
    opened.close()
    os.close(gone)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(go)
    assert {name.split("/")[0] for name in leftovers(tmp_path)} == {"zoo"}


def test_a_folder_that_was_deleted_is_missing(tmp_path: Path) -> None:
    put(tmp_path / "zoo", 0)
    with tallstore.open(tmp_path / "zoo") as opened:
        shutil.rmtree(tmp_path / "zoo")
        with pytest.raises(DamagedError, match="is missing"):
            opened.state_dict("a")


def test_a_pipe_in_an_archive_is_no_file(tmp_path: Path) -> None:
    put(tmp_path / "zoo", 0)
    part = tmp_path / "zoo" / "tasks" / "a" / "mask.safetensors"
    part.unlink()
    os.mkfifo(part)
    with tallstore.open(tmp_path / "zoo") as opened, pytest.raises(DamagedError, match="is missing"):
        opened.state_dict("a")


def test_what_is_pushed_is_what_was_opened(tmp_path: Path) -> None:
    """A file's place on this machine is that of the folder that is open, not of the one that took its name."""
    put(tmp_path / "zoo", 0)
    with tallstore.open(tmp_path / "zoo") as opened:
        path = "tasks/a/mask.safetensors"
        before = (tmp_path / "zoo" / path).read_bytes()
        put(tmp_path / "zoo", 1)
        place = opened.store.local(path)
        assert place is not None
        assert place.read_bytes() == before
