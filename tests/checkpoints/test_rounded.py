"""A base stored as bfloat16: what it costs, what it is, and what is said of the tasks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support import State, near, noise, nothing_dropped, same_bits, without_kernels
from torch import Tensor

import tallstore
from tallstore.errors import BudgetError, OptionError, WrongBaseError
from tallstore.recipes import RECIPES


def zoo_of(dtype: torch.dtype = torch.float32) -> tuple[State, dict[str, State]]:
    """Matrices that move, one that moves in half its rows, one that does not, a norm, and one with an infinity."""
    base = {f"w{n}": noise(80, 64, size=0.05, seed=n) for n in range(3)}
    base |= {"norm": noise(300, seed=7), "frozen": noise(64, 65, seed=8), "odd": noise(64, 64, seed=9)}
    base["odd"][3, 4] = math.inf
    tasks = {}
    for seed, task in enumerate("ab", 1):
        tuned = {name: near(tensor, 10 * seed + n, 0.005) for n, (name, tensor) in enumerate(base.items())}
        tuned["w1"][40:] = base["w1"][40:]
        tuned |= {"frozen": base["frozen"].clone(), "odd": base["odd"].clone(), "head": noise(3, 64, seed=seed)}
        tasks[task] = {name: tensor.to(dtype) for name, tensor in tuned.items()}
    return base, tasks


def half(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16)


def test_the_base_of_the_archive_is_the_rounded_one(tmp_path: Path) -> None:
    base, tasks = zoo_of()
    whole = tallstore.pack(base, tasks, tmp_path / "whole.tall")
    rounded = tallstore.pack(base, tasks, tmp_path / "zoo.tall", base_storage="bf16")
    assert rounded.bytes["base"] < 0.75 * whole.bytes["base"]
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify()
        for name, tensor in base.items():
            as_it_is = name in {"norm", "odd"}
            assert same_bits(zoo.base(name), tensor if as_it_is else half(tensor)), name
        assert zoo.manifest.base.storage == "embed"
        assert zoo.manifest.options["base_storage"] == "bf16"
    with tallstore.open(tmp_path / "zoo.tall", base=base) as zoo, pytest.raises(WrongBaseError, match="w0"):
        zoo.state_dict("a")
    with tallstore.open(
        tmp_path / "zoo.tall", base={n: half(t) if n[0] in "wf" else t for n, t in base.items()}
    ) as zoo:
        zoo.state_dict("a")


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_marks_are_those_of_the_base_as_it_was(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_dropped(monkeypatch)  # which is not offered beside a base that is rounded
    base, tasks = zoo_of()
    whole = tallstore.pack(base, tasks, tmp_path / "whole.tall", recipe=recipe)
    rounded = tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe=recipe, base_storage="bf16")
    assert rounded.bytes["masks"] == pytest.approx(whole.bytes["masks"], abs=64)
    with tallstore.open(tmp_path / "whole.tall") as before, tallstore.open(tmp_path / "zoo.tall") as zoo:
        for task in tasks:
            facts = zoo.tensors(task)
            assert facts["frozen"].kind == "base"
            for name in ("w0", "w1", "w2"):
                change = before.state_dict(task)[name] - base[name]
                wanted = half(base[name]).float() + change
                assert torch.allclose(zoo.state_dict(task)[name], wanted, atol=1e-7, rtol=0), (task, name)
            assert same_bits(zoo.state_dict(task)["frozen"], half(base["frozen"]).float())
            assert same_bits(zoo.state_dict(task)["odd"], base["odd"])
            assert same_bits(zoo.state_dict(task)["head"], tasks[task]["head"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("recipe", ["solo", "fit"])
def test_what_is_recorded_is_what_a_comparison_with_the_originals_finds(
    recipe: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base, tasks = zoo_of(dtype)
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe=recipe, base_storage="bf16", bits=None)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        found = zoo.verify(against=tasks).against
        for task in tasks:
            assert report.tasks[task].relative_error == pytest.approx(found[task].relative_error, rel=1e-5)
            state = zoo.state_dict(task)
            start = {name: tensor if name == "norm" else half(tensor) for name, tensor in base.items() if name != "odd"}
            missed = sum(float((state[n].double() - tasks[task][n].double()).square().sum()) for n in start)
            moved = sum(
                float((tasks[task][n].double() - tensor.to(dtype).double()).square().sum())
                for n, tensor in start.items()
            )
            assert found[task].relative_error == pytest.approx((missed / moved) ** 0.5, rel=1e-4)


def test_promises_are_kept_or_it_is_said_why_not(tmp_path: Path) -> None:
    base, tasks = zoo_of()
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", base_storage="bf16", max_error=0.5)
    assert all((task.relative_error or 0.0) <= 0.5 for task in report.tasks.values())
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        against = zoo.verify(against=tasks).against
    assert all((found.relative_error or 0.0) <= 0.5 for found in against.values())
    with pytest.raises(BudgetError, match=r"other than .bf16.; nothing was written"):
        tallstore.pack(base, tasks, tmp_path / "new.tall", base_storage="bf16", max_error=1e-4)
    with pytest.raises(OptionError, match="exact copies need the base as it is"):
        tallstore.pack(base, tasks, tmp_path / "new.tall", base_storage="bf16", exact="all")
    assert [path.name for path in tmp_path.iterdir()] == ["zoo.tall"]


def test_an_evaluator_judges_what_will_be_stored(tmp_path: Path) -> None:
    base, tasks = zoo_of()
    seen = []

    def frozen(state: State, task: str) -> float:
        seen.append(same_bits(state["frozen"], base["frozen"]))
        return 1.0

    tallstore.pack(base, tasks, tmp_path / "zoo.tall", base_storage="bf16", evaluate=frozen, min_retention=1.0)
    assert seen == [True, True, False, False]


@pytest.mark.parametrize("recipe", ["solo", "fit", "emr"])
@pytest.mark.parametrize("storage", ["embed", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_same_is_said_with_and_without_compiled_kernels(
    dtype: torch.dtype, storage: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tasks = zoo_of(dtype)
    base["large"] = noise(257, 300, size=0.05, seed=3).to(dtype)
    for seed, task in enumerate(tasks.values()):
        task["large"] = near(base["large"].float(), seed, 0.005).to(dtype)
    tallstore.pack(base, tasks, tmp_path / "with.tall", base_storage=storage, recipe=recipe)
    without_kernels(monkeypatch)
    tallstore.pack(base, tasks, tmp_path / "without.tall", base_storage=storage, recipe=recipe)
    assert (tmp_path / "with.tall").read_bytes() == (tmp_path / "without.tall").read_bytes()
