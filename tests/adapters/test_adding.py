"""An adapter that is added is the one that would have been packed: with its base's files, as far as they are known."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters.conftest import CASES, Made

import tallstore
from tallstore.errors import WrongBaseError

Make = Callable[..., Made]
BESIDE = {"config.json", "generation_config.json", "model.safetensors"}


def tuned(made: Made, folder: Path) -> Path:
    """A full fine-tune of a case's base, with a card of its own."""
    model = made.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "README.md").write_text("a fine-tune")
    return folder


def merged_folder(zoo: Path, task: str, out: Path, made: Made) -> set[str]:
    """Extract a task merged, hold what stock transformers loads of it to what PEFT merges; names of the files."""
    from transformers import AutoModelForCausalLM

    with tallstore.open(zoo) as opened:
        opened.export(task, out, merged=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = AutoModelForCausalLM.from_pretrained(out).state_dict()
    expected = made.merged()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    return {path.name for path in out.iterdir()}


def test_beside_an_adapter_it_has_that_ones_files(make: Make, tmp_path: Path) -> None:
    first, second = make(CASES["lora"], 1), make(CASES["dora"], 2)
    tallstore.pack(first.base, {"a": first.adapter}, tmp_path / "zoo.tall")
    report = tallstore.add(tmp_path / "zoo.tall", {"b": second.adapter})
    assert report.warnings == ()
    tallstore.pack(first.base, {"a": first.adapter, "b": second.adapter}, tmp_path / "both.tall")
    with tallstore.open(tmp_path / "zoo.tall") as added, tallstore.open(tmp_path / "both.tall") as packed:
        left, right = (zoo.manifest.tasks["b"] for zoo in (added, packed))
        assert left.files.keys() == right.files.keys()
        assert left.adapter == right.adapter
        assert left.measured["relative_error"] == right.measured["relative_error"]
    tallstore.remove(tmp_path / "zoo.tall", ["a"])
    found = merged_folder(tmp_path / "zoo.tall", "b", tmp_path / "out", second)
    assert found == merged_folder(tmp_path / "both.tall", "b", tmp_path / "out-both", second)


def test_beside_fine_tunes_it_has_the_configuration_of_one_or_the_bases_own(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    full = tuned(found, tmp_path / "full")
    for name in ("first.tall", "second.tall"):
        tallstore.pack(found.base, {"full": full}, tmp_path / name)
    report = tallstore.add(tmp_path / "first.tall", {"a": found.adapter})
    assert "that of task 'full'" in report.warnings[0]
    files = merged_folder(tmp_path / "first.tall", "a", tmp_path / "first", found)
    assert (tmp_path / "first" / "README.md").read_text() != "a fine-tune"
    assert tallstore.add(tmp_path / "second.tall", {"a": found.adapter}, base=found.base).warnings == ()
    assert files == merged_folder(tmp_path / "second.tall", "a", tmp_path / "second", found)
    with pytest.raises(WrongBaseError, match="in one of them alone"):
        tallstore.add(tmp_path / "second.tall", {"b": found.adapter}, base={"model.norm.weight": torch.zeros(3)})


def test_where_nothing_is_known_it_says_so(make: Make, tmp_path: Path) -> None:
    found = make(CASES["lora"])
    state = {name: value + 0.01 for name, value in found.model().state_dict().items()}
    tallstore.pack(found.base, {"full": state}, tmp_path / "zoo.tall")
    (warning,) = tallstore.add(tmp_path / "zoo.tall", {"a": found.adapter}).warnings
    assert "weights alone" in warning
    assert "base=" in warning
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.export("a", tmp_path / "out", merged=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "model.safetensors"}


@pytest.mark.parametrize("storage", ["embed", "bf16", "reference"])
def test_groups_and_refits_keep_the_files(make: Make, tmp_path: Path, storage: str) -> None:
    found = make(CASES["lora"])
    full = tuned(found, tmp_path / "full")
    tasks = {"full": full, "a": found.adapter}
    given = {"base": found.base} if storage == "reference" else {}
    tallstore.pack(found.base, tasks, tmp_path / "zoo.tall", recipe="fit", groups=2, base_storage=storage)
    tallstore.add(tmp_path / "zoo.tall", {**tasks, "b": found.adapter}, refit=True, **given)
    with tallstore.open(tmp_path / "zoo.tall", **given) as zoo:
        for task in ("a", "b"):
            zoo.export(task, tmp_path / task, merged=True)
            assert {path.name for path in (tmp_path / task).iterdir()} == {*BESIDE, "README.md"}
