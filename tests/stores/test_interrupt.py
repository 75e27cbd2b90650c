"""A pack that is killed or interrupted at any moment: no archive, no litter that a second run stumbles over."""

from __future__ import annotations

import dis
import random
import signal
import sys
import time
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
from processes import Forks, stopped
from support import State, bytes_of, near, noise

import tallstore
from tallstore.stores import local, opening, staging

MOMENTS = 4

PACK = """
import tallstore, torch
from stores.test_interrupt import zoo
tallstore.pack(*zoo(), args[0], overwrite=True)
"""

EXPORT = """
import tallstore
with tallstore.open(args[1]) as zoo:
    zoo.export("a", args[0], overwrite=True)
"""


def zoo() -> tuple[State, dict[str, State]]:
    """Large enough to be caught at work."""
    base = {f"layer{i}": noise(50, 500, seed=i) for i in range(4)}
    return base, {task: {name: near(w, seed) for name, w in base.items()} for seed, task in ((21, "a"), (22, "b"))}


def duration(forks: Forks, *job: str) -> float:
    """How long a job takes when it is left alone: the shorter of two runs."""
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        code, text = forks.run(*job)
        assert code == 0, text
        taken.append(time.perf_counter() - began)
    return min(taken)


@pytest.mark.parametrize(
    ("number", "name", "existing"),
    [
        (signal.SIGKILL, "zoo", False),
        (signal.SIGKILL, "zoo.tall", True),
        (signal.SIGINT, "zoo", True),
        (signal.SIGINT, "zoo.tall", False),
    ],
)
def test_a_pack_that_is_stopped_at_any_moment(
    number: int, name: str, existing: bool, tmp_path: Path, forks: Forks
) -> None:
    target = tmp_path / name
    length = duration(forks, PACK, str(target))
    whole = {name: data for name, data in bytes_of(target.parent).items() if name.startswith(target.name)}
    for path in sorted(target.parent.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if existing:
        tallstore.pack({"w": noise(300)}, {"old": {"w": near(noise(300), 1)}}, target)
    old = bytes_of(target.parent)
    rng = random.Random(number)
    ends = []
    for moment in range(MOMENTS):
        ends.append(stopped(forks, length * (moment + rng.random()) / MOMENTS, number, PACK, str(target)))
        if ends[-1] == 0:
            length *= 0.8  # the machine became quicker
        found = bytes_of(target.parent)
        visible = {name: data for name, data in found.items() if not name.startswith(".")}
        if ends[-1] == 0 or visible == whole:
            assert visible == whole, "it was put in place whole, in one step"
            old = whole
        assert visible == old, "what was there is still there, to the bit"
        if number == signal.SIGINT:
            assert found == visible, "an interrupt clears up"
    assert any(end != 0 for end in ends)
    tallstore.pack(*zoo(), target, overwrite=True)
    assert bytes_of(target.parent) == whole, "a second run does not stumble, and clears the litter away"
    with tallstore.open(target) as opened:
        opened.verify()


def test_an_export_that_is_killed_at_any_moment(forks: Forks, tmp_path: Path) -> None:
    tallstore.pack(*zoo(), tmp_path / "zoo.tall")
    out = tmp_path / "out"
    length = duration(forks, EXPORT, str(out), str(tmp_path / "zoo.tall"))
    whole = bytes_of(out)
    (out / "config.json").write_text("{}")
    old = bytes_of(out)
    for moment in range(MOMENTS):
        stopped(forks, length * (moment + 0.5) / MOMENTS, signal.SIGKILL, EXPORT, str(out), str(tmp_path / "zoo.tall"))
        assert bytes_of(out) in (old, whole)
        old = bytes_of(out)
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        opened.export("a", out, overwrite=True)
    assert bytes_of(out) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "zoo.tall"]


CHECKED = ("CALL", "PRECALL", "RESUME", "JUMP_BACKWARD")
"""Instructions behind which the interpreter looks for signals."""


class InterruptAt:
    """Traces modules' functions, and raises KeyboardInterrupt where the interpreter looks for signals the n-th time."""

    def __init__(self, number: int, *modules: ModuleType) -> None:
        self.came = False
        self._files, self._left = {module.__file__ for module in modules}, number
        self._before: dict[int, str] = {}  # by frames' identities: to hold a frame is to hold what it names

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not self.came:
            checked = self._before.get(id(frame), "").startswith(CHECKED)
            self._before[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if checked and self._left == 0:
                self.came = True
                raise KeyboardInterrupt
            self._left -= checked
        return self


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_while_a_place_is_made_leaves_nothing(tmp_path: Path) -> None:
    """Wherever one can come, between a system call and the name of its result among these."""
    target, number, came = tmp_path / "new" / "zoo.tall", 0, True
    while came:
        interrupt, made = InterruptAt(number, staging), None
        tracing = sys.gettrace()
        sys.settrace(interrupt)
        try:
            made = staging.Staging(target)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        if made is not None:
            made.discard()
        assert list(tmp_path.rglob("*")) == [], f"interrupted at step {number}"
        came, number = interrupt.came, number + 1
    assert number > 20


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["zoo", "zoo.tall"])
def test_an_interrupt_while_a_sink_is_handed_over_leaves_nothing(name: str, tmp_path: Path) -> None:
    """From where its place is made until whoever asked for it can clear it away."""
    number, came = 0, True
    while came:
        interrupt, made = InterruptAt(number, local, opening), None
        tracing = sys.gettrace()
        sys.settrace(interrupt)
        try:
            made = opening.open_sink(tmp_path / name)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        if made is not None:
            made.abort()
        assert list(tmp_path.rglob("*")) == [], f"interrupted at step {number}"
        came, number = interrupt.came, number + 1
    assert number > 20
