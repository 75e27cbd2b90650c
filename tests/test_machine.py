"""Any sequence of packing, failing, overwriting, reading, damaging and repairing leaves what a simple model says."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import State, leftovers, near, noise, raw, same_bits

import tallstore
from tallstore.errors import ArchiveError, OutputExistsError

NAMES = ("one", "two.tall")


DAMAGES: Mapping[str, Callable[[bytes, int], bytes]] = {
    "flip": lambda data, at: data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :],
    "cut": lambda data, at: data[:at],
    "grow": lambda data, at: data[:at] + bytes(1) + data[at:],
    "swap": lambda data, at: data[at:] + data[:at] if at > 0 else data[:-1],
}


class Stop(Exception):
    pass


def stop(*_: object) -> None:
    raise Stop


class Shelf(RuleBasedStateMachine):
    """A folder with up to two archives. The model: for each, the tasks it was packed with, or that it is damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.held: dict[str, dict[str, State]] = {}
        self.damaged: dict[str, tuple[Path, bytes]] = {}
        """Which archive is damaged, the file, and what its bytes were."""
        self.open: dict[str, tuple[tallstore.Zoo, dict[str, State]]] = {}
        self.base: State = {}

    def teardown(self) -> None:
        for zoo, _ in self.open.values():
            zoo.close()
        shutil.rmtree(self.root)

    @initialize(rows=st.integers(1, 40))
    def begin(self, rows: int) -> None:
        self.base = {"w": noise(rows, 30, seed=1), "b": noise(rows, seed=2), "e": noise(300, seed=3)}

    def tasks(self, seed: int, count: int) -> dict[str, State]:
        return {
            f"t{i}": {name: near(t, seed + 10 * i) for name, t in self.base.items()} | {"head": noise(3, seed=seed + i)}
            for i in range(count)
        }

    @contextmanager
    def perhaps_no_archive(self, name: str) -> Iterator[None]:
        """What is damaged beyond recognition is anybody's file, and is not overwritten."""
        try:
            yield
        except OutputExistsError:
            assert name in self.damaged

    @rule(
        name=st.sampled_from(NAMES),
        seed=st.integers(0, 99),
        count=st.integers(1, 3),
        overwrite=st.booleans(),
        recipe=st.sampled_from(["fit", "solo", "emr"]),
    )
    def pack(self, name: str, seed: int, count: int, overwrite: bool, recipe: str) -> None:
        tasks = self.tasks(seed, count)
        if name in self.held and not overwrite:
            with pytest.raises(OutputExistsError):
                tallstore.pack(self.base, tasks, self.root / name, recipe=recipe)
            return
        with self.perhaps_no_archive(name):
            tallstore.pack(self.base, tasks, self.root / name, recipe=recipe, overwrite=overwrite, exact="all")
            self.held[name] = tasks
            self.damaged.pop(name, None)

    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, 99))
    def fail_to_pack(self, name: str, seed: int) -> None:
        with self.perhaps_no_archive(name), pytest.raises(Stop):
            tallstore.pack(self.base, self.tasks(seed, 2), self.root / name, overwrite=True, progress=stop)

    @precondition(lambda self: set(self.held) - set(self.damaged))
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(set(self.held) - set(self.damaged))))
        with tallstore.open(self.root / name, mapped=data.draw(st.booleans())) as zoo:
            assert set(zoo.tasks) == set(self.held[name])
            task = data.draw(st.sampled_from(zoo.tasks))
            for tensor, original in self.held[name][task].items():
                assert same_bits(zoo.state_dict(task, names=[tensor], exact=True)[tensor], original)
            zoo.verify()

    @precondition(lambda self: set(self.held) - set(self.damaged) - set(self.open))
    @rule(data=st.data())
    def open_and_keep(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(set(self.held) - set(self.damaged) - set(self.open))))
        self.open[name] = tallstore.open(self.root / name, mapped=data.draw(st.booleans())), self.held[name]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def read_what_is_open(self, data: st.DataObject) -> None:
        """What was open before it was overwritten is still itself, tasks that were never read too."""
        name = data.draw(st.sampled_from(sorted(self.open)))
        zoo, tasks = self.open.pop(name)
        with zoo:
            for task, state in tasks.items():
                found = zoo.state_dict(task, exact=True)
                assert all(same_bits(found[tensor], original) for tensor, original in state.items())

    @precondition(lambda self: set(self.held) - set(self.damaged) - set(self.open))
    @rule(data=st.data(), way=st.sampled_from(sorted(DAMAGES)), where=st.floats(0, 1, exclude_max=True))
    def damage(self, data: st.DataObject, way: str, where: float) -> None:
        """Of a file of the folder, or of the single file."""
        name = data.draw(st.sampled_from(sorted(set(self.held) - set(self.damaged) - set(self.open))))
        path = self.root / name
        if path.is_dir():
            path = data.draw(st.sampled_from(sorted(p for p in path.rglob("*") if p.is_file())))
        before = path.read_bytes()
        path.unlink()
        path.write_bytes(DAMAGES[way](before, int(where * len(before))))
        self.damaged[name] = path, before

    @precondition(lambda self: self.damaged)
    @rule(data=st.data())
    def read_what_is_damaged(self, data: st.DataObject) -> None:
        """Right weights, or an error of archives; what `verify` passes is right."""
        name = data.draw(st.sampled_from(sorted(self.damaged)))
        sound = 0
        try:
            with tallstore.open(self.root / name, mapped=data.draw(st.booleans())) as zoo:
                for task, state in self.held[name].items():
                    try:
                        found = zoo.state_dict(task, exact=True)
                    except ArchiveError:
                        continue
                    assert all(same_bits(found[tensor], original) for tensor, original in state.items())
                    sound += 1
                zoo.verify()
        except ArchiveError:
            return
        assert sound == len(self.held[name])
        assert name.endswith(".tall"), "of a folder every bit counts; a zip's own bookkeeping need not"

    @precondition(lambda self: self.damaged)
    @rule(data=st.data())
    def repair(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.damaged)))
        path, before = self.damaged.pop(name)
        path.write_bytes(before)

    @precondition(lambda self: set(self.held) - set(self.damaged))
    @rule(data=st.data())
    def export_and_pack_again(self, data: st.DataObject) -> None:
        """An exported task is a checkpoint like any other: packed again, its weights are the base's and a mask's."""
        name = data.draw(st.sampled_from(sorted(set(self.held) - set(self.damaged))))
        with tempfile.TemporaryDirectory() as scratch, tallstore.open(self.root / name) as zoo:
            task = zoo.tasks[0]
            out = zoo.export(task, Path(scratch) / "out")
            tallstore.pack(self.base, {"again": out}, Path(scratch) / "again.tall", exact="all")
            with tallstore.open(Path(scratch) / "again.tall") as again:
                found = again.state_dict("again", exact=True)
            wanted = zoo.state_dict(task)
        assert {n: raw(t).tobytes() for n, t in found.items()} == {n: raw(t).tobytes() for n, t in wanted.items()}

    @invariant()
    def nothing_else_lies_around(self) -> None:
        found = {name.split("/")[0] for name in leftovers(self.root)}
        assert found - {".one.partial"} == set(self.held)
        assert "one" in self.open or ".one.partial" not in found, "what was replaced stays while somebody reads it"


TestShelf = Shelf.TestCase
TestShelf.settings = settings(max_examples=8, stateful_step_count=15, deadline=None)
