"""Pulling what is damaged, on the wire, in the cache or on the Hub; connections that are cut; bases that changed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from loopback import Hub, Repository
from safetensors.torch import load_file, save
from support import assert_same, bytes_of, leftovers, same_bits, slots, tiny_zoo, write_folder

import tallstore
from tallstore.errors import (
    BaseNeededError,
    DamagedError,
    UnreachableError,
    WrongBaseError,
)

from .cached_files import MASK, cached, flip, states
from .conftest import needed, run

# Damage.


@pytest.mark.parametrize(
    "path", [MASK, "base/base.safetensors", "tall.json", "tasks/a/files/config.json", "common/vocab.txt"]
)
def test_a_flipped_byte_on_the_wire_is_found_and_the_file_fetched_again(
    path: str, zoo: Path, hub: Hub, cache: Path, tmp_path: Path
) -> None:
    hub.fail(f"^GET /.*/{path}$", "flip", at=200, times=1)
    with pytest.warns(UserWarning, match=f"{path}: damaged"):
        tallstore.pull("user/zoo", tmp_path / "out", tasks="a", endpoint=hub.url, cache_dir=cache)
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), states(zoo)["a"])
    for each, data in bytes_of(zoo).items():
        if each in needed(zoo, "a"):
            assert cached(cache, each).read_bytes() == data


def test_a_file_that_is_damaged_on_the_hub_is_named_and_nothing_is_left(
    zoo: Path, hub: Hub, cache: Path, tmp_path: Path
) -> None:
    hub.fail(f"^GET /.*/{MASK}$", "flip", at=300)
    for _ in range(2):
        with (
            pytest.raises(DamagedError, match=rf"hf://user/zoo@\w+: {MASK}: damaged"),
            pytest.warns(UserWarning, match=MASK),
        ):
            tallstore.pull("user/zoo", tmp_path / "work" / "out", tasks="a", endpoint=hub.url, cache_dir=cache)
        assert not [p for p in cache.rglob("*") if p.name == "mask.safetensors"]
        assert leftovers(tmp_path / "work") == []


@pytest.mark.parametrize("path", [MASK, "base/base.safetensors", "tall.json", "tasks/a/files/config.json"])
@pytest.mark.parametrize("how", ["open", "pull", "verify", "archive"])
def test_a_flipped_byte_in_the_cache_is_named_dropped_and_fetched_again(
    path: str, how: str, zoo: Path, hub: Hub, cache: Path, tmp_path: Path
) -> None:
    where = {"endpoint": hub.url, "cache_dir": cache}
    tallstore.pull("user/zoo", cache.parent / "all", archive=True, **where)
    data = bytes_of(zoo)[path]
    inside = slots(data)[1] if path.endswith(".safetensors") else {"": (len(data) // 2, len(data))}
    flip(cached(cache, path).resolve(), next(start for start, stop in inside.values() if stop > start) + 1)
    hub.log.clear()

    def again() -> None:
        if how == "pull":
            tallstore.pull("user/zoo", tmp_path / "out", tasks="a", **where)
            return
        with tallstore.open("hf://user/zoo", **where) as opened:
            if how == "verify":
                opened.verify()
            if how == "archive":
                opened.write_subset(["a"], tmp_path / "smaller")
            assert_same(opened.state_dict("a"), states(zoo)["a"])
            opened.export("a", tmp_path / "out")

    with pytest.warns(UserWarning, match=f"{path}: damaged in the local cache"):
        again()
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), states(zoo)["a"])
    assert hub.got() == {path: len(data)}, "that file, and no other"
    assert cached(cache, path).read_bytes() == data


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an archive with every kind of part: base, vector, mask, private and exact."""
    base, tasks = tiny_zoo(2)
    tasks["a"]["head"] = torch.arange(700, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("every")
    for name, state in tasks.items():
        write_folder(folder / name, state, name=name)
        (folder / name / "vocab.txt").write_text("one\ntwo\n" * 300)
    tallstore.pack(base, {n: folder / n for n in tasks}, folder / "zoo", recipe="fit", exact=["a"], allow_distant=True)
    return bytes_of(folder / "zoo")


@pytest.mark.parametrize("place", ["wire", "cache"])
def test_a_flipped_byte_at_any_place_of_any_file_is_found_and_named(
    place: str, every_kind: dict[str, bytes], hub: Hub, cache: Path, tmp_path: Path
) -> None:
    """Three random bytes of each file that the task needs. What comes out is right, and only that file came again."""
    hub.repos["user/every"] = Repository()
    hub.repos["user/every"].add("main", every_kind, "every")
    where = {"endpoint": hub.url, "cache_dir": cache}
    tallstore.pull("user/every", tmp_path / "right", tasks="a", exact=True, **where)
    right = bytes_of(tmp_path / "right")
    files = sorted(hub.got())
    assert {path.split("/")[-1].split(".")[0] for path in files} >= {"mask", "private", "exact", "base", "config", "0"}
    chance = random.Random(7)
    for path in files:
        for _ in range(3):
            at = chance.randrange(len(every_kind[path]))
            own = dict(where)
            if place == "wire":
                own["force_download"] = True
                hub.fail(f"^GET /.*/{path}$", "flip", at=at, times=1)
            else:
                (found,) = cache.glob(f"models--user--every/snapshots/*/{path}")
                flip(found.resolve(), at)
            hub.log.clear()
            with pytest.warns(UserWarning, match=f"{path}: damaged") as told:
                tallstore.pull("user/every", tmp_path / "out", tasks="a", exact=True, overwrite=True, **own)
            assert len(told) == 1
            assert bytes_of(tmp_path / "out") == right
            again = {each for each, size in hub.got().items() if size > len(every_kind[each])}
            assert again == ({path} if place == "wire" else set())
            assert place == "wire" or set(hub.got()) == {path}


def test_a_file_cut_short_in_the_cache_is_fetched_again(zoo: Path, hub: Hub, cache: Path) -> None:
    where = {"endpoint": hub.url, "cache_dir": cache}
    tallstore.pull("user/zoo", tasks="a", **where)
    blob = cached(cache, MASK).resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    with (
        pytest.warns(UserWarning, match=f"{MASK}: of the wrong size"),
        tallstore.open("hf://user/zoo", **where) as opened,
    ):
        assert_same(opened.state_dict("a"), states(zoo)["a"])


def test_a_damaged_cache_without_the_network_is_one_clear_error(zoo: Path, hub: Hub, cache: Path) -> None:
    where = {"endpoint": hub.url, "cache_dir": cache}
    tallstore.pull("user/zoo", tasks="a", **where)
    places = slots(bytes_of(zoo)[MASK])[1]
    flip(cached(cache, MASK).resolve(), places["fc.weight"][0] + 5)
    with pytest.warns(UserWarning, match=MASK), pytest.raises(UnreachableError, match=f"{MASK}: .*is removed"):
        with tallstore.open("hf://user/zoo", local_files_only=True, **where) as opened:
            opened.state_dict("a")
    with tallstore.open("hf://user/zoo", **where) as opened:
        assert_same(opened.state_dict("a"), states(zoo)["a"])


@pytest.mark.parametrize("kind", ["zoo", "small"])
def test_a_connection_cut_anywhere_and_the_same_command_again(
    kind: str, zoo: Path, hub: Hub, cache: Path, tmp_path: Path, request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Cuts at random places of random files: the second run completes and fetches no finished file again.

    `small` only references its base: that is cut off in its own repository.
    """
    chance = random.Random(20)
    folder = zoo if kind == "zoo" else request.getfixturevalue("referencing")
    files = bytes_of(folder)
    sizes = {"tall.json": len(files["tall.json"]), **needed(folder, "a")}
    if kind == "small":
        sizes["model.safetensors"] = len(hub.files("user/base")["model.safetensors"])
    paths = [path for path, size in sizes.items() if size > 1]
    with tallstore.open(folder, base=None if kind == "zoo" else tiny_zoo(2)[0]) as opened:
        wanted = opened.state_dict("a")
    for number in range(20 if os.environ.get("TALLSTORE_THOROUGH") else 6):
        out = tmp_path / "work" / "out"
        where = ("--endpoint", hub.url, "--cache-dir", cache / str(number))
        command = ("pull", f"user/{kind}", "--task", "a", "-o", out, *where)
        path = chance.choice(paths)
        hub.log.clear()
        cut = hub.fail(f"^GET /.*/{path}$", "cut", at=chance.randrange(1, sizes[path]))
        code, said, err = run(capsys, *command)
        assert (code, said, len(err.splitlines())) == (1, "", 1), err
        assert (path if path in files else "user/base@") in err
        assert leftovers(tmp_path / "work") == []
        cut.times = 0
        whole = {p for p, n in hub.got().items() if n == sizes.get(p)}
        hub.log.clear()
        code, said, err = run(capsys, *command)
        assert (code, err) == (0, ""), number
        assert "every file whole" in said
        assert not set(hub.got()) & (whole - {path}), number
        assert_same(load_file(out / "model.safetensors"), wanted)
        for each, data in files.items():
            if each in sizes:
                (found,) = (cache / str(number)).glob(f"models--user--{kind}/snapshots/*/{each}")
                assert found.read_bytes() == data, (number, each)
        out.rename(tmp_path / f"done-{number}")


def test_a_connection_that_breaks_once_is_taken_up_again(zoo: Path, hub: Hub, cache: Path) -> None:
    hub.fail(f"^GET /cdn/.*/{MASK}$", "cut", at=700, times=1)
    with tallstore.open("hf://user/zoo", endpoint=hub.url, cache_dir=cache) as opened:
        assert_same(opened.state_dict("a"), states(zoo)["a"])


# A base that is only referenced.


def test_a_referenced_base_comes_from_its_own_repository(
    referencing: Path, hub: Hub, cache: Path, tmp_path: Path
) -> None:
    where = {"endpoint": hub.url, "cache_dir": cache}
    base, _ = tiny_zoo(2)
    with tallstore.open(referencing, base=base) as local, tallstore.open("hf://user/small", **where) as opened:
        assert [p for p in hub.got() if p.endswith("model.safetensors")] == []
        assert_same(opened.state_dict("a"), local.state_dict("a"))
        assert same_bits(opened.base("fc.weight"), base["fc.weight"])
    fetched = [r.path for r in hub.log if r.method == "GET" and "/base/" in r.path and "/api/" not in r.path]
    assert [path.split("/")[-1] for path in fetched if "cdn" in path] == ["model.safetensors"], "the weights alone"
    hub.log.clear()
    tallstore.pull("user/small", tmp_path / "b", tasks="b", **where)
    assert [p for p in hub.got() if p.endswith("model.safetensors")] == [], "it is at hand"
    tallstore.pull("user/small", tmp_path / "again", tasks="b", local_files_only=True, **where)
    del hub.repos["user/base"]
    tallstore.pull("user/small", tmp_path / "gone", tasks="b", **where)
    with tallstore.open(referencing) as local, pytest.raises(BaseNeededError, match="user/base"):
        local.state_dict("a")


def test_a_referenced_base_that_is_damaged_in_the_cache_is_fetched_again(
    referencing: Path, hub: Hub, cache: Path, tmp_path: Path
) -> None:
    where = {"endpoint": hub.url, "cache_dir": cache}
    with tallstore.open("hf://user/small", **where) as opened:
        wanted = opened.state_dict("a")
    (weights,) = cache.glob("models--user--base/snapshots/*/model.safetensors")
    flip(weights.resolve(), slots(weights.read_bytes())[1]["fc.weight"][0] + 1)
    with pytest.raises(WrongBaseError, match=r"tensor 'fc\.weight' differs"):
        tallstore.pull("user/small", tmp_path / "offline", tasks="a", local_files_only=True, **where)
    with tallstore.open("hf://user/small", **where) as opened:
        with pytest.warns(UserWarning, match="user/base@.*: model.safetensors: damaged in the local cache"):
            assert_same(opened.state_dict("a"), wanted)
        assert_same(opened.state_dict("a"), wanted)
    flip(weights.resolve(), 20)
    with tallstore.open("hf://user/small", **where) as opened:
        with pytest.warns(UserWarning, match="user/base@.*: model.safetensors: damaged in the local cache"):
            assert_same(opened.state_dict("a"), wanted)


def test_a_base_that_changed_or_went_is_named(referencing: Path, hub: Hub, cache: Path) -> None:
    where = {"endpoint": hub.url, "cache_dir": cache}
    repo = hub.repos["user/base"]
    base, _ = tiny_zoo(2)
    base["fc.weight"] = base["fc.weight"] + 1
    commit = hub.commit("user/base")
    repo.commits[commit] = {**repo.commits[commit], "model.safetensors": save(base)}
    with tallstore.open("hf://user/small", **where) as opened:
        with pytest.raises(WrongBaseError, match=rf"user/base@{commit}: not the base of .*'fc.weight'"):
            opened.state_dict("a")
    del hub.repos["user/base"]
    with tallstore.open("hf://user/small", endpoint=hub.url, cache_dir=cache / "new") as opened:
        with pytest.raises(BaseNeededError, match=rf"user/base@{commit}: the archive's base cannot be had .*--base"):
            opened.state_dict("a")
