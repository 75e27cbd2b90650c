"""A zoo of model folders that grows: base, three tasks that it was packed from, and one more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import State, noise, tiny_zoo, write_folder

import tallstore
from tallstore.zoo import Zoo

FORMS = ("zoo", "zoo.tall")


class Models:
    """Folders on disk, and what they hold."""

    def __init__(self, home: Path) -> None:
        self.home = home
        base, self.states = tiny_zoo(4)
        self.base = write_folder(home / "base", base)
        self.folders = {
            name: write_folder(home / "runs" / name, state, name=name) for name, state in self.states.items()
        }
        for folder in self.folders.values():
            (folder / "vocab.txt").write_text("one\ntwo\n")

    def pack(self, name: str, tasks: str = "abc", **options: object) -> Path:
        """An archive of some of them."""
        path = self.home / name
        tallstore.pack(self.base, {task: self.folders[task] for task in tasks}, path, **options)
        return path


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


@contextmanager
def verified(path: Path, **how: object) -> Iterator[Zoo]:
    """The archive, open, every byte checked."""
    with tallstore.open(path, **how) as zoo:  # type: ignore[arg-type]
        assert zoo.verify().unlisted == ()
        yield zoo


def decoded(path: Path, **how: object) -> dict[str, State]:
    """What an archive gives back, by task."""
    with verified(path, **how) as zoo:
        return {task: zoo.state_dict(task) for task in zoo.tasks}


def wide_zoo(tasks: str = "abcde") -> tuple[State, dict[str, State]]:
    """Tensors large enough that codes weigh more than headers; zeros of either sign that nobody moved among them."""
    base = {"big": noise(300, 200, seed=9), "other": noise(200, 100, seed=8)}
    base["big"][0, :9] = -0.0
    base["big"][1, :9] = 0.0
    states = {}
    for seed, task in enumerate(tasks, 1):
        states[task] = {name: w + noise(*w.shape, size=0.01, seed=100 * seed + len(name)) for name, w in base.items()}
        states[task]["big"][0, :9] = base["big"][0, :9]
    return base, states
