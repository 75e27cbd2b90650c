"""`exact`: what the masks lose is stored in a part of its own, so that the original comes back to the last bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import FLOATS, RecordingStore, State, assert_same, near, noise, packed, read_all, same_bits, tiny_zoo

import tallstore
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
