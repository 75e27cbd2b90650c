"""push and pull as a person and as a script use them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from loopback import Hub, Repository
from processes import Forks
from safetensors.torch import load_file, save
from support import assert_same, bytes_of, leftovers, tiny_zoo

import tallstore

from .conftest import TOKEN, needed, run


def test_push_dry_run_push_and_push_again(
    zoo: Path, empty: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("--token", TOKEN, "--endpoint", empty.url)
    code, out, err = run(capsys, "push", zoo, "user/zoo", "--dry-run", *how)
    assert (code, err) == (0, "")
    assert all(path in out for path in bytes_of(zoo))
    assert "would be sent" in out
    assert empty.repos == {}
    code, out, err = run(capsys, "push", zoo, "user/zoo", "--private", "-m", "Mine", *how)
    assert (code, err) == (0, "")
    assert f"{empty.url}/user/zoo/commit/{empty.commit('user/zoo')}" in out
    assert empty.repos["user/zoo"].private
    assert empty.repos["user/zoo"].messages[-1] == "Mine"
    assert empty.files("user/zoo")["card.png"].startswith(b"\x89PNG")
    assert b"](card.png)" in empty.files("user/zoo")["README.md"]
    code, out, _ = run(capsys, "push", zoo, "user/zoo", "--json", *how)
    facts = json.loads(out)
    assert (code, facts["add"], facts["delete"], facts["bytes"]) == (0, {}, [], 0)
    assert set(facts["keep"]) == {*bytes_of(zoo), "README.md", "card.png"}
    assert run(capsys, "push", zoo, "user/zoo", "-q", *how) == (0, "", "")


def test_pull_a_task_several_and_all(zoo: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ("--endpoint", hub.url, "--cache-dir", tmp_path / "cache")
    code, out, err = run(capsys, "pull", "user/zoo", "--task", "b", "-o", tmp_path / "b", *how)
    assert (code, err) == (0, "")
    assert f"b: {tmp_path / 'b'}" in out
    with tallstore.open(zoo) as opened:
        assert_same(load_file(tmp_path / "b" / "model.safetensors"), opened.state_dict("b"))
    assert hub.got() == {"tall.json": len(bytes_of(zoo)["tall.json"]), **needed(zoo, "b")}
    code, out, _ = run(capsys, "pull", "user/zoo", "-t", "a", "-t", "b", "-o", tmp_path / "two", "--json", *how)
    facts = json.loads(out)
    assert code == 0
    assert sorted(facts["fetched"]) == sorted(path for path in needed(zoo, "a") if path.startswith("tasks/a/"))
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["a", "b"]
    assert run(capsys, "pull", "user/zoo", "--all", "-o", tmp_path / "all.tall", "-q", *how) == (0, "", "")
    with tallstore.open(tmp_path / "all.tall") as opened:
        assert opened.tasks == ("a", "b", "c")
        opened.verify()
    code, _, _ = run(capsys, "pull", "user/zoo", "--task", "b", "--local-files-only", *how)
    assert code == 0


def test_a_damaged_cache_is_a_warning_on_stderr(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ("--endpoint", hub.url, "--cache-dir", tmp_path / "cache")
    run(capsys, "pull", "user/zoo", "--task", "b", *how)
    (part,) = (tmp_path / "cache").glob("models--*/snapshots/*/tasks/b/mask.safetensors")
    part.resolve().write_bytes(part.read_bytes()[:-5] + b"wrong")
    code, _, err = run(capsys, "pull", "user/zoo", "--task", "b", *how)
    assert code == 0
    assert err.startswith("tallstore: warning: hf://user/zoo@")
    assert "tasks/b/mask.safetensors: damaged in the local cache" in err
    assert len(err.splitlines()) == 1


def test_other_verbs_take_addresses(zoo: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web = f"{hub.cdn}/cdn/user/zoo/{hub.commit('user/zoo')}"
    code, out, _ = run(capsys, "info", web, "--json")
    assert (code, list(json.loads(out)["tasks"])) == (0, ["a", "b", "c"])
    assert run(capsys, "verify", web, "-q") == (0, "", "")
    code, _, _ = run(capsys, "extract", web, "c", "-o", tmp_path / "c")
    assert code == 0
    with tallstore.open(zoo) as opened:
        assert_same(load_file(tmp_path / "c" / "model.safetensors"), opened.state_dict("c"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pull", "user/zoo", "-o", "x"), "which tasks?"),
        (("pull", "user/zoo", "--task", "a", "--all"), "which tasks?"),
        (("pull", "user/zoo", "--task", "mnist", "-o", "x"), "no task 'mnist'; there are a, b, c"),
        (("pull", "user/nothing", "--task", "a", "-o", "x"), "no such repository"),
        (("pull", "user/zoo", "--revision", "v9", "--task", "a", "-o", "x"), "no such branch, tag or commit"),
        (("pull", "user/zoo", "--task", "a", "--token", "hf_wrongwrong", "-o", "x"), "does not accept the token"),
        (("pull", "user/zoo", "--task", "a", "--local-files-only", "-o", "x"), "not in the local cache"),
        (("pull", "user/zoo", "--task", "a", "--archive"), "An archive needs an output"),
    ],
)
def test_failures_are_one_line_and_exit_code_1(
    words: tuple[str, ...], said: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words, "--endpoint", hub.url, "--cache-dir", tmp_path / "cache")
    assert (code, out) == (1, "")
    assert err.startswith("tallstore: error: ")
    assert said in err
    assert len(err.splitlines()) == 1
    assert "hf_" not in err
    assert not (tmp_path / "x").exists()


def newer(files: dict[str, bytes]) -> dict[str, bytes]:
    return {**files, "tall.json": files["tall.json"].replace(b'"version": "1.', b'"version": "2.')}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("gated", "gated: ask for access on its page"),
        ("private", "no such repository on the Hub, or a private one"),
        ("model", "no tall.json in it: not an archive"),
        ("newer", "format version 2.0"),
        ("damaged", "tasks/a/mask.safetensors: damaged"),
        ("lost", "tasks/a/mask.safetensors is missing"),
        ("down", "the Hub did not answer as it should"),
    ],
)
def test_what_is_wrong_with_a_repository_is_one_line_and_a_later_run_is_whole(
    change: str, said: str, zoo: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And when it is right again, the same command succeeds: nothing that was half fetched passes for whole."""
    repo, files = hub.repos["user/zoo"], hub.files("user/zoo")
    broken = {
        "model": {"config.json": b"{}", "model.safetensors": b"x" * 2000},
        "newer": newer(files),
        "damaged": {**files, "tasks/a/mask.safetensors": files["tasks/a/mask.safetensors"][:-1] + b"x"},
        "lost": {path: data for path, data in files.items() if path != "tasks/a/mask.safetensors"},
    }
    first = hub.commit("user/zoo")
    repo.gated, repo.private = change == "gated", change == "private"
    if change in broken:
        repo.add("main", broken[change], change)
    fault = hub.fail(
        "^(GET|HEAD) /user/zoo/resolve", "status", 501 if change == "down" else 0, int(change == "down") << 20
    )
    words = (
        "pull",
        "user/zoo",
        "-t",
        "a",
        "-o",
        tmp_path / "out",
        "--endpoint",
        hub.url,
        "--cache-dir",
        tmp_path / "c",
    )
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "")
    errors = [line for line in err.splitlines() if not line.startswith("tallstore: warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith("tallstore: error: hf://user/zoo")
    assert said in errors[0]
    assert not (tmp_path / "out").exists()
    fault.times, repo.gated, repo.private, repo.branches["main"] = 0, False, False, first
    assert run(capsys, *words, "-q") == (0, "", "")
    with tallstore.open(zoo) as opened:
        assert_same(load_file(tmp_path / "out" / "model.safetensors"), opened.state_dict("a"))


# As a shell runs it, in a process of its own, which reads the Hub's address from the environment.

COMMAND = """
import sys
from tallstore.cli import main
for words in args:
    code = 0
    try:
        main(words)
    except SystemExit as stop:
        code = stop.code or 0
    sys.stdout.flush(), sys.stderr.flush()
    print(f"exit {code}", flush=True)
"""


def shell(
    forks: Forks, hub: Hub, home: Path, *commands: tuple[object, ...], **more: str
) -> list[tuple[int, list[str]]]:
    """Commands, one after the other: the exit code of each, and every line that it said."""
    words = [list(map(str, command)) for command in commands]
    code, text = forks.run(COMMAND, *words, env={"HF_ENDPOINT": hub.url, "HF_HOME": str(home), **more})
    assert code == 0, text
    said = re.split(r"^exit (\d+)\n", text.removeprefix("started\n"), flags=re.MULTILINE)
    return [(int(code), lines.splitlines()) for lines, code in zip(said[::2], said[1::2], strict=False)]


def verbs(zoo: str, task: str, out: Path, *more: object) -> tuple[tuple[object, ...], tuple[object, ...]]:
    return (
        ("pull", zoo, "--task", task, "-o", out / "pulled", *more),
        ("extract", f"hf://{zoo}", task, "-o", out / "extracted", *more),
    )


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("user/nothing", "hf://user/nothing: no such repository on the Hub, or a private one"),
        ("user/zoo@v9", "hf://user/zoo@v9: the repository has no such branch, tag or commit"),
        ("task", "no task 'mnist'; there are a, b, c"),
        ("gated", "gated: ask for access on its page"),
        ("private", "no such repository on the Hub, or a private one"),
        ("offline", "not in the local cache, and the network is not to be used"),
        ("model", "no tall.json in it: not an archive"),
        ("newer", "format version 2.0"),
    ],
)
def test_every_verb_that_reads_says_what_is_wrong_in_one_line(
    what: str, said: str, hub: Hub, tmp_path: Path, forks: Forks
) -> None:
    repo = hub.repos["user/zoo"]
    repo.gated, repo.private = what == "gated", what == "private"
    if what == "model":
        repo.add("main", {"config.json": b"{}", "model.safetensors": b"x" * 2000}, what)
    if what == "newer":
        repo.add("main", newer(hub.files("user/zoo")), what)
    words = verbs(what if "/" in what else "user/zoo", "mnist" if what == "task" else "a", tmp_path / "work")
    for code, lines in shell(forks, hub, tmp_path / "home", *words, HF_HUB_OFFLINE=str(int(what == "offline"))):
        assert (code, len(lines)) == (1, 1), lines
        assert lines[0].startswith("tallstore: error: hf://user/")
        assert said in lines[0]
    assert leftovers(tmp_path / "work") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("bytes", "not the base of hf://user/small@.*: tensor 'fc.weight' differs .*; give the base that the zoo was"),
        ("history", "the archive's base cannot be had .*no such branch, tag or commit.*give it with base=… [(]--base"),
        ("gone", "the archive's base cannot be had .*no such repository on the Hub.*give it with base=… [(]--base"),
        ("given", "^tallstore: error: user/base: not the base of hf://user/small@.*: tensor 'fc.weight' differs"),
    ],
)
def test_a_base_that_changed_on_the_hub(
    change: str, said: str, referencing: Path, hub: Hub, tmp_path: Path, forks: Forks
) -> None:
    """Other bytes at the same commit; a history that was rewritten; no repository; and `--base`, which moved on."""
    base, repo, commit = hub.files("user/base"), hub.repos["user/base"], hub.commit("user/base")
    moved = {name: tensor + 1 for name, tensor in tiny_zoo(2)[0].items() if name == "fc.weight"}
    other = {**base, "model.safetensors": save({**tiny_zoo(2)[0], **moved})}
    if change == "bytes":
        repo.commits[commit] = other
    elif change == "gone":
        del hub.repos["user/base"]
    else:
        repo.commits = {} if change == "history" else repo.commits
        repo.add("main", other, "moved on")
    more = ("--base", "user/base") if change == "given" else ()
    for code, lines in shell(forks, hub, tmp_path / "home", *verbs("user/small", "a", tmp_path / "work", *more)):
        assert (code, len(lines)) == (1, 1), lines
        assert re.search(said, lines[0])
        assert change == "given" or f"user/base@{commit}" in lines[0]
    assert leftovers(tmp_path / "work") == []
    hub.repos["user/base"] = Repository({commit: base}, {"main": commit})
    home = "other-home" if change == "bytes" else "home"  # a commit is never asked for twice
    found = shell(forks, hub, tmp_path / home, *verbs("user/small", "a", tmp_path / "work"))
    assert [code for code, _ in found] == [0, 0], found
    with tallstore.open(referencing, base=tiny_zoo(2)[0]) as local:
        for out in ("pulled", "extracted"):
            assert_same(load_file(tmp_path / "work" / out / "model.safetensors"), local.state_dict("a"))


def test_damage_in_the_cache_is_one_line_of_warning_with_every_verb(hub: Hub, tmp_path: Path, forks: Forks) -> None:
    words = (*verbs("user/zoo", "a", tmp_path / "work"), ("verify", "hf://user/zoo"), ("info", "hf://user/zoo"))
    for number, command in enumerate(words):
        home = tmp_path / str(number)
        path = "tall.json" if command[0] == "info" else "tasks/a/mask.safetensors"
        tallstore.pull("user/zoo", endpoint=hub.url, cache_dir=home / "hub")
        (part,) = home.glob(f"hub/models--*/snapshots/*/{path}")
        part.resolve().write_bytes(part.read_bytes()[:-5] + b"wrong")
        ((code, lines),) = shell(forks, hub, home, command)
        assert code == 0
        told = [line for line in lines if "warning" in line.lower()]
        assert [line.split("@")[0] for line in told] == ["tallstore: warning: hf://user/zoo"], command
        assert f"{path}: damaged in the local cache: removed" in told[0]


def test_missing_packages_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo: Path) -> None:
    import sys

    for package, call, command in (
        ("huggingface_hub", lambda: tallstore.open("hf://user/zoo"), 'pip install "huggingface_hub>=2.4"'),
        ("huggingface_hub", lambda: tallstore.push(zoo, "user/zoo"), 'pip install "huggingface_hub>=2.4"'),
        ("transformers", lambda: tallstore.from_pretrained(zoo, task="a"), 'pip install "tallstore[transformers]"'),
        ("transformers", lambda: tallstore.load_processor(zoo, task="a"), 'pip install "tallstore[transformers]"'),
        ("fsspec.core", lambda: tallstore.open("s3://zoos/mine"), 'pip install "tallstore[remote]"'),
    ):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(tallstore.errors.MissingExtraError) as caught:
                call()
        assert command in str(caught.value)
