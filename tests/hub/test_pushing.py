"""Pushing: the real client, writing to a Hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from loopback import LARGE, PART, Hub, Repository, sha256
from support import bytes_of, near, tiny_zoo

import tallstore
from tallstore.errors import (
    AccessError,
    ConflictError,
    DamagedError,
    NotAnArchiveError,
    OptionError,
    OutputExistsError,
    RemoteError,
)
from tallstore.hub.card import MARKER

from .conftest import TOKEN


def push(zoo: object, hub: Hub, repo: str = "user/zoo", **how: object) -> tallstore.PushReport:
    return tallstore.push(zoo, repo, token=TOKEN, endpoint=hub.url, **how)  # type: ignore[arg-type]


def archive(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if path not in {"README.md", ".gitattributes"}}


def commits(hub: Hub) -> list[str]:
    return [path for method, path in hub.requests if method == "POST" and "/commit/" in path]


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_push_is_one_commit_that_holds_the_archive(form: str, zoo: Path, empty: Hub, tmp_path: Path) -> None:
    source = zoo
    if form == "file":
        with tallstore.open(zoo) as opened:
            source = opened.write_subset(opened.tasks, tmp_path / "zoo.tall")
    seen: list[tuple[int, int]] = []
    report = push(source, empty, progress=lambda _, done, total: seen.append((done, total)))
    assert archive(empty.files("user/zoo")) == bytes_of(zoo)
    assert len(commits(empty)) == 1
    assert empty.repos["user/zoo"].messages == ["initial commit", "Push a zoo of 3 tasks with tallstore"]
    assert report.created
    assert report.oid == empty.commit("user/zoo")
    assert report.commit_url == f"{empty.url}/user/zoo/commit/{report.oid}"
    assert set(report.add) == {*bytes_of(zoo), "README.md"}
    assert seen[-1] == (report.bytes, report.bytes)
    with tallstore.open("hf://user/zoo", endpoint=empty.url, cache_dir=tmp_path / "cache") as pulled:
        assert pulled.verify().unlisted == ()


def test_the_whole_of_the_options_reach_the_hub(zoo: Path, empty: Hub) -> None:
    with tallstore.open(zoo) as opened:
        report = opened.push_to_hub(
            "user/zoo", token=TOKEN, endpoint=empty.url, private=True, branch="next", commit_message="Mine"
        )
    repo = empty.repos["user/zoo"]
    assert repo.private
    assert "tall.json" not in empty.files("user/zoo", "main")
    assert archive(empty.files("user/zoo", "next")) == bytes_of(zoo)
    assert repo.messages[-1] == "Mine"
    assert (report.branch, report.oid) == ("next", repo.branches["next"])


def test_a_pull_request_leaves_the_branch_alone(zoo: Path, empty: Hub) -> None:
    push(zoo, empty)
    before = empty.commit("user/zoo")
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, zoo.parent / "two", overwrite=True)
    report = push(zoo.parent / "two", empty, create_pr=True)
    assert empty.commit("user/zoo") == before
    assert report.pr_url == f"{empty.url}/user/zoo/discussions/1"
    assert manifest_tasks(empty.files("user/zoo", "refs/pr/1")) == ["a", "b"]


def manifest_tasks(files: dict[str, bytes]) -> list[str]:
    return list(json.loads(files["tall.json"])["tasks"])


def test_what_is_there_is_not_sent_again_and_what_went_is_removed(zoo: Path, empty: Hub, tmp_path: Path) -> None:
    push(zoo, empty)
    commit = empty.commit("user/zoo")
    empty.page = 3  # the listing comes in pages
    empty.log.clear()
    again = push(zoo, empty)
    assert (again.add, again.delete, again.oid) == ({}, (), commit)
    assert set(again.keep) == {*bytes_of(zoo), "README.md"}
    assert commits(empty) == []
    assert [r for r in empty.log if r.method == "PUT"] == []
    with tallstore.open(zoo) as opened:
        smaller = opened.write_subset(["a", "c"], tmp_path / "smaller")
    empty.repos["user/zoo"].add("main", {**empty.files("user/zoo"), "notes.txt": b"mine"}, "notes")
    report = push(smaller, empty)
    assert set(report.delete) == {path for path in bytes_of(zoo) if path.startswith("tasks/b/")}
    assert archive(empty.files("user/zoo")) == {**bytes_of(smaller), "notes.txt": b"mine"}
    assert set(report.add) == {"tall.json", "config.json", "README.md"}


@pytest.mark.parametrize("multipart", [False, True])
def test_a_push_that_was_cut_off_goes_on_where_it_was(multipart: bool, empty: Hub, tmp_path: Path) -> None:
    """Files of 150 kB and more, in parts or not. The server refuses one upload."""
    base = {f"w{i}": t for i in range(6) for t in [tiny_zoo(1)[0]["emb.weight"].repeat(60, 2)]}
    tallstore.pack(base, {t: {n: near(w, i) for n, w in base.items()} for i, t in enumerate("abcd", 1)},
                   tmp_path / "zoo", base_codec="raw", recipe="fit", vector="f32")  # fmt: skip
    empty.multipart = multipart
    names = [path for path, data in bytes_of(tmp_path / "zoo").items() if len(data) >= LARGE]
    assert len(names) >= 5
    assert max(len(data) for data in bytes_of(tmp_path / "zoo").values()) > 2 * PART
    (last,) = [sha256(d) for p, d in bytes_of(tmp_path / "zoo").items() if p == "tasks/d/mask.safetensors"]
    stop = empty.fail(f"^PUT /store/{last}", "status", 400)
    with pytest.raises(RemoteError, match="hf://user/zoo@main"):
        push(tmp_path / "zoo", empty)
    first = {r.path for r in empty.log if r.method == "PUT" and r.status == 200}
    assert first
    assert "tall.json" not in empty.files("user/zoo"), "nothing of it shows"
    stop.times = 0
    empty.log.clear()
    push(tmp_path / "zoo", empty)
    second = {r.path for r in empty.log if r.method == "PUT"}
    whole = {path.split("/")[2] for path in first} & set(empty.stored)
    assert not {path.split("/")[2] for path in second} & (whole - {last}), "what was whole is not sent again"
    assert any(last in path for path in second)
    assert archive(empty.files("user/zoo")) == bytes_of(tmp_path / "zoo")


def test_a_commit_in_between_is_a_conflict_and_nothing_is_pushed(zoo: Path, empty: Hub) -> None:
    push(zoo, empty)
    repo = empty.repos["user/zoo"]
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, zoo.parent / "two", overwrite=True)

    def meanwhile() -> None:
        if "meanwhile" not in repo.messages:
            repo.add("main", {**empty.files("user/zoo"), "x": b"x"}, "meanwhile")

    empty.before_commit = meanwhile
    with pytest.raises(ConflictError, match="changed in the meantime; nothing was pushed: push again"):
        push(zoo.parent / "two", empty)
    assert manifest_tasks(empty.files("user/zoo")) == ["a", "b", "c"]
    push(zoo.parent / "two", empty)
    assert manifest_tasks(empty.files("user/zoo")) == ["a", "b"]
    assert empty.files("user/zoo")["x"] == b"x"


def test_a_dry_run_changes_nothing_and_lists_what_the_push_sends(zoo: Path, empty: Hub) -> None:
    dry = push(zoo, empty, dry_run=True)
    assert dry.created
    assert dry.dry_run
    assert empty.repos == {}
    assert not [r for r in empty.log if r.method != "GET"]
    real = push(zoo, empty)
    assert dict(dry.add) == dict(real.add)
    assert dry.to_json()["bytes"] == real.bytes


# The model card.


def test_the_card_says_what_is_there_and_how_to_load_it(zoo: Path, empty: Hub) -> None:
    push(zoo, empty, license="apache-2.0", picture=b"\x89PNG and so on")
    text = empty.files("user/zoo")["README.md"].decode()
    facts = yaml.safe_load(text.split("---")[1])
    assert facts["library_name"] == "tallstore"
    assert facts["license"] == "apache-2.0"
    assert "tallstore" in facts["tags"]
    with tallstore.open(zoo) as opened:
        for task, measured in opened.info()["tasks"].items():
            (row,) = [line for line in text.splitlines() if line.startswith(f"| {task} |")]
            assert f"{measured['relative_error']:.3f}" in row
            assert f'tallstore.from_pretrained("user/zoo", task="{task}")' in text
    assert "](card.png)" in text
    assert empty.files("user/zoo")["card.png"].startswith(b"\x89PNG")


def test_the_card_takes_whatever_was_written_as_measured(zoo: Path) -> None:
    """An archive that is pushed may be a stranger's: what it says it measured is anybody's JSON."""
    from tallstore.hub.card import model_card

    with tallstore.open(zoo) as opened:
        facts = opened.info()
    for wrong in ("text | x", [1], {"a": 1}, True, None, 1e308, -1, {"original": "1", "decoded": []}, {"original": 0}):
        keys = ("relative_error", "bytes", "scores", "checkpoint_bytes")
        text = model_card({**facts, "tasks": {name: dict.fromkeys(keys, wrong) for name in facts["tasks"]}}, "user/zoo")
        assert "text | x" not in text
        assert all(f"| {name} |" in text for name in facts["tasks"])


def test_our_card_is_updated_and_a_hand_written_one_never(zoo: Path, empty: Hub, tmp_path: Path) -> None:
    push(zoo, empty)
    with tallstore.open(zoo) as opened:
        smaller = opened.write_subset(["a"], tmp_path / "smaller")
    push(smaller, empty)
    ours = empty.files("user/zoo")["README.md"].decode()
    assert MARKER in ours
    assert "| b |" not in ours
    own = ours.replace(MARKER, "").encode()
    empty.repos["user/zoo"].add("main", {**empty.files("user/zoo"), "README.md": own}, "my own words")
    push(zoo, empty)
    assert empty.files("user/zoo")["README.md"] == own


def test_a_card_in_the_archive_s_folder_is_pushed_as_it_is(zoo: Path, empty: Hub, tmp_path: Path) -> None:
    with tallstore.open(zoo) as opened:
        copy = opened.write_subset(opened.tasks, tmp_path / "copy")
    (copy / "README.md").write_text("# My zoo\n")
    push(copy, empty)
    assert empty.files("user/zoo")["README.md"] == b"# My zoo\n"


# What is refused.


def test_a_damaged_archive_is_not_pushed(zoo: Path, empty: Hub, tmp_path: Path) -> None:
    for form in ("copy", "copy.tall"):
        with tallstore.open(zoo) as opened:
            copy = opened.write_subset(opened.tasks, tmp_path / form)
        part = bytes_of(zoo)["tasks/b/mask.safetensors"]
        place = copy / "tasks/b/mask.safetensors" if copy.is_dir() else copy
        data = bytearray(place.read_bytes())
        data[data.index(part) + len(part) - 20] ^= 1
        place.write_bytes(data)
        with pytest.raises(DamagedError, match=r"tasks/b/\w+\.safetensors: damaged .* nothing was pushed"):
            push(copy, empty)
    assert "tall.json" not in empty.files("user/zoo")


def test_another_model_s_repository_is_not_overwritten(zoo: Path, empty: Hub) -> None:
    empty.repos["user/model"] = Repository()
    before = {"config.json": b"{}", "model.safetensors": b"x" * 2000}
    empty.repos["user/model"].add("main", before, "a model")
    with pytest.raises(OutputExistsError, match="user/model@main: holds another model"):
        push(zoo, empty, "user/model")
    assert empty.files("user/model") == before


@pytest.mark.parametrize(
    ("repo", "token", "error", "words"),
    [
        ("user/zoo", "hf_wrongwrongwrong", AccessError, "token"),
        ("user/zoo", False, AccessError, "token"),
        ("other/zoo", TOKEN, AccessError, "right"),
        ("no-owner", TOKEN, OptionError, "user/name"),
        ("user/zoo/more", TOKEN, OptionError, "user/name"),
        ("../zoo", TOKEN, tallstore.TallstoreError, "user/name"),
    ],
)
def test_who_may_not_is_told_in_one_line(
    repo: str, token: str | bool, error: type[Exception], words: str, zoo: Path, empty: Hub
) -> None:
    with pytest.raises(error, match=words) as caught:
        tallstore.push(zoo, repo, token=token, endpoint=empty.url)
    assert "\n" not in str(caught.value)
    assert "hf_" not in str(caught.value)
    assert empty.repos == {}


def test_what_is_no_archive_is_not_pushed(empty: Hub, tmp_path: Path) -> None:
    with pytest.raises(NotAnArchiveError):
        push(tmp_path, empty)
    with pytest.raises(OptionError, match="PNG"):
        push(_any(tmp_path), empty, picture=b"GIF")
    assert empty.log == []


def _any(folder: Path) -> Path:
    base, tasks = tiny_zoo(1)
    tallstore.pack(base, tasks, folder / "any")
    return folder / "any"
