"""The demo makes a real zoo: models that learn, from a seed, and that come back from an archive as good as before."""

import builtins
import hashlib
import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from support import import_later

from tallstore.cli import main
from tallstore.demo import TASKS, DemoPlan, DemoZoo, evaluate, make_zoo, run_demo
from tallstore.demo.digits import N_TEST, held_out, load_digits
from tallstore.demo.zoo import load_state
from tallstore.errors import MissingExtraError, NoSuchTaskError, OutputError, OutputExistsError

import_later("sklearn")

SMALL = DemoPlan(tasks=("odd", "swapped"), width=64, depth=1, base_steps=60, task_steps=60)
TINY = DemoPlan(tasks=("odd",), width=32, depth=1, base_steps=2, task_steps=2)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> DemoZoo:
    return make_zoo(tmp_path_factory.mktemp("demo") / "models", plan=SMALL)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_fine_tunes_answer_held_out_images(zoo: DemoZoo) -> None:
    assert evaluate(zoo.tasks["odd"], "odd") > 0.75
    assert evaluate(load_state(zoo.tasks["swapped"]), "swapped") > 0.9


def test_the_base_alone_cannot(zoo: DemoZoo) -> None:
    base = load_state(zoo.base)
    tuned = load_state(zoo.tasks["swapped"])
    grafted = {name: base.get(name, tensor) for name, tensor in tuned.items()}
    assert evaluate(grafted, "swapped") < evaluate(tuned, "swapped") - 0.1


def test_every_shared_tensor_moved(zoo: DemoZoo) -> None:
    base, tuned = load_state(zoo.base), load_state(zoo.tasks["odd"])
    shared = base.keys() & tuned.keys()
    assert shared == tuned.keys() - {"head.weight", "head.bias"}
    assert all(not torch.equal(base[name], tuned[name]) for name in shared)


def test_folders_say_what_they_hold(zoo: DemoZoo) -> None:
    config = json.loads((zoo.tasks["odd"] / "config.json").read_text(encoding="utf-8"))
    assert config == {"architecture": "classifier", "width": 64, "depth": 1, "task": "odd", "classes": 2}
    assert sorted(path.name for path in zoo.folder.iterdir()) == ["base", "odd", "swapped"]


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_zoo(tmp_path / name, seed, plan=TINY)
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    assert _hashes(tmp_path / "a")["odd/model.safetensors"] != _hashes(tmp_path / "c")["odd/model.safetensors"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_test_images_are_not_trained_on() -> None:
    train, test = load_digits()
    assert len(test.images) == N_TEST
    assert len(train.images) + len(test.images) == 1797


@pytest.mark.parametrize("name", TASKS)
def test_every_task_asks_a_question_that_has_all_its_answers(name: str) -> None:
    images, answers = held_out(TASKS[name])
    again = held_out(TASKS[name])
    assert set(answers.tolist()) == set(range(TASKS[name].classes))
    assert images.shape == (N_TEST, 8, 8)
    assert torch.equal(images, again[0])
    assert torch.equal(answers, again[1])


def test_rotations_are_what_their_answers_say() -> None:
    _, test = load_digits()
    images, turns = held_out(TASKS["rotated"])
    back = torch.stack([image.rot90(-int(n), dims=(0, 1)) for image, n in zip(images, turns, strict=True)])
    assert torch.equal(back, test.images)


def test_whole_way(tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def note(text: str, done: int, total: int) -> None:
        seen[text] = (done, total)

    found = run_demo(tmp_path / "demo", plan=SMALL, progress=note, recipe="fit")
    assert [task.name for task in found.tasks] == list(SMALL.tasks)
    assert all(task.retention > 0.9 for task in found.tasks)
    assert all(task.accuracy_after > task.accuracy_base for task in found.tasks)
    assert all(task.relative_error is not None and 0 < task.relative_error < 1 for task in found.tasks)
    assert found.archive.stat().st_size == pytest.approx(found.archive_bytes["total"], rel=0.1)
    assert found.archive_bytes["total"] < found.checkpoints_bytes / 2
    assert evaluate(found.extracted["odd"], "odd") == found.tasks[0].accuracy_after
    own = ("pre-training the base", "fine-tuning: is the digit odd?", "extracting", "evaluating")
    assert [seen[text] for text in own] == [(60, 60), (60, 60), (2, 2), (2, 2)]
    assert json.loads(json.dumps(found.to_json()))["tasks"].keys() == set(SMALL.tasks)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious", encoding="utf-8")
    for make in (make_zoo, run_demo):
        with pytest.raises(OutputExistsError, match="not an empty folder"):
            make(tmp_path, plan=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot write"):
        make_zoo(tmp_path / "file" / "zoo", plan=TINY)


def test_an_unknown_task_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(NoSuchTaskError, match="digit, odd"):
        evaluate({}, "poetry")
    with pytest.raises(NoSuchTaskError):
        make_zoo(tmp_path / "zoo", plan=DemoPlan(tasks=("poetry",)))
    assert not (tmp_path / "zoo").exists()


def test_without_scikit_learn_it_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_sklearn(name: str, *rest: object, **named: object) -> object:
        if name.split(".", maxsplit=1)[0] == "sklearn":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    load_digits.cache_clear()
    with pytest.raises(MissingExtraError, match=r'pip install "tallstore\[demo\]"'):
        make_zoo(tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_the_verb_tells_what_happens_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = DemoPlan(tasks=("odd", "swapped"), width=32, depth=1, base_steps=2, task_steps=2)
    monkeypatch.setattr("tallstore.demo.run_demo", partial(run_demo, plan=two))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        assert stop.value.code in {0, None}
        return capsys.readouterr().out

    out = run("demo", "-o", "made")
    assert re.findall(r"^(\d)\. ", out, re.MULTILINE) == ["1", "2", "3", "4", "5"]
    assert re.search(r"odd +is the digit odd\? .* %", out)
    assert "3 checkpoints of" in out
    assert "open made/report.html in a browser" in out
    assert "score kept" in (tmp_path / "made" / "report.html").read_text(encoding="utf-8")
    commands = re.findall(r"^  tallstore (.*)$", out, re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"info", "verify", "extract", "merge", "report"}
    for command in commands:
        run(*command.split())


def test_without_the_extra_there_is_no_report_and_the_rest_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = run_demo(tmp_path / "demo", plan=TINY)
    assert found.report is None
    assert found.to_json()["report"] is None
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["extracted", "models", "zoo.tall"]
