"""The examples run."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support import ROOT

import tallstore
from tallstore.demo import DemoPlan, run_demo

EXAMPLES = ROOT / "docs" / "examples"
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("examples")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(home / "base")
    for task, labels in {"mood": 2, "spam": 2, "topic": 5}.items():
        transformers.BertForSequenceClassification.from_pretrained(home / "base", num_labels=labels).save_pretrained(
            home / "runs" / task
        )
    return home


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_service_answers_for_every_task(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testing = pytest.importorskip("fastapi.testclient", reason="FastAPI is not installed")
    archive = tmp_path / "zoo.tall"
    tallstore.pack(models / "base", {t: models / "runs" / t for t in ("mood", "spam", "topic")}, archive)
    monkeypatch.setenv("ARCHIVE", str(archive))
    service = load("service")
    client = testing.TestClient(service.app)
    assert client.get("/").json() == ["mood", "spam", "topic"]
    for task in ("mood", "topic", "spam", "mood"):
        with tallstore.open(archive) as zoo:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                zoo.export(task, tmp_path / task, overwrite=True)
            ).eval()
        with torch.inference_mode():
            wanted = model(input_ids=torch.tensor([[2, 7, 1]])).logits[0].softmax(0)
        found = client.post(f"/{task}", json={"tokens": [2, 7, 1]}).json()
        assert found["scores"] == pytest.approx(wanted.tolist(), abs=1e-6)
    batch = [
        {"task": task, "tokens": tokens} for task, tokens in (("topic", [4, 4]), ("mood", [2, 7, 1]), ("topic", [9]))
    ]
    for request, found in zip(batch, client.post("/", json=batch).json(), strict=True):
        alone = client.post(f"/{request['task']}", json={"tokens": request["tokens"]}).json()
        assert found["scores"] == pytest.approx(alone["scores"], abs=1e-6)
        assert len(found["scores"]) == {"mood": 2, "topic": 5}[request["task"]]
    assert client.post("/", json=[]).json() == []
    assert client.post("/", json=[{"task": "mod", "tokens": [1]}]).status_code == 404
    missing = client.post("/mod", json={"tokens": [1]})
    assert missing.status_code == 404
    assert "there are mood, spam, topic" in missing.json()["detail"]


def test_a_finished_fine_tune_joins_the_zoo(models: Path, tmp_path: Path) -> None:
    callback = load("callback")
    archive = tmp_path / "zoo.tall"
    for n, task in enumerate(("mood", "topic"), start=1):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(models / "runs" / task)
        joined = callback.JoinZoo(str(archive), base=str(models / "base"), runs=str(tmp_path / "runs"), task=task)
        transformers.trainer_callback.CallbackHandler([joined], model, None, None, None).on_train_end(
            None, transformers.TrainerState(), transformers.TrainerControl()
        )
        with tallstore.open(archive) as zoo:
            assert zoo.tasks == ("mood", "topic")[:n]
            assert joined.report.path == archive


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="the demo's extra is not installed")
    monkeypatch.chdir(tmp_path)
    plan = DemoPlan(tasks=("odd", "swapped"), width=32, depth=1, base_steps=2, task_steps=2)
    monkeypatch.setattr("tallstore.demo.run_demo", partial(run_demo, plan=plan))
    book = json.loads((EXAMPLES / "first-look.ipynb").read_text(encoding="utf-8"))
    known: dict[str, object] = {}
    for cell in book["cells"]:
        assert not cell.get("outputs")
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), known)
    assert "accuracy kept" in capsys.readouterr().out
    assert (tmp_path / "first-look" / "report.html").is_file()
