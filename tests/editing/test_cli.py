"""`tallstore add`, `remove`, `compact` and `pack --groups` as a person and as a script use them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import tallstore
from tallstore.cli import main

from .conftest import Models, verified


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return stop.value.code if isinstance(stop.value.code, int) else 0, out, err


def test_a_zoo_grows_and_shrinks(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    path = models.pack("zoo.tall", "ab", recipe="fit")
    code, out, err = run(capsys, "add", path, f"more={models.folders['c']}", models.folders["d"])
    assert (code, err) == (0, "")
    assert "more" in out
    assert "4 tasks" in out
    code, out, _ = run(capsys, "remove", path, "a", "d", "--json")
    facts = json.loads(out)
    assert (code, facts["removed"], facts["tasks"]) == (0, ["a", "d"], ["b", "more"])
    code, out, _ = run(capsys, "compact", path)
    assert code == 0
    assert "do without their vector" in out or "nothing to gain" in out
    assert run(capsys, "compact", path, "-q") == (0, "", "")
    folders = [models.folders["b"], f"more={models.folders['c']}"]
    code, out, _ = run(capsys, "add", path, *folders, f"d={models.folders['d']}", "--refit", "--json")
    assert list(json.loads(out)["added"]) == ["b", "more", "d"]
    with verified(path) as zoo:
        assert zoo.tasks == ("b", "more", "d")


def test_a_merge_is_added_shown_and_coded_anew(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    path = models.pack("zoo.tall", "abc")
    code, out, err = run(capsys, "add", path, "mix", "--merge", "0.6*a + 0.4*b")
    assert (code, err) == (0, "")
    assert "mix" in out
    code, out, _ = run(
        capsys, "add", path, "ties", "--merge", "a + b + c", "--method", "ties", "--topk", "10", "--json"
    )
    assert list(json.loads(out)["added"]) == ["ties"]
    code, out, _ = run(capsys, "info", path)
    assert "├─ mix = 0.6·a + 0.4·b (linear)" in out
    _, out, _ = run(capsys, "info", path, "--json")
    assert json.loads(out)["tasks"]["mix"]["relatives"] == {
        "tasks": ["a", "b"], "merge": {"method": "linear", "weights": [0.6, 0.4]}, "head": "a",
    }  # fmt: skip
    code, _, err = run(capsys, "remove", path, "c")
    assert code == 1
    assert "ties is made of c" in err
    code, out, _ = run(capsys, "remove", path, "c", "--re-code", "--json")
    assert json.loads(out)["recoded"] == ["ties"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("x", "--merge", "0.5*a + 0.5*z"), "no task 'z' to merge"),
        (("x", "--method", "ties"), "--merge"),
        (("x", "y", "--merge", "a"), "--merge"),
        (("x", "--merge", "a", "--bits", "2"), "--merge"),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused(
    words: tuple[str, ...], why: str, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    path = models.pack("zoo", "ab")
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    code, _, err = run(capsys, "add", path, *words)
    assert code in {1, 2}
    assert why in re.sub(r"\x1b\[[0-9;]*m", "", err)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_options_are_those_of_pack(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    path = models.pack("zoo", "abc", recipe="tall")
    code, _, err = run(capsys, "add", path, models.folders["d"], "--lambda", "0.4", "--exact", "all", "-q")
    assert (code, err) == (0, "")
    with tallstore.open(path) as zoo:
        assert zoo.info()["tasks"]["d"]["lambda"] == 0.4
        assert "exact" in zoo.manifest.tasks["d"].parts


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("add", "zoo", "a=runs/d"), "'a' is in the archive already"),
        (("add", "zoo", "runs/d", "--refit"), "a, b, c not given"),
        (("add", "zoo", "runs/d", "--groups", "many"), "neither a number of groups nor 'auto'"),
        (("remove", "zoo", "x"), "no task 'x'; there are a, b, c"),
        (("remove", "zoo", "a", "b", "c"), "none would be left"),
        (("compact", "none"), "there is nothing there"),
        (("pack", "base", "runs", "-o", "new", "--groups", "0"), "neither a number of groups nor 'auto'"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: tuple[str, ...],
    why: str,
    models: Models,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models.pack("zoo")
    monkeypatch.chdir(models.home)
    code, out, err = run(capsys, *words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert why in err


def test_pack_takes_groups(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    runs = models.home / "runs"
    code, _, _ = run(
        capsys, "pack", models.base, runs, "-o", models.home / "z", "--recipe", "fit", "--groups", "2", "-q"
    )
    assert code == 0
    with verified(models.home / "z") as zoo:
        assert len(zoo.manifest.groups) == 2
    assert re.search(r"task +group", run(capsys, "info", models.home / "z")[1])
    code, _, err = run(capsys, "pack", models.base, runs, "-o", models.home / "y", "--groups", "auto", "-q")
    assert code == 0
    assert "groups change nothing" in err
