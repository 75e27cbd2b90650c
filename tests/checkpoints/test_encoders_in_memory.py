"""Encoders of sentence-transformers packed from memory, as their folders, and each beside the other; and loaded into."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import tallstore

from .folders import nudged
from .test_sentence_transformers import bert, cross, dense, router, splade, static

__all__ = ["bert"]

pytestmark = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


@pytest.mark.parametrize("make", [dense, static, router, splade, cross], ids=lambda make: make.__name__)
def test_a_module_and_its_folder_are_one_checkpoint(make: Callable[[Path], Any], bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = make(bert)
    task = nudged(copy.deepcopy(base), 1)
    for name, model in (("base", base), ("a", task)):
        model.save_pretrained(str(tmp_path / name))
    wanted = task.state_dict()
    stored = set()
    ways = {
        "folders": (tmp_path / "base", tmp_path / "a"),
        "modules": (base, task),
        "module and folder": (base, tmp_path / "a"),
        "folder and state dict": (tmp_path / "base", task.state_dict()),
    }
    for way, (first, second) in ways.items():
        report = tallstore.pack(first, {"a": second}, tmp_path / f"{way}.tall", quality="lossless")
        assert not report.warnings
        stored.add(len(report.tasks["a"].private))
        with tallstore.open(tmp_path / f"{way}.tall") as zoo:
            loaded, switched = copy.deepcopy(base), copy.deepcopy(base)
            zoo.load_into(loaded, "a")
            zoo.switcher(switched).switch("a")
        for model in (loaded, switched):
            assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, wanted[name])] == []
    assert len(stored) == 1, "the same tensors have a counterpart, whichever names they come under"
