"""Merges that are far away: what is fetched for them, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Hub, serving
from safetensors.torch import load_file
from support import RecordingStore, assert_same, bytes_of, tiny_zoo, write_folder

import tallstore
from tallstore.stores import open_store
from tallstore.zoo import Zoo


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """Tasks a, b and c, and a merge of the first two."""
    base, tasks = tiny_zoo(3)
    for name, state in tasks.items():
        write_folder(tmp_path / name, state, name=name)
    tallstore.pack(base, {name: tmp_path / name for name in tasks}, tmp_path / "zoo")
    tallstore.add_merge(tmp_path / "zoo", "mix", "0.6*a + 0.4*b")
    return tmp_path / "zoo"


@pytest.fixture
def hub(family: Path) -> Iterator[Hub]:
    with serving({"user/zoo": bytes_of(family)}) as running:
        yield running


def test_a_pull_brings_what_a_merge_is_made_of(family: Path, hub: Hub, tmp_path: Path) -> None:
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    report = tallstore.pull("user/zoo", tmp_path / "out", tasks="mix", **where)
    got = hub.got()
    assert not [path for path in got if path.startswith(("tasks/c/", "tasks/b/files"))]
    assert {p for p in got if p.endswith(".safetensors") and p.startswith("tasks/")} == {
        path.relative_to(family).as_posix()
        for task in ("a", "b", "mix")
        for path in (family / "tasks" / task).glob("*.safetensors")
    }
    assert report.tasks == ("mix",)
    with tallstore.open(family) as zoo:
        assert_same(load_file(tmp_path / "out" / "model.safetensors"), zoo.state_dict("mix"))
    tallstore.pull("user/zoo", tmp_path / "zoo.tall", tasks=["mix"], archive=True, **where)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify()
        assert zoo.tasks == ("a", "b", "mix")


class FarStore(RecordingStore):
    """A store that is told in advance what will be read."""

    far = True
    ranged = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.wanted: list[tuple[str, int, int]] = []

    def prefetch(self, ranges: list) -> None:  # type: ignore[type-arg]
        self.wanted += [(r.path, r.start, r.start + r.length) for r in ranges]


def test_a_far_store_is_told_of_every_range(family: Path) -> None:
    store = FarStore(open_store(family))
    with Zoo(store) as zoo:
        zoo.state_dict("mix", names=["fc.weight"])
        read = {span for span in store.ranges if span[0].startswith(("tasks/", "base/"))}
        for path, start, stop in read:
            assert any(p == path and a <= start and stop <= b for p, a, b in store.wanted), (path, start, stop)
        assert not any(path.startswith("tasks/c/") for path, _, _ in store.wanted)
        assert any(path.startswith("tasks/b/") for path, _, _ in read)


def test_files_come_along_from_merge_to_merge(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family, tmp_path / "copy")
    tallstore.add_merge(tmp_path / "copy", "again", "0.5*mix + 0.5*c")
    with tallstore.open(tmp_path / "copy") as zoo:
        zoo.verify()
        assert zoo.manifest.tasks["mix"].files["config.json"] == "tasks/a/files/config.json"
        assert (zoo.export("again", tmp_path / "again") / "config.json").read_bytes() == (
            tmp_path / "a" / "config.json"
        ).read_bytes()
    tallstore.remove(tmp_path / "copy", ["a", "b"], recode=True)
    with tallstore.open(tmp_path / "copy") as zoo:
        zoo.verify()
        assert zoo.tasks == ("c", "mix", "again")
        assert zoo.manifest.tasks["mix"].files["config.json"] == "tasks/mix/files/config.json"
