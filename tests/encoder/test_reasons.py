"""Numbers that arithmetic cannot carry: such a tensor is stored whole and exact, with a warning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import formula, kinds, near, noise, packed, raw, same_bits, spoilt, tiny_base, tiny_zoo

import tallstore
from tallstore.recipes import RECIPES

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nan_and_inf_in_a_task(value: float, recipe: str, tmp_path: Path, small_chunks: int) -> None:
    base, tasks = tiny_zoo(3)
    base["long"] = noise(3000, seed=5)
    for seed, state in enumerate(tasks.values(), 60):
        state["long"] = near(base["long"], seed)
    clean = {task: dict(state) for task, state in tasks.items()}
    tasks["b"]["emb.weight"] = spoilt(tasks["b"]["emb.weight"], value)
    tasks["b"]["long"] = spoilt(tasks["b"]["long"], value, at=2500)
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe=recipe)
    told = [warning for warning in report.warnings if warning.startswith("b (in memory): ")]
    assert len(told) == len(report.warnings) == 2
    assert "'emb.weight'" in told[0] and "'long'" in told[1] and "whole and exact" in told[0]  # noqa: PT018 - one line each
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify()
        for name in ("emb.weight", "long"):
            assert same_bits(zoo.state_dict("b")[name], tasks["b"][name])
            assert report.tasks["b"].private[name]
        for task in "ac":
            found = zoo.state_dict(task)
            assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values()), "the others are not infected"
            for name, facts in zoo.tensors(task).items():
                if facts.base:
                    gap = (found[name] - clean[task][name]).norm() / (clean[task][name] - base[name]).norm()
                    assert gap < 2, f"{recipe} {task} {name}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_nan_and_inf_in_the_base(recipe: str, tmp_path: Path, small_chunks: int) -> None:
    base, tasks = tiny_zoo(2)
    base["long"] = spoilt(noise(3000, seed=5), -INF, at=1500)
    base["bad"] = spoilt(noise(500, seed=6), NAN)
    tasks["a"] |= {"long": near(base["long"], 8), "bad": base["bad"] + 0.01}
    tasks["b"] |= {"long": base["long"].clone(), "bad": base["bad"].clone()}
    tasks["c"] = dict(tasks["b"])
    tasks["c"]["long"] = base["long"].clone()
    tasks["c"]["long"][2500:] += 0.01  # another chunk than the Inf's
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe=recipe)
    assert {w.split(":")[0] for w in report.warnings} == {"a (in memory)", "c (in memory)"}
    assert len(report.warnings) == 3
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        zoo.verify()
        for task, state in tasks.items():
            for name in ("long", "bad"):
                assert same_bits(zoo.state_dict(task)[name], state[name]), f"{task}: {name}"
        assert same_bits(zoo.base("long"), base["long"])
        assert same_bits(zoo.base("bad"), base["bad"])
        assert kinds(zoo, "b")["long"] == kinds(zoo, "b")["bad"] == "base", "frozen: nothing stored"
        assert zoo.info()["tasks"]["b"]["relative_error"] is not None


def test_a_nan_is_not_rounded_to_another_type(tmp_path: Path) -> None:
    """Which NaN a conversion gives is nobody's promise, so such a tensor is stored as it is."""
    base = tiny_base() | {"w": spoilt(noise(500, seed=1), NAN)}
    task = {name: tensor.to(torch.bfloat16) for name, tensor in base.items()}
    with packed(base, {"t": task}, tmp_path / "zoo.tall") as zoo:
        assert kinds(zoo, "t")["w"] == "private"
        assert same_bits(zoo.state_dict("t")["w"], task["w"])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("base_type", "task_type", "start", "end"),
    [
        (torch.float32, torch.float32, 3e38, -3e38),
        (torch.float64, torch.float64, 1e300, -1e300),
        (torch.float64, torch.float32, 1e300, 1.0),
        (torch.float32, torch.float16, 1e6, 6e4),
        (torch.bfloat16, torch.float16, 1e6, 1.0),
        (torch.float16, torch.float16, 65504.0, -65504.0),
    ],
)
def test_numbers_too_large_to_subtract_are_stored_exactly(
    recipe: str, base_type: torch.dtype, task_type: torch.dtype, start: float, end: float, tmp_path: Path
) -> None:
    base = {"w": spoilt(noise(500, seed=1, dtype=base_type), start), "x": noise(500, seed=2)}
    tasks = {
        t: {"w": spoilt(near(base["w"], seed).to(task_type), end), "x": near(base["x"], seed)}
        for seed, t in ((3, "a"), (4, "b"))
    }
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe=recipe, allow_distant=True)
    assert len(report.warnings) == 2
    assert "'w'" in report.warnings[0]
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        for task, state in tasks.items():
            assert same_bits(zoo.state_dict(task)["w"], state["w"])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-20, 1e15])
def test_steps_of_any_size_survive(recipe: str, size: float, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base = {"w": noise(2000, seed=1, size=size)}
    tasks = {t: {"w": base["w"] + noise(2000, size=size / 10, seed=seed)} for seed, t in ((3, "a"), (4, "b"))}
    with packed(base, tasks, tmp_path / "zoo.tall", recipe=recipe) as zoo:
        for task in tasks:
            found = zoo.state_dict(task)["w"]
            assert bool(torch.isfinite(found).all())
            assert raw(found).tobytes() == formula(zoo, task, "w").tobytes()
