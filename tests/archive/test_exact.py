"""`exact`: the original comes back to the last bit, from a part with what masks lose or from tensors that lose nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import (
    FLOATS,
    RecordingStore,
    State,
    assert_same,
    kinds,
    near,
    noise,
    packed,
    read_all,
    same_bits,
    tiny_zoo,
)

import tallstore
from tallstore.cli import main
from tallstore.errors import OptionError
from tallstore.recipes import RECIPES
from tallstore.stores import open_store
from tallstore.zoo import Zoo

NAN = float("nan")


def motley() -> tuple[State, dict[str, State]]:
    """Every pair of types, resized rows, ties, buffers, NaN, heads, a frozen tensor: in tensors of several chunks."""
    pairs = list(itertools.product(FLOATS, FLOATS))
    base = {f"{i}": noise(1500, seed=i, dtype=of_base) for i, (of_base, _) in enumerate(pairs)}
    base |= {
        "emb": noise(80, 30, seed=40),
        "frozen": noise(400, seed=41),
        "ids": torch.arange(300),
        "bad": noise(2500, seed=42),
    }
    tasks = {}
    for seed, task in ((100, "a"), (200, "b")):
        state = {f"{i}": near(base[f"{i}"].to(t), seed + i, size=0.05) for i, (_, t) in enumerate(pairs)}
        state["emb"] = torch.cat([near(base["emb"], seed), noise(7, 30, seed=seed)])
        state |= {"frozen": base["frozen"].clone(), "ids": base["ids"] + seed, "head": noise(9, 9, seed=seed)}
        state["bad"] = near(base["bad"], seed)
        state["tied"] = state["emb"]
        tasks[task] = state
    tasks["a"]["bad"][2000] = NAN
    tasks["b"]["emb"] = tasks["b"]["emb"][:50]
    tasks["b"]["tied"] = tasks["b"]["emb"]
    return base, tasks


@pytest.mark.parametrize("recipe", RECIPES)
def test_everything_comes_back_to_the_bit(recipe: str, tmp_path: Path, small_chunks: int) -> None:
    base, tasks = motley()
    with packed(base, tasks, tmp_path / "zoo.tall", recipe=recipe, exact="all") as zoo:
        for task, state in tasks.items():
            found = zoo.state_dict(task, exact=True)
            assert_same(found, state)
            assert found["tied"].data_ptr() == found["emb"].data_ptr()
            for name in ("emb", "tied", "0", "head", "ids"):
                assert same_bits(zoo.state_dict(task, names=[name], exact=True)[name], state[name])
            out = zoo.export(task, tmp_path / f"out-{task}", exact=True)
            exported = load_file(out / "model.safetensors")
            assert all(same_bits(exported[name], tensor) for name, tensor in state.items())


def test_it_adds_a_part_and_changes_no_other(target: Path, tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, target, kappa=1)  # which exact implies
    tallstore.pack(base, tasks, target.with_name(f"exact-{target.name}"), exact=["b"])
    plain, exact = read_all(target), read_all(target.with_name(f"exact-{target.name}"))
    assert set(exact) - set(plain) == {"tasks/b/exact.safetensors"}
    assert all(exact[path] == plain[path] for path in plain if path != "tall.json")


def test_true_is_all_of_them(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    for exact, name in (("all", "words"), (True, "truth"), (False, "lies"), ((), "none")):
        tallstore.pack(base, tasks, tmp_path / name, exact=exact)
    assert read_all(tmp_path / "truth") == read_all(tmp_path / "words")
    assert read_all(tmp_path / "lies") == read_all(tmp_path / "none")


def test_only_the_tasks_that_were_packed_so(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    with packed(base, tasks, tmp_path / "zoo.tall", exact="b") as zoo:
        assert_same(zoo.state_dict("b", exact=True), tasks["b"])
        assert not same_bits(zoo.state_dict("b")["emb.weight"], tasks["b"]["emb.weight"]), (
            "unless asked for, masked weights"
        )
        for ask in (lambda: zoo.state_dict("a", exact=True), lambda: zoo.export("a", tmp_path / "out", exact=True)):
            with pytest.raises(OptionError, match="task 'a' was not packed with exact"):
                ask()
    assert not (tmp_path / "out").exists()


def test_a_task_that_did_not_move_is_exact_at_no_cost(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    with packed(base, {"same": dict(base), **tasks}, tmp_path / "zoo.tall", exact="all") as zoo:
        assert_same(zoo.state_dict("same", exact=True), base)


def test_a_task_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="exact: no task 'c'; there are a, b, or 'all'"):
        tallstore.pack(*tiny_zoo(2), tmp_path / "zoo.tall", exact=["a", "c"])
    assert list(tmp_path.iterdir()) == []


def test_masked_weights_read_no_byte_of_the_exact_part(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, tasks, tmp_path / "zoo", exact="all")
    store = RecordingStore(open_store(tmp_path / "zoo"))
    with Zoo(store) as zoo:
        zoo.state_dict("a")
        assert "tasks/a/exact.safetensors" not in {path for path, _, _ in store.ranges}
        zoo.state_dict("a", exact=True)
        assert "tasks/a/exact.safetensors" in {path for path, _, _ in store.ranges}
        assert not [path for path, _, _ in store.ranges if path.startswith("tasks/b/")]


def test_a_referenced_base_will_do(tmp_path: Path) -> None:
    base, tasks = motley()
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", exact="all", base_storage="reference")
    with tallstore.open(tmp_path / "zoo.tall", base=base) as zoo:
        assert_same(zoo.state_dict("a", exact=True), tasks["a"])


FEW = (torch.bfloat16, torch.float16)


def two_matrices(dtype: torch.dtype) -> tuple[State, State]:
    """One that moved everywhere, by small steps of any size; and one whose elements all moved by the same, or back."""
    base = {"dense": noise(60, 50, seed=1, dtype=dtype), "steps": noise(60, 50, seed=2, dtype=dtype)}
    signs = 0.3 * noise(60, 50, seed=3).sign()
    return base, {"dense": near(base["dense"], 4, size=0.01), "steps": (base["steps"].float() + signs).to(dtype)}


@pytest.mark.parametrize("dtype", FEW)
def test_each_tensor_of_few_bits_is_stored_the_smaller_way(
    dtype: torch.dtype, tmp_path: Path, small_chunks: int
) -> None:
    base, task = two_matrices(dtype)
    once = tallstore.pack(base, {"t": task}, tmp_path / "once.tall", quality="lossless")
    both = tallstore.pack(base, {"t": task}, tmp_path / "both.tall", exact="t", mask="bits", quality="balanced")
    with tallstore.open(tmp_path / "both.tall") as zoo:
        zoo.verify({"t": task})
        found = kinds(zoo, "t")
        assert found["dense"] == "lossless"
        assert found["steps"] in {"signed", "delta"}
        assert set(zoo._reader.places(zoo.manifest.tasks["t"].parts["exact"], "exact", "t")) == {"steps"}
        assert_same(zoo.state_dict("t", exact=True), task)
        assert same_bits(zoo.state_dict("t")["dense"], task["dense"])
        assert not zoo.manifest.tasks["t"].bit_for_bit
        out = load_file(zoo.export("t", tmp_path / "out", exact=True) / "model.safetensors")
        assert all(same_bits(out[name], tensor) for name, tensor in task.items())
        assert all(same_bits(zoo.weights("t", exact=True).get_tensor(name), task[name]) for name in task)
    assert both.bytes["masks"] + both.bytes["exact"] < once.bytes["masks"]


@pytest.mark.parametrize("dtype", FEW)
def test_a_task_that_needs_no_second_layer_is_lossless(
    dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tasks = tiny_zoo(2, dtype=dtype)
    path = tmp_path / "zoo.tall"
    report = tallstore.pack(base, tasks, path, exact="b", bits=2)
    once = tallstore.pack(base, {"b": tasks["b"]}, tmp_path / "once.tall", quality="lossless")
    assert report.bytes["exact"] == 0
    assert report.tasks["b"].bytes <= once.tasks["b"].bytes
    with tallstore.open(path) as zoo:
        zoo.verify(tasks)
        facts = zoo.info()["tasks"]
        assert (facts["b"]["bit_for_bit"], facts["b"]["relative_error"]) == (True, 0.0)
        assert facts["a"]["relative_error"] > 0
        assert facts["b"].get("divergence", 0.0) == 0.0
        assert set(kinds(zoo, "b").values()) <= {"lossless", "private", "base"}
        assert zoo.manifest.version == "1.1"
        for exact in (False, True):
            assert_same(zoo.state_dict("b", exact=exact), tasks["b"])
        with pytest.raises(OptionError, match="task 'a' was not packed with exact"):
            zoo.state_dict("a", exact=True)
    with pytest.raises(SystemExit, match="0"):
        main(["info", str(path)])
    assert "bit for bit" in capsys.readouterr().out


def test_its_score_is_the_original_s(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2, dtype=torch.bfloat16)

    def evaluate(state: State, task: str) -> float:
        return 2.0 if all(same_bits(state[name], tensor) for name, tensor in tasks[task].items()) else 1.0

    with packed(base, tasks, tmp_path / "zoo.tall", exact="b", bits=2, evaluate=evaluate) as zoo:
        scores = {task: facts.measured["scores"] for task, facts in zoo.manifest.tasks.items()}
    assert scores["a"] == {"original": 2.0, "decoded": 1.0}
    assert scores["b"] == {"original": 2.0, "decoded": 2.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_of_many_bits_keep_both_layers_and_their_version(dtype: torch.dtype, tmp_path: Path) -> None:
    base, task = two_matrices(dtype)
    with packed(base, {"t": task}, tmp_path / "zoo.tall", exact="t") as zoo:
        assert zoo.manifest.version == "1.0"
        assert zoo.manifest.tasks["t"].parts["exact"]
        assert_same(zoo.state_dict("t", exact=True), task)
        assert not same_bits(zoo.state_dict("t")["dense"], task["dense"])
