"""A `.tall` file among the files of a repository: read by range, or from the Hub's cache if it is there."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import loopback
import pytest
from loopback import Hub, Repository
from processes import Forks
from safetensors.torch import load_file, save
from support import assert_same, bytes_of, leftovers, slots, tiny_zoo

import tallstore
from tallstore.errors import DamagedError, NoSuchRevisionError, NotAnArchiveError, OptionError, UnreachableError
from tallstore.stores.hub_client import parse_file

COMMIT = "0123456789" * 4
ADDRESS = "hf://user/files/zoos/my.tall"
MASK = "tasks/a/mask.safetensors"


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


# Damage in the cache.


def cached(hub: Hub, cache: Path) -> Path:
    """The file, fetched into the cache whole."""
    api = huggingface_hub.HfApi(endpoint=hub.url)
    return Path(api.hf_hub_download("user/files", "zoos/my.tall", cache_dir=cache))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.resolve().write_bytes(data)


def inside(single: bytes, zoo: Path, what: str) -> int:
    """Where in the file something of it lies that a task needs, or its zip."""
    files = bytes_of(zoo)
    if what == "directory":
        return single.index(b"PK\x01\x02") + 50
    if what == "end":
        return len(single) - 7
    if what == "local header":
        return single.index(b"PK\x03\x04") + 15
    if what == "header":
        return single.index(files[MASK]) + 30
    if what == "padding":
        return single.index(files[MASK]) + slots(files[MASK])[1]["fc.weight"][1] - 1
    if what in {MASK, "base/base.safetensors"}:
        return single.index(files[what]) + slots(files[what])[1]["fc.weight"][0] + 3
    return single.index(files[what]) + len(files[what]) // 2


PLACES = (
    "directory",
    "end",
    "local header",
    "tall.json",
    "header",
    MASK,
    "base/base.safetensors",
    "tasks/a/files/config.json",
)


@pytest.mark.parametrize("how", ["open", "pull", "archive", "verify"])
@pytest.mark.parametrize("what", PLACES)
def test_a_flipped_byte_in_the_cache_is_named_and_the_file_fetched_again_once(
    what: str, how: str, single: bytes, zoo: Path, hub: Hub, tmp_path: Path
) -> None:
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    file = cached(hub, tmp_path / "cache")
    flip(file, inside(single, zoo, what))
    hub.log.clear()

    def again() -> None:
        if how == "pull":
            report = tallstore.pull(ADDRESS, tmp_path / "out", tasks="a", **where)
            assert set(report.fetched) >= {MASK, "tall.json"}, "all of them, with the file"
            return
        with tallstore.open(ADDRESS, **where) as opened:
            if how == "verify":
                opened.verify()
            if how == "archive":
                opened.write_subset(["c", "a"], tmp_path / "smaller")
            opened.export("a", tmp_path / "out")

    with pytest.warns(UserWarning, match=r"zoos/my\.tall: damaged in the local cache: removed") as told:
        again()
    assert len(told) == 1
    assert hub.got() == {"zoos/my.tall": len(single)}, "once, and nothing else"
    assert file.read_bytes() == single
    with tallstore.open(zoo) as local:
        assert_same(load_file(tmp_path / "out" / "model.safetensors"), local.state_dict("a"))
    if how == "archive":
        with tallstore.open(tmp_path / "smaller") as smaller:
            smaller.verify()
    hub.log.clear()
    assert dict(tallstore.pull(ADDRESS, tasks="a", **where).fetched) == {}
    assert hub.got() == {}


def test_pull_reads_every_byte_that_a_task_needs(single: bytes, zoo: Path, hub: Hub, tmp_path: Path) -> None:
    """Also those that no tensor is decoded from. What other tasks need is theirs to find."""
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    file = cached(hub, tmp_path / "cache")
    other = bytes_of(zoo)["tasks/b/mask.safetensors"]
    flip(file, single.index(other) + slots(other)[1]["fc.weight"][0])
    tallstore.pull(ADDRESS, tmp_path / "a", tasks="a", **where)
    assert single[inside(single, zoo, "padding")] == 0
    flip(file, inside(single, zoo, "padding"))
    with pytest.warns(UserWarning, match="damaged in the local cache"):
        tallstore.pull(ADDRESS, tasks="a", **where)
    assert file.read_bytes() == single


def test_a_byte_that_is_flipped_on_the_wire(single: bytes, zoo: Path, hub: Hub, tmp_path: Path) -> None:
    """Once before the file was in the cache, which the client does not see; once as it is fetched again; and always."""
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    at = inside(single, zoo, MASK)
    hub.fail("^GET /cdn/.*my.tall$", "flip", at=at, times=1)
    file = cached(hub, tmp_path / "cache")
    assert file.read_bytes() != single
    with tallstore.open(zoo) as local, pytest.warns(UserWarning, match="damaged in the local cache"):
        with tallstore.open(ADDRESS, **where) as opened:
            assert_same(opened.state_dict("a"), local.state_dict("a"))
    flip(file, at)
    hub.fail("^GET /cdn/.*my.tall$", "flip", at=at, times=1)
    with pytest.warns(UserWarning, match="fetched again") as told:
        tallstore.pull(ADDRESS, tmp_path / "out", tasks="a", **where)
    assert [str(each.message).split("my.tall: ")[1] for each in told] == [
        "damaged in the local cache: removed, to be fetched again",
        "damaged (sha256 differs) after it was fetched: removed, to be fetched again",
    ]
    assert file.read_bytes() == single
    flip(file, at)
    hub.fail("^GET /cdn/.*my.tall$", "flip", at=at)
    with (
        pytest.warns(UserWarning, match="removed, to be fetched again"),
        pytest.raises(DamagedError, match=r"my\.tall: damaged .*twice in a row: the repository's own copy") as caught,
    ):
        tallstore.pull(ADDRESS, tmp_path / "work" / "out", tasks="a", **where)
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path / "work") == []
    assert not list((tmp_path / "cache").rglob("*.tall"))
    assert not list((tmp_path / "cache").glob("*/blobs/*"))


def test_a_small_file_whose_name_in_the_cache_tells_nothing(
    single: bytes, zoo: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no large file to the Hub: then the archive's own hashes alone say whether it came whole."""
    monkeypatch.setattr(loopback, "LARGE", 1 << 30)
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    file = cached(hub, tmp_path / "cache")
    assert len(file.resolve().name) == 40
    at = inside(single, zoo, MASK)
    flip(file, at)
    with tallstore.open(zoo) as local, tallstore.open(ADDRESS, **where) as opened:
        with pytest.warns(UserWarning, match="damaged in the local cache"):
            assert_same(opened.state_dict("a"), local.state_dict("a"))
    assert file.read_bytes() == single
    flip(file, at)
    hub.fail("^GET /user/files/.*my.tall$", "flip", at=at)
    for call in (
        lambda opened: opened.state_dict("a"),
        lambda opened: opened.write_subset(["a"], tmp_path / "work" / "out"),
        lambda opened: opened.verify(),
    ):
        hub.log.clear()
        with (
            tallstore.open(ADDRESS, **where) as opened,
            pytest.warns(UserWarning, match="damaged in the local cache"),
            pytest.raises(DamagedError, match=rf"my\.tall: {MASK}: .*damaged") as caught,
        ):
            call(opened)
        assert type(caught.value) is DamagedError
        assert "\n" not in str(caught.value)
        assert hub.got() == {"zoos/my.tall": len(single)}
    assert leftovers(tmp_path / "work") == []


def test_what_is_damaged_in_the_repository_itself_is_not_fetched_again(
    single: bytes, zoo: Path, hub: Hub, tmp_path: Path
) -> None:
    data = bytearray(single)
    data[inside(single, zoo, MASK)] ^= 1
    hub.repos["user/files"].add("main", {"zoos/my.tall": bytes(data)}, "damaged")
    file = cached(hub, tmp_path / "cache")
    hub.log.clear()
    with tallstore.open(ADDRESS, endpoint=hub.url, cache_dir=tmp_path / "cache") as opened:
        with pytest.raises(DamagedError, match=rf"my\.tall: {MASK}: tensor 'fc\.weight' is damaged"):
            opened.state_dict("a")
    with pytest.raises(DamagedError, match=rf"{MASK}: damaged"):
        tallstore.pull(ADDRESS, tmp_path / "out", tasks="a", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert (hub.got(), file.read_bytes()) == ({}, bytes(data))


@pytest.mark.parametrize("what", ["directory", MASK])
def test_damage_without_the_network_is_one_clear_error(
    what: str, single: bytes, zoo: Path, hub: Hub, tmp_path: Path
) -> None:
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    flip(cached(hub, tmp_path / "cache"), inside(single, zoo, what))
    hub.log.clear()
    with (
        pytest.warns(UserWarning, match="damaged in the local cache"),
        pytest.raises(UnreachableError, match=r"my\.tall: the file in the local cache was damaged, and is removed"),
    ):
        tallstore.pull(ADDRESS, tmp_path / "out", tasks="a", local_files_only=True, **where)
    assert hub.log == []
    with tallstore.open(zoo) as local, tallstore.open(ADDRESS, **where) as opened:
        assert_same(opened.state_dict("a"), local.state_dict("a"))
