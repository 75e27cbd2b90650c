"""What pack promises it keeps, or it fails and says why: error budgets, retention on an evaluator, λ chosen on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import State, bytes_of, near, noise, tiny_zoo

import tallstore
from tallstore.errors import BudgetError, EvaluatorError, OptionError


@pytest.fixture
def zoo() -> tuple[State, dict[str, State]]:
    base, tasks = tiny_zoo(3)
    base["wide"] = noise(100, 100, seed=50)
    for seed, state in enumerate(tasks.values(), 60):
        state["wide"] = near(base["wide"], seed, size=0.02)
    return base, tasks


def true_error(opened: tallstore.Zoo, task: str, original: State) -> float:
    """‖τ̂−τ‖/‖τ‖ over all tensors: those that are stored whole lose nothing."""
    found = opened.state_dict(task)
    base = {name: opened.base(name) for name in original}
    lost = sum(float((found[n].double() - original[n].double()).square().sum()) for n in original)
    moved = sum(float((original[n].double() - base[n].double()).square().sum()) for n in original)
    return (lost / moved) ** 0.5


@pytest.mark.parametrize(
    ("recipe", "bound"), [("solo", 0.5), ("solo", 0.02), ("solo", 0.0), ("fit", 0.1), ("tall", 0.001)]
)
def test_no_task_exceeds_the_error_that_was_promised(
    recipe: str, bound: float, tmp_path: Path, zoo: tuple[State, dict[str, State]]
) -> None:
    base, tasks = zoo
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe=recipe, max_error=bound)
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        opened.verify()
        for task, state in tasks.items():
            assert (report.tasks[task].relative_error or 0.0) <= bound
            assert true_error(opened, task, state) <= bound + 1e-6
            assert (opened.verify(against={task: state}).against[task].relative_error or 0.0) <= bound + 1e-6
    assert [p.name for p in tmp_path.iterdir()] == ["zoo.tall"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("recipe", "bound"), [("solo", 0.5), ("solo", 0.15), ("fit", 0.15), ("tall", 0.4)])
def test_types_of_few_bits_round_what_comes_back_and_that_counts(
    recipe: str, bound: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Of changes as small as a last bit much is lost by rounding alone."""
    base = {f"w{n}": noise(100, 100, seed=n, dtype=dtype) for n in range(2)}
    tasks = {task: {n: near(t, seed, size=0.004) for n, t in base.items()} for seed, task in enumerate("ab", 9)}
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe=recipe, max_error=bound)
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        for task, found in opened.verify(against=tasks).against.items():
            assert found.relative_error == pytest.approx(report.tasks[task].relative_error, rel=1e-5)
            assert found.relative_error is not None
            assert found.relative_error <= bound
            assert opened.info()["tasks"][task]["relative_error"] == report.tasks[task].relative_error
            assert found.cosine == pytest.approx(opened.info()["tasks"][task]["cosine"], rel=1e-5)


def test_what_is_no_number_is_no_difference(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    base, tasks = zoo
    base["odd"] = noise(40, 40, seed=3)
    base["odd"][0, :2] = torch.tensor([float("inf"), float("nan")])
    for state in tasks.values():
        state["odd"] = base["odd"].clone()
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        for task, found in opened.verify(against=tasks).against.items():
            assert found.relative_error == pytest.approx(report.tasks[task].relative_error, rel=1e-4)


def test_a_promise_that_holds_anyhow_changes_nothing(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    tallstore.pack(*zoo, tmp_path / "plain")
    tallstore.pack(*zoo, tmp_path / "promised", max_error=99.0)
    plain, promised = bytes_of(tmp_path / "plain"), bytes_of(tmp_path / "promised")
    assert all(promised[path] == data for path, data in plain.items() if path != "tall.json")


def test_a_tighter_promise_costs_more(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    sizes = [
        tallstore.pack(*zoo, tmp_path / f"{bound}.tall", max_error=bound).bytes["total"] for bound in (0.5, 0.1, 0.0)
    ]
    assert sizes == sorted(sizes)


def likeness(originals: dict[str, State]) -> object:
    """An evaluator that is 1 for the original and less for what is far from it."""

    def evaluate(state: State, task: str) -> float:
        gap = sum(float((state[n].double() - t.double()).square().sum()) for n, t in originals[task].items())
        size = sum(float(t.double().square().sum()) for t in originals[task].values())
        return 1.0 - (gap / size) ** 0.5 * 50

    return evaluate


@pytest.mark.parametrize(("recipe", "share"), [("solo", 0.6), ("solo", 0.999), ("fit", 0.9), ("fit", 1.0)])
def test_every_task_keeps_the_share_of_its_score(
    recipe: str, share: float, tmp_path: Path, zoo: tuple[State, dict[str, State]]
) -> None:
    base, tasks = zoo
    evaluate = likeness(tasks)
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe=recipe, evaluate=evaluate, min_retention=share)
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        for task in tasks:
            assert evaluate(opened.state_dict(task), task) >= share
            scores = opened.manifest.tasks[task].measured
            assert "score" in str(scores), scores
    assert [p.name for p in tmp_path.iterdir()] == ["zoo.tall"]


def test_a_promise_that_cannot_be_kept_is_refused_and_says_why(
    tmp_path: Path, zoo: tuple[State, dict[str, State]]
) -> None:
    base, tasks = zoo
    calls: list[str] = []

    def fickle(_state: State, task: str) -> float:
        """Gives the originals 1, and everything after them 0.5."""
        calls.append(task)
        return 1.0 if calls.count(task) == 1 else 0.5

    with pytest.raises(BudgetError) as caught:
        tallstore.pack(base, tasks, tmp_path / "zoo.tall", evaluate=fickle, min_retention=0.9)
    assert "task 'a' scores 0.5 where 0.9 of its original's 1 was promised" in str(caught.value)
    assert "is the evaluator the same every time?" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_lambda_is_chosen_on_the_evaluator(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    """A task that likes few weights on gets a large λ, one that likes many a small one."""
    base, tasks = zoo

    def count_moved(state: State, task: str) -> float:
        moved = sum(float((state[n] != base[n]).sum()) for n in base)
        return moved if task == "a" else -moved

    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall", recipe="tall", evaluate=count_moved)
    assert report.tasks["a"].density > report.tasks["b"].density
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        text = str(opened.info())
        assert "0.2" in text
        assert "0.6" in text


def boom(_state: State, _task: str) -> float:
    raise RuntimeError("out of\nluck")


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (boom, "the evaluator failed on task 'a': RuntimeError: out of"),
        (lambda *_: float("nan"), "the evaluator gave nan for task 'a'; expected a finite number"),
        (lambda *_: None, "the evaluator gave a NoneType for task 'a'; expected a number"),
        (lambda *_: torch.zeros(3), "for task 'a'; expected a number"),
        ("nowhere", "expected 'module:function'"),
        ("no_such_module_at_all:f", "cannot import 'no_such_module_at_all'"),
        ("math:no_such", "'math' has no function 'no_such'"),
        ("math:pi", "'math' has no function 'pi'"),
        (3, "the evaluator is a int"),
    ],
)
def test_an_evaluator_that_fails_is_one_clear_error(
    evaluate: object, message: str, tmp_path: Path, zoo: tuple[State, dict[str, State]]
) -> None:
    with pytest.raises(EvaluatorError) as caught:
        tallstore.pack(*zoo, tmp_path / "zoo.tall", evaluate=evaluate, min_retention=0.9)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluator_by_name(
    tmp_path: Path, zoo: tuple[State, dict[str, State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_scores_of_this_test.py").write_text("def accuracy(state, task):\n    return 0.75\n")
    monkeypatch.chdir(tmp_path)
    tallstore.pack(*zoo, "zoo.tall", evaluate="my_scores_of_this_test:accuracy", min_retention=1)
    with tallstore.open("zoo.tall") as opened:
        assert "0.75" in str(opened.info()["tasks"]["a"])


def test_an_evaluator_sees_what_the_checkpoint_held(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    base, tasks = zoo
    seen: dict[str, list[State]] = {}

    def look(state: State, task: str) -> float:
        seen.setdefault(task, []).append({name: tensor.clone() for name, tensor in state.items()})
        state.clear()
        return 1.0

    tallstore.pack(base, tasks, tmp_path / "zoo.tall", evaluate=look)
    assert list(seen) == list(tasks)
    for task, states in seen.items():
        assert list(states[0]) == list(tasks[task])
        assert all(torch.equal(states[0][name], tensor) for name, tensor in tasks[task].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_error": -0.1}, "max_error -0.1 is not a relative error"),
        ({"max_error": float("nan")}, "max_error nan is not a relative error"),
        ({"min_retention": 0.9}, "min_retention needs an evaluator"),
        ({"min_retention": 1.5, "evaluate": boom}, "min_retention 1.5 is not a share"),
        ({"min_retention": 0, "evaluate": boom}, "min_retention 0 is not a share"),
        ({"bits": 0.5, "quality": "small"}, "give one of them"),
        ({"bits": -1}, "bits -1"),
        ({"bits": float("nan")}, "bits nan"),
        ({"quality": "huge"}, "'huge' is unknown; there are small, balanced, high"),
        ({"recipe": "fit", "bits": 1.0}, "takes no bits (--bits)"),
        ({"vector": "q4"}, "recipe 'solo' shares no vector"),
        ({"recipe": "tall", "lam": {"nobody": 0.4}}, "lam: no task 'nobody'"),
    ],
)
def test_promises_that_make_no_sense_are_refused(
    options: dict[str, object], message: str, tmp_path: Path, zoo: tuple[State, dict[str, State]]
) -> None:
    with pytest.raises(OptionError) as caught:
        tallstore.pack(*zoo, tmp_path / "zoo.tall", **options)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_better_quality_costs_more_and_loses_less(tmp_path: Path, zoo: tuple[State, dict[str, State]]) -> None:
    reports = [tallstore.pack(*zoo, tmp_path / f"{q}.tall", quality=q) for q in ("small", "balanced", "high")]
    sizes = [report.bytes["total"] for report in reports]
    errors = [sum(task.relative_error or 0.0 for task in report.tasks.values()) for report in reports]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert sizes[0] < sizes[2]
