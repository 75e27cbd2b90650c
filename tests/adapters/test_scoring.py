"""An evaluator is given the model that an adapter makes, never the adapter's own tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters.conftest import CASES, PROMPTS, Made
from adapters.test_adapters import same

import tallstore
from tallstore.errors import BudgetError

Make = Callable[..., Made]
State = dict[str, torch.Tensor]


@pytest.mark.parametrize("name", ["lora", "dora", "embedding-tied", "lora-bias-head"])
@pytest.mark.parametrize("storage", ["embed", "bf16"])
def test_an_evaluator_sees_merged_models(make: Make, tmp_path: Path, name: str, storage: str) -> None:
    found = make(CASES[name])
    full = {n: t + 0.01 * torch.randn_like(t) for n, t in found.model().state_dict().items()}
    seen: dict[str, list[State]] = {"a": [], "full": []}

    def evaluate(state: State, task: str) -> float:
        seen[task].append({n: t.clone() for n, t in state.items()})
        return float(len(seen[task]))

    options = {"evaluate": evaluate, "min_retention": 0.5, "base_storage": storage}
    report = tallstore.pack(found.base, {"a": found.adapter, "full": full}, tmp_path / "zoo.tall", **options)
    assert "not scored" not in " ".join(report.warnings)
    expected = found.merged()
    first, second = seen["a"]
    assert same(first, {n: expected[n] for n in first})
    assert {n for n in found.model().state_dict() if n not in first} <= {"lm_head.weight"}
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert same(second, zoo.state_dict("a", merged=True))
        assert zoo.info()["tasks"]["a"]["scores"] == {"original": 1.0, "decoded": 2.0}


def test_an_adapter_that_is_added_is_scored_too(make: Make, tmp_path: Path) -> None:
    first, second = make(CASES["lora"], 1), make(CASES["lora"], 2)
    seen = []
    tallstore.pack(first.base, {"a": first.adapter}, tmp_path / "zoo.tall")
    tallstore.add(
        tmp_path / "zoo.tall", {"b": second.adapter}, evaluate=lambda state, _: float(seen.append(state) or len(state))
    )
    expected = second.merged()
    assert len(seen) == 2
    assert all(same(state, expected) for state in seen)


def test_a_promise_that_fails_for_an_adapter_names_it(make: Make, tmp_path: Path) -> None:
    found, scores = make(CASES["lora"]), iter([1.0] + [0.1] * 100)
    with pytest.raises(BudgetError, match="task 'a' scores"):
        tallstore.pack(
            found.base,
            {"a": found.adapter},
            tmp_path / "zoo.tall",
            evaluate=lambda _, __: next(scores),
            min_retention=0.9,
        )
    assert not (tmp_path / "zoo.tall").exists()


def test_prompts_are_not_scored_and_it_says_so(make: Make, tmp_path: Path) -> None:
    found = make(PROMPTS["prompts"])

    def evaluate(state: State, task: str) -> float:
        raise AssertionError

    options = {"evaluate": evaluate, "min_retention": 0.9}
    (warning,) = tallstore.pack(found.base, {"a": found.adapter}, tmp_path / "zoo.tall", **options).warnings
    assert "task 'a' is not scored" in warning
    assert "changes no weights" in warning
