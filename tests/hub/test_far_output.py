"""Archives written to where fsspec's file systems lie, from checkpoints that lie there too."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from support import assert_same, bytes_of, read_all, tiny_zoo, write_folder

import tallstore
from tallstore.errors import (
    CheckpointError,
    DamagedError,
    NotAnArchiveError,
    OptionError,
    OutputError,
    OutputExistsError,
)


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An address of an empty place."""
    url = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else (tmp_path / "far").as_uri()
    yield url
    MemoryFileSystem.store.clear()


@pytest.fixture(autouse=True)
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where archives are put together: empty afterwards."""
    (tmp_path / "near").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "near"))
    return tmp_path / "near"


def there(url: str) -> dict[str, bytes]:
    system, root = fsspec.core.url_to_fs(url)
    if not system.exists(root):
        return {}
    return {name.removeprefix(root).lstrip("/"): system.cat_file(name) for name in system.find(root)}


@pytest.mark.parametrize("name", ["zoo", "zoo.tall"])
def test_pack_open_extract_verify(name: str, place: str, tmp_path: Path, near: Path) -> None:
    base, tasks = tiny_zoo(3)
    tallstore.pack(base, tasks, tmp_path / name)
    report = tallstore.pack(base, tasks, f"{place}/{name}")
    assert report.path == f"{place}/{name}"
    with tallstore.open(f"{place}/{name}") as zoo, tallstore.open(tmp_path / name) as local:
        zoo.verify(against=tasks)
        assert_same(zoo.state_dict("a"), local.state_dict("a"))
        assert_same(
            {"fc.weight": zoo.weights("b").get_slice("fc.weight")[3:7, :9]},
            {"fc.weight": local.state_dict("b")["fc.weight"][3:7, :9].contiguous()},
        )
        zoo.export("c", tmp_path / "far-c")
        local.export("c", tmp_path / "local-c")
        zoo.write_subset(["a", "b"], f"{place}/two.tall")
    assert bytes_of(tmp_path / "far-c") == bytes_of(tmp_path / "local-c")
    found = there(f"{place}/{name}")
    assert found == ({"": (tmp_path / name).read_bytes()} if name.endswith(".tall") else read_all(tmp_path / name))
    assert list(near.iterdir()) == []


def test_what_is_there_is_replaced_only_when_asked(place: str) -> None:
    base, tasks = tiny_zoo(2)
    for name in ("zoo", "zoo.tall"):
        url = f"{place}/{name}"
        tallstore.pack(base, {"old": tasks["a"]}, url)
        with pytest.raises(OutputExistsError, match=r"is there already.*--overwrite"):
            tallstore.pack(base, tasks, url)
        with tallstore.open(url) as zoo:
            assert zoo.tasks == ("old",)
        tallstore.pack(base, tasks, url, overwrite=True)
        with tallstore.open(url) as zoo:
            assert zoo.tasks == ("a", "b")
            assert zoo.verify().unlisted == (), "nothing of the old one is left"
    with fsspec.open(f"{place}/notes/thesis.txt", "wb", auto_mkdir=True) as file:
        file.write(b"mine")
    with pytest.raises(OutputExistsError, match="no tallstore archive"):
        tallstore.pack(base, tasks, f"{place}/notes", overwrite=True)
    assert there(f"{place}/notes") == {"thesis.txt": b"mine"}


class Breaking:
    """A file system of which the n-th write fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type, left: int) -> None:
        real = kind.open

        def opened(system: Any, path: str, mode: str = "rb", **options: Any) -> Any:
            if mode == "wb" and not (left_box := self.count(left)):
                raise TimeoutError(f"no answer {left_box}")
            return real(system, path, mode, **options)

        self.writes = 0
        monkeypatch.setattr(kind, "open", opened)

    def count(self, left: int) -> int:
        self.writes += 1
        return left - self.writes


@pytest.mark.parametrize("existing", [False, True])
def test_a_store_that_fails_leaves_nothing_that_opens(
    existing: bool, place: str, near: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tasks = tiny_zoo(2)
    kind = MemoryFileSystem if place.startswith("memory") else LocalFileSystem
    for left in range(1, 20):
        url = f"{place}/zoo{left}"
        if existing:
            tallstore.pack(base, {"old": tasks["a"]}, url)
        with monkeypatch.context() as patch:
            broken = Breaking(patch, kind, left)
            try:
                tallstore.pack(base, tasks, url, overwrite=existing)
            except OutputError as error:
                assert str(error) == f"{url}: cannot be written (TimeoutError); try again later"
            else:
                break
        assert broken.writes == left
        with pytest.raises(NotAnArchiveError):
            tallstore.open(url).close()
        assert list(near.iterdir()) == []
        assert not [name for name in there(url) if name.startswith("tasks/b")], "what it put there is gone"
    assert left == len(there(url)) + 1, "every write was tried"
    with tallstore.open(url) as zoo:
        zoo.verify()


def test_a_store_that_loses_a_part(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tasks = tiny_zoo(2)
    kind = MemoryFileSystem if place.startswith("memory") else LocalFileSystem
    find = kind.find

    def forgetful(system: Any, path: str, **options: Any) -> Any:
        found = find(system, path, **options)
        return {name: facts for name, facts in found.items() if "tasks/b/mask" not in name}

    with monkeypatch.context() as patch:
        patch.setattr(kind, "find", forgetful)
        with pytest.raises(OutputError, match=r"tasks/b/mask.safetensors was put there and is not there whole"):
            tallstore.pack(base, tasks, f"{place}/zoo")
    with pytest.raises(NotAnArchiveError):
        tallstore.open(f"{place}/zoo").close()
    tallstore.pack(base, tasks, f"{place}/zoo", overwrite=True)
    system, root = fsspec.core.url_to_fs(f"{place}/zoo")
    system.rm_file(f"{root}/tasks/b/mask.safetensors")
    with tallstore.open(f"{place}/zoo") as zoo:
        assert zoo.state_dict("a")
        for read in (lambda: zoo.state_dict("b"), zoo.verify):
            with pytest.raises(DamagedError, match=r"tasks/b/mask.safetensors is missing"):
                read()


def test_where_archives_are_not_written(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    for url in ("https://example.org/zoo.tall", "hf://user/zoo"):
        with pytest.raises(OptionError, match="an archive is not written there"):
            tallstore.pack(base, tasks, url)
    with pytest.raises(OptionError, match="no file system that fsspec knows"):
        tallstore.pack(base, tasks, "nosuch://place/zoo")


def put(folder: Path, url: str) -> None:
    system, root = fsspec.core.url_to_fs(url)
    for name, data in bytes_of(folder).items():
        system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        system.pipe_file(f"{root}/{name}", data)


def test_checkpoints_from_there(place: str, tmp_path: Path) -> None:
    """One file, shards with an index, and a single file by its address: as if they lay here."""
    base, tasks = tiny_zoo(2)
    here = {"base": write_folder(tmp_path / "in" / "base", base), "a": write_folder(tmp_path / "in" / "a", tasks["a"])}
    tallstore.pack(here["base"], {"a": here["a"]}, tmp_path / "whole", exact="a")
    with tallstore.open(tmp_path / "whole") as zoo:
        cut = zoo.export("a", tmp_path / "cut", exact=True, max_shard_size="1KB")
    put(here["base"], f"{place}/base")
    put(here["a"], f"{place}/a")
    put(cut, f"{place}/cut")
    for task in ("a", "cut"):
        tallstore.pack(f"{place}/base", {"a": f"{place}/{task}"}, tmp_path / f"far-{task}", exact="a")
        ours, theirs = bytes_of(tmp_path / f"far-{task}"), bytes_of(tmp_path / "whole")
        assert ours == theirs
    tallstore.pack(f"{place}/base/model.safetensors", {"a": f"{place}/a/model.safetensors"}, tmp_path / "single")
    with tallstore.open(tmp_path / "single") as zoo:
        assert json.loads((tmp_path / "single" / "tall.json").read_text())["tasks"]["a"].get("files", {}) == {}
        assert zoo.verify(against={"a": here["a"]})
    for odd in ("nothing", "whole", "a/config.json"):
        if odd == "whole":
            put(tmp_path / "whole" / "base", f"{place}/whole")
        with pytest.raises(CheckpointError):
            tallstore.pack(base, {"a": f"{place}/{odd}"}, tmp_path / "no")
