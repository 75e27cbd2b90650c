"""`tallstore merge` and `tallstore info --masks`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from merge_support import zoo_with_heads
from safetensors.torch import load_file
from support import leftovers, same_bits

import tallstore
from tallstore.cli import main


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "zoo.tall"
    tallstore.pack(*zoo_with_heads(), path)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    found = capsys.readouterr()
    return int(stop.value.code or 0), found.out, found.err


def test_merge(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "merge", archive, "-o", tmp_path / "m", "--k", 1, "--alpha", 0.3, "--head", "b")
    assert code == 0
    with tallstore.open(archive) as zoo:
        wanted = zoo.merged(k=1, alpha=0.3, heads="b")
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert all(same_bits(found[name], wanted[name]) for name in wanted)
    assert "consensus, k = 1" in out
    assert "approximate" in out
    assert "head.weight: each task's own" in out


def test_merge_as_json(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scores_of_test.py").write_text(
        "def score(state, task):\n    return -float(state['body.fc.bias'].norm())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = (
        "merge",
        archive,
        "-o",
        "m",
        "--method",
        "ties",
        "--task",
        "c",
        "--task",
        "a",
        "--evaluate",
        "scores_of_test:score",
    )
    code, out, _ = run(capsys, *words, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["tasks"] == ["c", "a"]
    assert report["alpha_from"] == "evaluator"
    assert len(report["scores"]) == 10


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--k", "-1"), 1),
        (("--k", "many"), 2),
        (("--method", "magic"), 1),
        (("--method", "ties", "--k", "1"), 1),
        (("--head", "x"), 1),
        (("--task", "x"), 1),
        (("--evaluate", "nowhere:score"), 1),
        (("--evaluate", "nowhere"), 1),
    ],
)
def test_wrong_words_write_nothing(
    words: tuple[str, ...], code: int, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(capsys, "merge", archive, "-o", tmp_path / "m", *words)
    assert (found, out) == (code, "")
    assert "rror" in err
    assert leftovers(tmp_path) == []


def test_info_with_masks(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", archive, "--masks")
    assert code == 0
    for text in ("catastrophic", "selfish", "overlap", "density by layer", "█"):
        assert text in out
    code, out, _ = run(capsys, "info", archive, "--masks", "--json")
    masks = json.loads(out)["masks"]
    assert code == 0
    assert masks["tasks"] == ["a", "b", "c"]
    assert len(masks["profile"]) == 4
    assert "masks" not in json.loads(run(capsys, "info", archive, "--json")[1])


def test_many_tasks_are_shown_in_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tasks = zoo_with_heads()
    many = {f"task-number-{n}": tasks["abc"[n % 3]] for n in range(30)}
    tallstore.pack(base, many, tmp_path / "z")
    _, out, _ = run(capsys, "info", tmp_path / "z", "--masks")
    assert "the first 11 of 30" in out
    assert "24…30" in out
