"""A file's names and the model's own: packing, loading and switching work by both, and give what stock loaders give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import RENAMED, TIED, differs, made, tuned

import tallstore

pytest.importorskip("transformers")
FAMILIES = {**RENAMED, **TIED}


@pytest.fixture(scope="module", params=FAMILIES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[type[Any], Path]:
    """A family's class, and its folders `base`, `a` and `b`: made once, and only read."""
    folder = tmp_path_factory.mktemp("models")
    return made(FAMILIES[request.param], folder), folder


def test_load_into_and_switch_give_what_the_stock_loader_gives(models: tuple[type[Any], Path], tmp_path: Path) -> None:
    kind, there = models
    tallstore.pack(there / "base", {"a": there / "a", "b": there / "b"}, tmp_path / "z.tall")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        stock = {
            task: kind.from_pretrained(zoo.export(task, tmp_path / f"out-{task}")).state_dict() for task in zoo.tasks
        }
        model = kind.from_pretrained(there / "base")
        base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert differs(stock["a"], base)
        zoo.load_into(model, "a")
        assert differs(model.state_dict(), stock["a"]) == []
        switcher = zoo.switcher(model)
        for task, right in (("b", stock["b"]), ("a", stock["a"]), (None, base), ("b", stock["b"])):
            switcher.switch(task)
            assert differs(model.state_dict(), right) == []


def test_in_memory_names_pack_as_files_do(models: tuple[type[Any], Path], tmp_path: Path) -> None:
    """Those of a module, and of a folder that was saved with them."""
    kind, there = models
    model = kind.from_pretrained(there / "a")
    model.save_pretrained(tmp_path / "unconverted", save_original_format=False)
    tallstore.pack(there / "base", {"t": there / "a"}, tmp_path / "file.tall")
    right = kind.from_pretrained(there / "base")
    fresh = copy.deepcopy(right)
    with tallstore.open(tmp_path / "file.tall") as file:
        file.load_into(right, "t")
        for number, source in enumerate((model, tmp_path / "unconverted")):
            path = tmp_path / f"memory-{number}.tall"
            report = tallstore.pack(there / "base", {"t": source}, path)
            assert report.tasks["t"].unmatched == 0
            with tallstore.open(path) as memory:
                ours, theirs = memory.state_dict("t"), file.state_dict("t")
                assert differs({name: ours[name] for name in theirs}, theirs) == []
                with torch.no_grad():
                    for parameter in fresh.parameters():
                        parameter.zero_()  # whatever it held: each tensor is the task's
                memory.load_into(fresh, "t")
                assert differs(fresh.state_dict(), right.state_dict()) == []
                size = memory.manifest.tasks["t"].measured["bytes"]
                assert size <= 1.02 * file.manifest.tasks["t"].measured["bytes"]
                memory.verify(against={"t": source})
                if set(ours) == set(theirs):
                    file.verify(against={"t": source})


def test_experts_per_file_pack_against_a_base_that_has_them_fused(tmp_path: Path) -> None:
    kind = made(RENAMED["mixtral"], tmp_path)
    kind.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "fused", save_original_format=False)
    report = tallstore.pack(tmp_path / "fused", {"a": tmp_path / "a"}, tmp_path / "z.tall")
    assert report.tasks["a"].unmatched == 0
    assert report.tasks["a"].relative_error is not None
    with tallstore.open(tmp_path / "z.tall") as zoo:
        assert "model.layers.0.mlp.experts.gate_up_proj" in zoo.tensors("a")
        model = kind.from_pretrained(tmp_path / "base")
        zoo.load_into(model, "a")
        assert differs(model.state_dict(), kind.from_pretrained(zoo.export("a", tmp_path / "out")).state_dict()) == []


def test_more_tasks_and_merging_by_in_memory_names(tmp_path: Path) -> None:
    kind = made(RENAMED["mixtral"], tmp_path)
    tallstore.pack(tmp_path / "base", {"a": tmp_path / "a"}, tmp_path / "z.tall")
    model = kind.from_pretrained(tmp_path / "b")
    report = tallstore.add(tmp_path / "z.tall", {"b": model})
    assert report.added["b"].unmatched == 0
    with tallstore.open(tmp_path / "z.tall") as zoo:
        assert list(zoo.tensors("a")) == list(zoo.state_dict("a"))
        assert set(zoo.tensors("a")) == set(zoo.tensors("b"))
        merged = zoo.merged("arithmetic", alpha=1.0)
        assert set(merged) == set(zoo.tensors("a"))


def test_a_wrapped_model_is_loaded_by_the_names_of_files(tmp_path: Path) -> None:
    kind = made(RENAMED["llava"], tmp_path, ("a",))
    tallstore.pack(tmp_path / "base", {"a": tmp_path / "a"}, tmp_path / "z.tall")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        model = kind.from_pretrained(tmp_path / "base")
        zoo.load_into(torch.nn.DataParallel(model), "a")
        assert differs(model.state_dict(), kind.from_pretrained(zoo.export("a", tmp_path / "out")).state_dict()) == []
        assert tuned(model, 1) is model
