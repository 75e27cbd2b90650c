"""Runs: checkpoints with their steps, each given back to the bit, near ones coded against each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import State, assert_same, noise, write_folder

import tallstore
from tallstore.archive.ancestry import tree_of
from tallstore.cli import main
from tallstore.errors import InputError, NoSuchTaskError

from .test_found import base_of, tuned

STEPS = tuple(range(100, 1100, 100))


@pytest.fixture
def run(tmp_path: Path) -> dict[int, State]:
    """Ten checkpoints, each a few values further than the one before; the first steps are the longest."""
    base = base_of(torch.bfloat16)
    write_folder(tmp_path / "base", base)
    state = {n: t for n, t in tuned(base, 1).items() if n in base}
    found = {}
    for step in STEPS:
        state = {n: t for n, t in tuned(state, step, size=0.001, share=0.05).items() if n in base}
        folder = write_folder(tmp_path / "runs" / "trec" / f"checkpoint-{step}", state)
        history = [{"step": step, "eval_accuracy": step / 2000, "eval_loss": 1.0, "eval_runtime": 3}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        found[step] = state
    (tmp_path / "runs" / "trec" / "logs").mkdir()
    tallstore.pack(tmp_path / "base", {"other": tuned(base, 9)}, tmp_path / "zoo.tall", quality="lossless")
    return found


def test_checkpoints_come_back_to_the_bit_and_take_less(run: dict[int, State], tmp_path: Path) -> None:
    report = tallstore.add_run(tmp_path / "zoo.tall", tmp_path / "runs" / "trec")
    took = sum(report.added[f"trec-{step}"].bytes for step in STEPS)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify()
        assert zoo.tasks == ("other", *(f"trec-{step}" for step in STEPS))
        for step, state in run.items():
            assert_same(zoo.state_dict(f"trec@{step}"), dict(sorted(state.items())))
        depth = [task.relatives for name, task in zoo.manifest.tasks.items() if name != "other"]
        assert sum(each is not None for each in depth) >= 6
        assert any("trec-" in line for line in tree_of(zoo.manifest))
        with pytest.raises(NoSuchTaskError, match="trec@150"):
            zoo.state_dict("trec@150")
    tallstore.remove(tmp_path / "zoo.tall", [f"trec-{step}" for step in STEPS])
    plain = tallstore.add_run(tmp_path / "zoo.tall", tmp_path / "runs" / "trec", relatives=False)
    assert took < 0.6 * sum(plain.added[f"trec-{step}"].bytes for step in STEPS)


def test_a_run_goes_on(run: dict[int, State], tmp_path: Path) -> None:
    late = tmp_path / "runs" / "trec" / "checkpoint-1000"
    late.rename(tmp_path / "later")
    tallstore.add_run(tmp_path / "zoo.tall", tmp_path / "runs" / "trec", name="t")
    with pytest.raises(InputError, match="nothing to add"):
        tallstore.add_run(tmp_path / "zoo.tall", tmp_path / "runs" / "trec", name="t")
    (tmp_path / "later").rename(late)
    report = tallstore.add_run(tmp_path / "zoo.tall", tmp_path / "runs" / "trec", name="t")
    assert list(report.added) == ["t-1000"]
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert zoo.manifest.tasks["t-1000"].relatives is not None
        assert_same(zoo.state_dict("t@1000"), dict(sorted(run[1000].items())))


def test_the_command_line_shows_and_extracts_a_step(
    run: dict[int, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    zoo = tmp_path / "zoo.tall"
    assert call("add", zoo, "--run", tmp_path / "runs" / "trec", "-q")[0] == 0
    code, out, _ = call("log", zoo, "trec")
    assert code == 0
    assert "trec-600" in out
    assert "0.3" in out
    _, out, _ = call("log", zoo, "trec", "--json")
    steps = json.loads(out)["steps"]
    assert [row["step"] for row in steps] == list(STEPS)
    base, states = base_of(torch.bfloat16), run
    of_base = torch.cat([t.double().flatten() for t in base.values()]).norm()

    def apart(left: State, right: State) -> float:
        return float(torch.cat([(left[n].double() - right[n].double()).flatten() for n in base]).norm() / of_base)

    assert steps[5]["moved"] == pytest.approx(apart(states[STEPS[5]], states[STEPS[4]]), rel=1e-3)
    assert steps[5]["moved_from_base"] == pytest.approx(apart(states[STEPS[5]], base), rel=1e-3)
    assert steps[0]["moved"] is None
    assert steps[5]["score"] == 0.3
    assert call("extract", zoo, "trec@600", "-o", tmp_path / "out", "-q")[0] == 0
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), dict(sorted(run[600].items())))
    child = next(row["task"] for row in steps if row["made_of"])
    _, out, _ = call("log", zoo, child, "--json")
    generations = [row["generation"] for row in json.loads(out)["steps"]]
    assert generations == list(range(len(generations)))
    assert 2 <= len(generations) <= 4  # chains are short
    code, _, err = call("log", zoo, "nothing")
    assert code == 1
    assert "no run and no task 'nothing'; there are trec, other" in err


@pytest.mark.parametrize(
    ("folders", "words"), [((), "no checkpoint-<step>"), (("checkpoint-5", "step_5"), "of one step")]
)
def test_what_is_no_run_is_refused(folders: tuple[str, ...], words: str, tmp_path: Path) -> None:
    base = {"w": noise(300, 4)}
    tallstore.pack(base, {"a": {"w": noise(300, 4, seed=1)}}, tmp_path / "zoo", allow_distant=True)
    (tmp_path / "run").mkdir()
    for folder in folders:
        write_folder(tmp_path / "run" / folder, base)
    with pytest.raises(InputError, match=words):
        tallstore.add_run(tmp_path / "zoo", tmp_path / "run")
    with pytest.raises(InputError, match="no such folder of a run"):
        tallstore.add_run(tmp_path / "zoo", tmp_path / "none")


def test_compacting_finds_parents_that_were_not_looked_for(run: dict[int, State], tmp_path: Path) -> None:
    path = tmp_path / "zoo.tall"
    plain = tallstore.add_run(path, tmp_path / "runs" / "trec", name="t", relatives=False)
    assert tallstore.compact(path, parents=False).reparented == {}
    before = sum(report.bytes for report in plain.added.values())
    report = tallstore.compact(path)
    assert len(report.reparented) >= 7
    with tallstore.open(path) as zoo:
        zoo.verify()
        assert zoo.tasks == ("other", *(f"t-{step}" for step in STEPS))
        assert sum(int(zoo.manifest.tasks[f"t-{step}"].measured["bytes"]) for step in STEPS) < 0.6 * before
        for step, state in run.items():
            assert_same(zoo.state_dict(f"t@{step}"), dict(sorted(state.items())))
        assert zoo.manifest.tasks["t-500"].measured["run"]["step"] == 500
    data = path.read_bytes()
    assert not tallstore.compact(path).changed
    assert path.read_bytes() == data
