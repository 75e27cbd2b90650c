"""Pulling: through the Hub's own cache, at one commit, exactly what the task needs; damage, cut connections, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from loopback import Hub, Repository
from processes import Forks
from safetensors.torch import load_file
from support import assert_same, bytes_of, leftovers, same_bits, slots, tiny_zoo

import tallstore
from tallstore.errors import (
    AccessError,
    DamagedError,
    FormatError,
    NoSuchRepoError,
    NoSuchRevisionError,
    NoSuchTaskError,
    NotAnArchiveError,
    OptionError,
    OutputExistsError,
    UnreachableError,
    VersionError,
)

from .cached_files import MASK, flip, states
from .conftest import TOKEN, needed

# Exactly what is needed.


def test_a_task_costs_its_own_files_and_the_next_one_only_its_own(zoo: Path, hub: Hub, cache: Path) -> None:
    where = {"endpoint": hub.url, "cache_dir": cache}
    with tallstore.open("hf://user/zoo", **where) as opened:
        assert hub.got() == {"tall.json": len(bytes_of(zoo)["tall.json"])}, "opening reads the manifest alone"
        assert opened.tasks == ("a", "b", "c")
        hub.log.clear()
        assert_same(opened.state_dict("a"), states(zoo)["a"])
        weights = {path: size for path, size in needed(zoo, "a").items() if path.endswith(".safetensors")}
        assert hub.got() == weights
        hub.log.clear()
        opened.state_dict("b")
        assert set(hub.got()) == {
            path for path in needed(zoo, "b") if path.startswith("tasks/b/") and "files" not in path
        }
    hub.log.clear()
    with tallstore.open("hf://user/zoo", **where) as opened:
        assert_same(opened.state_dict("a"), states(zoo)["a"])
    assert hub.got() == {}, "the second time, nothing is fetched"


def test_pull_writes_a_model_that_stock_loaders_open(zoo: Path, hub: Hub, cache: Path, tmp_path: Path) -> None:
    report = tallstore.pull("user/zoo", tmp_path / "a", tasks="a", endpoint=hub.url, cache_dir=cache)
    assert_same(load_file(tmp_path / "a" / "model.safetensors"), states(zoo)["a"])
    assert json.loads((tmp_path / "a" / "config.json").read_bytes())["name"] == "a"
    assert hub.got() == {"tall.json": len(bytes_of(zoo)["tall.json"]), **needed(zoo, "a")}
    assert dict(report.fetched) == hub.got()
    assert report.url == f"hf://user/zoo@{hub.commit('user/zoo')}"
    again = tallstore.pull("user/zoo", tmp_path / "more", tasks=["a", "b"], endpoint=hub.url, cache_dir=cache)
    assert set(again.fetched) == {path for path in needed(zoo, "b") if path.startswith("tasks/b/")}
    assert again.paths == {"a": str(tmp_path / "more" / "a"), "b": str(tmp_path / "more" / "b")}
    assert (tmp_path / "more" / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "a" / "model.safetensors"
    ).read_bytes()
    fresh = tallstore.pull("user/zoo", tasks="a", force_download=True, endpoint=hub.url, cache_dir=cache)
    assert dict(fresh.fetched) == dict(report.fetched), "what is cached is fetched again when that is asked for"
    every = tallstore.pull("user/zoo", endpoint=hub.url, cache_dir=cache)
    assert (every.tasks, dict(every.paths)) == (("a", "b", "c"), {})


def test_pull_writes_a_smaller_archive(zoo: Path, hub: Hub, cache: Path, target: Path) -> None:
    tallstore.pull("user/zoo", target, tasks=["c", "a"], archive=True, endpoint=hub.url, cache_dir=cache)
    assert not [path for path in hub.got() if path.startswith("tasks/b/")]
    with tallstore.open(target) as opened:
        assert opened.verify().unlisted == ()
        assert opened.tasks == ("a", "c")
        assert_same(opened.state_dict("c"), states(zoo)["c"])
        assert json.loads(bytes(opened.store.read("config.json", 0, opened.store.size("config.json"))))["tasks"] == [
            "a",
            "c",
        ]
    tallstore.pull("user/zoo", target, archive=True, overwrite=True, endpoint=hub.url, cache_dir=cache)
    if target.is_dir():
        assert bytes_of(target) == bytes_of(zoo), "all tasks make the same archive"


def test_every_file_comes_from_one_commit(zoo: Path, hub: Hub, cache: Path) -> None:
    base, tasks = tiny_zoo(2)
    tallstore.pack(
        {n: t + 1 for n, t in base.items()}, {"a": {n: t + 1 for n, t in tasks["a"].items()}}, cache.parent / "new"
    )
    first = hub.commit("user/zoo")
    with tallstore.open("hf://user/zoo", endpoint=hub.url, cache_dir=cache) as opened:
        hub.repos["user/zoo"].add("main", bytes_of(cache.parent / "new"), "another zoo")
        assert_same(opened.state_dict("a"), states(zoo)["a"])
        assert opened.url == f"hf://user/zoo@{first}"
    with tallstore.open("hf://user/zoo", endpoint=hub.url, cache_dir=cache) as opened:
        assert opened.tasks == ("a",)
    hub.repos["user/zoo"].tags["v1"] = first
    for name, revision in (("hf://user/zoo@v1", None), (f"hf://user/zoo@{first}", None), ("hf://user/zoo", "v1")):
        with tallstore.open(name, revision=revision, endpoint=hub.url, cache_dir=cache) as opened:
            assert opened.url == f"hf://user/zoo@{first}"
            assert opened.tasks == ("a", "b", "c")


def test_a_pull_by_hand_is_whole_for_its_task(zoo: Path, hub: Hub, cache: Path, tmp_path: Path) -> None:
    """`hf download user/zoo tall.json config.json base/ common/ vector/ tasks/a/`, by the function behind it."""
    patterns = ["tall.json", "config.json", "base/*", "common/*", "vector/*", "tasks/a/*"]
    api = huggingface_hub.HfApi(endpoint=hub.url)
    folder = api.snapshot_download("user/zoo", allow_patterns=patterns, local_dir=tmp_path / "hand", cache_dir=cache)
    with tallstore.open(folder) as opened:
        assert_same(opened.state_dict("a"), states(zoo)["a"])
        opened.export("a", tmp_path / "out")
        with pytest.raises(DamagedError, match=r"tasks/b/mask\.safetensors is missing"):
            opened.state_dict("b")


class Tiny(torch.nn.Module):
    """A module with the tensors of the tiny zoo."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(40, 16)
        self.fc = torch.nn.Linear(32, 16)
        self.norm = torch.nn.Linear(1, 300, bias=False)
        self.fc.bias = torch.nn.Parameter(torch.zeros(32))
        self.norm.weight = torch.nn.Parameter(torch.zeros(300))


@pytest.mark.parametrize("lazy", [False, True])
def test_a_raw_base_that_is_damaged_on_the_way_into_a_module(
    lazy: bool, hub: Hub, cache: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A raw base is read run by run into the model's memory and checked at the end: the whole work is done again."""
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, tmp_path / "raw", base_codec="raw")
    hub.repos["user/raw"] = Repository()
    hub.repos["user/raw"].add("main", bytes_of(tmp_path / "raw"), "raw")
    if not lazy:
        tallstore.pull("user/raw", tasks="a", endpoint=hub.url, cache_dir=cache)
        (part,) = cache.glob("models--user--raw/snapshots/*/base/base.safetensors")
        flip(part.resolve(), slots(part.read_bytes())[1]["fc.weight"][0] + 9)
    model = Tiny()
    with tallstore.open("hf://user/raw", lazy=lazy, endpoint=hub.url, cache_dir=cache) as opened:
        assert same_bits(opened.base("fc.bias"), base["fc.bias"])
        fault = hub.fail(r"^GET /cdn/.*base\.safetensors", "flip", at=30, times=int(lazy))
        opened.load_into(model, "a")
        assert fault.times == 0
    assert_same({n: model.state_dict()[n] for n in tasks["a"]}, states(tmp_path / "raw", "a")["a"])
    assert [str(each.message).split(": ")[1] for each in recwarn] == ["base/base.safetensors"] * (not lazy)


def test_a_task_is_written_into_a_module_from_far_away(zoo: Path, hub: Hub, cache: Path) -> None:
    for how in ({"lazy": True}, {}):
        model = Tiny()
        with tallstore.open("hf://user/zoo", endpoint=hub.url, cache_dir=cache, **how) as opened:
            opened.load_into(model, "c")
        for name, tensor in states(zoo)["c"].items():
            assert same_bits(model.state_dict()[name], tensor)


# What is refused, in one line each.


def refused(error: type[Exception], words: str, hub: Hub, cache: Path, name: str = "user/zoo", **how: Any) -> str:
    out = cache.parent / "refused" / "out"
    how = {"tasks": "a", "endpoint": hub.url, "cache_dir": cache, **how}
    with pytest.raises(error, match=words) as caught:
        tallstore.pull(name, out, **how)
    assert "\n" not in str(caught.value)
    assert "hf_" not in str(caught.value)
    assert leftovers(cache.parent / "refused") == []
    return str(caught.value)


def test_bad_names_and_rights(zoo: Path, hub: Hub, cache: Path) -> None:
    refused(NoSuchRepoError, "user/nothing: no such repository", hub, cache, "user/nothing")
    refused(NoSuchRevisionError, "user/zoo@v9: the repository has no such", hub, cache, "user/zoo@v9")
    refused(NoSuchRevisionError, "no such branch, tag or commit", hub, cache, revision="0" * 40)
    refused(NoSuchTaskError, "no task 'mnist'; there are a, b, c", hub, cache, tasks="mnist")
    refused(OptionError, "'v2' was given too", hub, cache, "hf://user/zoo@v1", revision="v2")
    refused(NotAnArchiveError, "no/such/path: there is nothing there", hub, cache, "no/such/path")
    hub.repos["user/zoo"].gated = True
    refused(AccessError, "gated: ask for access", hub, cache)
    hub.repos["user/zoo"].gated = False
    hub.repos["user/zoo"].private = True
    refused(NoSuchRepoError, "no such repository on the Hub, or a private one: .*--token", hub, cache)
    refused(AccessError, "does not accept the token", hub, cache, token="hf_wrongwrongwrong")
    with tallstore.open("hf://user/zoo", token=TOKEN, endpoint=hub.url, cache_dir=cache) as opened:
        assert_same(opened.state_dict("a"), states(zoo)["a"])
    assert not [r for r in hub.log if r.token is not None and r.path.startswith("/cdn/")], (
        "the token stays with the Hub"
    )


def test_what_is_no_archive_or_a_newer_one(zoo: Path, hub: Hub, cache: Path) -> None:
    repo = hub.repos["user/zoo"]
    files = bytes_of(zoo)
    repo.add("main", {"config.json": b"{}", "model.safetensors": b"x" * 2000}, "a model")
    assert "no tall.json in it" in refused(NotAnArchiveError, "not an archive", hub, cache)
    newer = files["tall.json"].replace(b'"version": "1.', b'"version": "2.')
    assert newer != files["tall.json"]
    repo.add("main", {**files, "tall.json": newer}, "newer")
    refused(VersionError, "format version 2.0.*pip install", hub, cache)
    repo.add("main", {**files, "tall.json": b"{" * (1 << 24) + b"{"}, "huge")
    hub.log.clear()
    refused(FormatError, "tall.json of 16777217 bytes is over the cap", hub, cache)
    assert hub.got() == {}, "and it was not fetched to see that"
    repo.add("main", {p: d for p, d in files.items() if p != MASK}, "a part is missing")
    refused(DamagedError, f"{MASK} is missing", hub, cache)


def test_an_output_that_is_there_is_kept(hub: Hub, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for how in ({}, {"overwrite": True}, {"archive": True}):
        with pytest.raises(OutputExistsError):
            tallstore.pull("user/zoo", tmp_path / "mine", tasks="a", endpoint=hub.url, cache_dir=cache, **how)
    assert leftovers(tmp_path / "mine") == ["thesis.txt"]
    assert not [path for path in hub.got() if path != "tall.json"], "and nothing was downloaded to find that out"
    with pytest.raises(OptionError, match="output"):
        tallstore.pull("user/zoo", tasks="a", archive=True, endpoint=hub.url, cache_dir=cache)


def test_without_the_network(zoo: Path, hub: Hub, cache: Path, tmp_path: Path) -> None:
    said = refused(UnreachableError, "not in the local cache", hub, cache, local_files_only=True)
    assert said.startswith("hf://user/zoo: ")
    tallstore.pull("user/zoo", tasks="a", endpoint=hub.url, cache_dir=cache)
    hub.log.clear()
    tallstore.pull("user/zoo", tmp_path / "a", tasks="a", local_files_only=True, endpoint=hub.url, cache_dir=cache)
    assert hub.log == []
    refused(UnreachableError, "tasks/b/.*not in the local cache", hub, cache, tasks="b", local_files_only=True)
    hub.fail("^(GET|HEAD) ", "status", 503)
    with tallstore.open("hf://user/zoo", endpoint=hub.url, cache_dir=cache) as opened:
        assert_same(opened.state_dict("a"), states(zoo)["a"])


ENVIRONMENT = """
import tallstore
for tasks in ("a", "b"):
    try:
        print(tallstore.pull("user/zoo", tasks=tasks).url)
    except tallstore.TallstoreError as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_the_environment_means_what_it_means_to_the_hub_s_tools(hub: Hub, tmp_path: Path, forks: Forks) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE."""
    hub.repos["user/zoo"].private = True
    env = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    url = f"hf://user/zoo@{hub.commit('user/zoo')}"
    assert forks.run(ENVIRONMENT, env=env) == (0, f"started\n{url}\n{url}\n")
    assert list((tmp_path / "home" / "hub").glob("models--user--zoo/snapshots/*/tall.json"))
    hub.log.clear()
    offline = {**env, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    assert forks.run(ENVIRONMENT, env=offline) == (0, f"started\n{url}\n{url}\n")
    code, text = forks.run(ENVIRONMENT, env={**offline, "HF_HOME": str(tmp_path / "elsewhere")})
    assert code == 0
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == ["UnreachableError"] * 2
    assert hub.log == []
    code, text = forks.run(
        ENVIRONMENT, env={**env, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "none")}
    )
    assert "UnreachableError: hf://user/zoo: the Hub cannot be reached" in text
