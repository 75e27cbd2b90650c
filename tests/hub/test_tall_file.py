"""A `.tall` file among the files of a repository: read by range, or from the Hub's cache if it is there."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from loopback import Hub, Repository
from safetensors.torch import load_file, save
from support import Forks, assert_same, bytes_of, tiny_zoo

import tallstore
from tallstore.errors import DamagedError, NoSuchRevisionError, NotAnArchiveError, OptionError, UnreachableError
from tallstore.stores.asking import parse_file

COMMIT = "0123456789" * 4


@pytest.fixture
def single(zoo: Path, hub: Hub, tmp_path: Path) -> bytes:
    """The archive as one file, in the repository user/files."""
    with tallstore.open(zoo) as opened:
        data = opened.write_subset(opened.tasks, tmp_path / "zoo.tall").read_bytes()
    hub.repos["user/files"] = Repository()
    first = hub.repos["user/files"].add(
        "main", {"zoos/my.tall": data, "junk.tall": b"x" * 5000, "README.md": b"#"}, "x"
    )
    hub.repos["user/files"].tags["v1"] = first
    return data


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://user/name/zoo.tall", ("user/name", None, "zoo.tall")),
        ("hf://user/name@v1/a/b/zoo.tall", ("user/name", "v1", "a/b/zoo.tall")),
        ("hf://user/name/a/zoo.tall@v1", ("user/name", "v1", "a/zoo.tall")),
        (f"hf://user/name@{COMMIT}/zoo.tall", ("user/name", COMMIT, "zoo.tall")),
        ("hf://user/name@refs/pr/3/zoo.tall", ("user/name", "refs/pr/3", "zoo.tall")),
        ("hf://user/name@a%2Fb/zoo.tall", ("user/name", "a/b", "zoo.tall")),
        ("hf://user/name/zoo.tall@a%2Fb", ("user/name", "a/b", "zoo.tall")),
        ("hf://user/name", None),
        ("hf://user/name.tall", None),
        ("hf://user/name@v1.tall", None),
        ("hf://user/name@some/branch", None),
        ("user/name/zoo.tall", None),
        ("hf://user/name/.tall/x", None),
    ],
)
def test_addresses(text: str, parts: object) -> None:
    assert parse_file(text) == parts


def test_two_revisions_are_one_too_many() -> None:
    for text, revision in (("hf://user/name@v1/zoo.tall@v2", None), ("hf://user/name@v1/zoo.tall", "v2")):
        with pytest.raises(OptionError, match="leave one of them out"):
            parse_file(text, revision)
    assert parse_file("hf://user/name/zoo.tall", "v2") == ("user/name", "v2", "zoo.tall")


@pytest.mark.parametrize("address", ["hf://user/files/zoos/my.tall", "hf://user/files@v1/zoos/my.tall"])
def test_a_task_costs_its_own_ranges(address: str, single: bytes, zoo: Path, hub: Hub, tmp_path: Path) -> None:
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    with tallstore.open(zoo) as local, tallstore.open(address, **where) as opened:
        assert opened.url == f"hf://user/files@{hub.commit('user/files')}/zoos/my.tall"
        assert opened.tasks == local.tasks
        assert_same(opened.state_dict("a"), local.state_dict("a"))
        files = bytes_of(zoo)
        spans = [(r.start, r.start + r.sent) for r in hub.log if r.sent and r.start is not None]
        for path in ("tasks/b/mask.safetensors", "tasks/c/mask.safetensors"):
            at = single.index(files[path])
            assert not [span for span in spans if span[0] < at + len(files[path]) and span[1] > at], path
        assert hub.got()["zoos/my.tall"] < len(single) - sum(
            len(files[f"tasks/{task}/mask.safetensors"]) for task in "bc"
        )
        tallstore.pull(address, tmp_path / "out", tasks="b", **where)
        assert_same(load_file(tmp_path / "out" / "model.safetensors"), local.state_dict("b"))
    assert not list((tmp_path / "cache").rglob("*.tall")), "the file itself was not fetched"


def test_a_file_that_is_in_the_cache_is_used_from_there(single: bytes, zoo: Path, hub: Hub, tmp_path: Path) -> None:
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    address = "hf://user/files/zoos/my.tall"
    with pytest.raises(UnreachableError, match="not in the local cache"):
        tallstore.open(address, local_files_only=True, **where)
    huggingface_hub.HfApi(endpoint=hub.url).hf_hub_download("user/files", "zoos/my.tall", cache_dir=tmp_path / "cache")
    with pytest.raises(UnreachableError, match=r"junk\.tall: not in the local cache"):
        tallstore.open("hf://user/files/junk.tall", local_files_only=True, **where)
    hub.log.clear()
    with tallstore.open(zoo) as local:
        with tallstore.open(address, **where) as opened:
            assert opened.url == f"hf://user/files@{hub.commit('user/files')}/zoos/my.tall"
            assert_same(opened.state_dict("a"), local.state_dict("a"))
        assert hub.got() == {}
        hub.log.clear()
        with tallstore.open(address, local_files_only=True, **where) as opened:
            assert_same(opened.state_dict("c"), local.state_dict("c"))
    assert hub.log == []


def test_a_base_that_it_references_is_found(hub: Hub, tmp_path: Path, forks: Forks) -> None:
    base, tasks = tiny_zoo(2)
    for name, state in {"base": base, **tasks}.items():
        hub.repos[f"user/{name}"] = Repository()
        hub.repos[f"user/{name}"].add("main", {"model.safetensors": save(state)}, name)
    code = 'import tallstore; tallstore.pack("user/base", {"a": "user/a", "b": "user/b"}, args[0], base_storage="reference")'
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "other"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    assert forks.run(code, str(tmp_path / "small.tall"), env=env)[0] == 0
    hub.repos["user/files"] = Repository()
    hub.repos["user/files"].add("main", {"small.tall": (tmp_path / "small.tall").read_bytes()}, "small")
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    with tallstore.open(tmp_path / "small.tall", base=base) as local:
        with tallstore.open("hf://user/files/small.tall", **where) as opened:
            assert_same(opened.state_dict("b"), local.state_dict("b"))
        huggingface_hub.HfApi(endpoint=hub.url).hf_hub_download(
            "user/files", "small.tall", cache_dir=tmp_path / "cache"
        )
        with tallstore.open("hf://user/files/small.tall", local_files_only=True, **where) as opened:
            assert_same(opened.state_dict("a"), local.state_dict("a"))


def test_what_is_not_there_or_no_archive(single: bytes, hub: Hub, tmp_path: Path) -> None:
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    for address, error, words in (
        ("hf://user/files/none.tall", DamagedError, r"none\.tall is missing"),
        ("hf://user/files/junk.tall", NotAnArchiveError, "not a .tall file"),
        ("hf://user/files@v9/zoos/my.tall", NoSuchRevisionError, "no such branch"),
    ):
        with pytest.raises(error, match=words) as caught:
            tallstore.open(address, **where)
        assert "\n" not in str(caught.value)
    hub.fail("^GET /cdn/.*my.tall", "cut", 7)
    with (
        pytest.raises(UnreachableError, match=r"zoos/my\.tall"),
        tallstore.open("hf://user/files/zoos/my.tall", **where) as opened,
    ):
        opened.state_dict("a")
