"""The same input and options give the same bytes, however the work is shared out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import State, bytes_of, near, noise, read_all, tiny_zoo, write_folder

import tallstore
from tallstore.recipes import RECIPES


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def large_zoo() -> tuple[State, dict[str, State]]:
    """Tensors of several tiles, so that torch would share their sums among threads if it were let."""
    base = {f"layer{i}": noise(2, 1 << 16, seed=i) for i in range(2)}
    return base, {t: {name: near(w, seed) for name, w in base.items()} for seed, t in enumerate("ab", 7)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_number_of_threads_changes_no_byte(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    from tallstore.encoder import driver

    monkeypatch.setattr(driver, "CHUNK_ELEMENTS", 1 << 16)
    base, tasks = large_zoo()
    written = []
    for count in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        torch.set_num_threads(count)
        tallstore.pack(base, tasks, tmp_path / f"{count}.tall", recipe=recipe)
        assert torch.get_num_threads() == count
        written.append((tmp_path / f"{count}.tall").read_bytes())
    assert written[0] == written[1]


def test_the_number_of_threads_changes_no_decoded_bit(tmp_path: Path, small_chunks: int) -> None:
    base, tasks = tiny_zoo()
    tallstore.pack(base, tasks, tmp_path / "zoo.tall")
    found = []
    for count in (1, 2, 7):
        with tallstore.open(tmp_path / "zoo.tall", threads=count) as zoo:
            found.append({name: tensor.numpy().tobytes() for name, tensor in zoo.state_dict("a").items()})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("recipe", RECIPES)
def test_packing_twice_gives_the_same_bytes(recipe: str, tmp_path: Path) -> None:
    base, tasks = tiny_zoo()
    for run in "12":
        tallstore.pack(base, tasks, tmp_path / f"{run}.tall", recipe=recipe)
        tallstore.pack(base, tasks, tmp_path / run, recipe=recipe)
    assert (tmp_path / "1.tall").read_bytes() == (tmp_path / "2.tall").read_bytes()
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")


def test_folder_and_file_hold_the_same_parts(tmp_path: Path) -> None:
    base, tasks = tiny_zoo()
    tallstore.pack(base, tasks, tmp_path / "zoo", recipe="fit")
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe="fit")
    folder = read_all(tmp_path / "zoo")
    assert folder == read_all(tmp_path / "zoo.tall") == bytes_of(tmp_path / "zoo")
    assert {name.split("/")[0] for name in folder} == {"tall.json", "config.json", "base", "vector", "tasks"}


def test_where_the_input_lies_changes_no_weight(tmp_path: Path) -> None:
    """From memory and from folders: the same parts; only the companion files differ."""
    base, tasks = tiny_zoo()
    base, tasks = dict(sorted(base.items())), {task: dict(sorted(state.items())) for task, state in tasks.items()}
    tallstore.pack(base, tasks, tmp_path / "memory")
    folders = {name: write_folder(tmp_path / "in" / name, state) for name, state in tasks.items()}
    tallstore.pack(write_folder(tmp_path / "in" / "base", base), folders, tmp_path / "folders")
    ours, theirs = bytes_of(tmp_path / "memory"), bytes_of(tmp_path / "folders")
    parts = [name for name in ours if name.endswith(".safetensors")]
    assert {name: ours[name] for name in parts} == {name: theirs[name] for name in parts}
    assert str(tmp_path).encode() not in b"".join(theirs.values()), "no path of this machine is in the archive"


def test_the_order_of_shards_and_files_does_not_change_the_base(tmp_path: Path) -> None:
    base, tasks = tiny_zoo()
    tallstore.pack(base, tasks, tmp_path / "one")
    tallstore.pack(dict(reversed(base.items())), tasks, tmp_path / "other")
    with tallstore.open(tmp_path / "one") as one, tallstore.open(tmp_path / "other") as other:
        assert one.manifest.base.identity == other.manifest.base.identity
