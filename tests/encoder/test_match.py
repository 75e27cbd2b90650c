"""Base and task seldom agree on every name and shape: prefixes, heads, missing tensors, resized rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import State, formula, kinds, near, noise, packed, raw, same_bits, tiny_zoo

import tallstore
from tallstore.errors import NoSuchTensorError
from tallstore.recipes import RECIPES


def bert(prefix: str = "", seed: int | None = None, layers: int = 2) -> State:
    """A small encoder whose layers all have the same shapes; moved a little if there is a seed."""
    state = {"embeddings.word.weight": noise(60, 24, seed=1), "embeddings.norm.weight": noise(24, seed=2)}
    for i in range(layers):
        state[f"encoder.layer.{i}.query.weight"] = noise(24, 24, seed=10 + i)
        state[f"encoder.layer.{i}.query.bias"] = noise(24, seed=20 + i)
    state["pooler.dense.weight"] = noise(24, 24, seed=30)
    if seed is not None:
        state = {name: near(tensor, seed + i) for i, (name, tensor) in enumerate(state.items())}
    return {prefix + name: tensor for name, tensor in state.items()}


# Names.


@pytest.mark.parametrize(
    ("base_prefix", "task_prefix"),
    [("", "bert."), ("bert.", ""), ("", "module.bert."), ("model.", "roberta."), ("", ""), ("a.b.", "b.")],
)
def test_names_may_differ_by_a_prefix(base_prefix: str, task_prefix: str, tmp_path: Path) -> None:
    base = bert(base_prefix)
    tasks = {t: bert(task_prefix, seed) | {"classifier.weight": noise(3, 24)} for t, seed in (("a", 100), ("b", 200))}
    with packed(base, tasks, tmp_path / "zoo.tall", recipe="fit") as zoo:
        for task, state in tasks.items():
            assert list(zoo.state_dict(task)) == list(state), "a task keeps its own names"
            for name, facts in zoo.tensors(task).items():
                if name == "classifier.weight":
                    assert facts.kind == "private"
                    continue
                stem = name.removeprefix(task_prefix)
                if state[name].numel() >= 256:
                    assert (facts.kind, facts.base) == ("binary", base_prefix + stem)
                    assert same_bits(zoo.base(name), base[base_prefix + stem]), (
                        "the task's name finds the base's tensor"
                    )
                    assert same_bits(zoo.vector(name), zoo.vector(base_prefix + stem))
                    assert raw(zoo.state_dict(task)[name]).tobytes() == formula(zoo, task, name).tobytes()


def test_each_task_may_have_a_prefix_of_its_own(tmp_path: Path) -> None:
    tasks = {"plain": bert("", 100), "wrapped": bert("bert.", 200), "parallel": bert("module.bert.", 300)}
    report = tallstore.pack(bert(), tasks, tmp_path / "zoo.tall")
    assert all(task.relative_error is not None and not task.missing for task in report.tasks.values())
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        assert all(zoo.tensors(task)[p + "pooler.dense.weight"].base == "pooler.dense.weight"
                   for task, p in (("plain", ""), ("wrapped", "bert."), ("parallel", "module.bert.")))  # fmt: skip


def test_layers_of_one_shape_are_not_mixed_up(tmp_path: Path) -> None:
    """Every layer finds its own, though by shape alone any would do."""
    base, task = bert(layers=12), bert("m.", 100, layers=12)
    with packed(base, {"t": task}, tmp_path / "zoo.tall", recipe="fit") as zoo:
        for i in range(12):
            assert zoo.tensors("t")[f"m.encoder.layer.{i}.query.weight"].base == f"encoder.layer.{i}.query.weight"


def test_towers_of_one_shape_are_not_mixed_up(tmp_path: Path) -> None:
    def towers(prefix: str = "", seed: int | None = None) -> State:
        text, image = (
            bert(f"{prefix}text_model.", seed),
            bert(f"{prefix}vision_model.", None if seed is None else seed + 50),
        )
        return text | {name: tensor + 0.5 for name, tensor in image.items()}

    with packed(towers(), {"t": towers("clip.", 100)}, tmp_path / "zoo.tall", recipe="fit") as zoo:
        facts = zoo.tensors("t")
        for tower in ("text_model.", "vision_model."):
            assert facts[f"clip.{tower}pooler.dense.weight"].base == f"{tower}pooler.dense.weight"


def test_no_base_tensor_serves_twice(tmp_path: Path) -> None:
    base = bert()
    task = bert("", 100) | bert("bert.", 200)
    with packed(base, {"t": task}, tmp_path / "zoo.tall", recipe="fit") as zoo:
        used = [facts.base for facts in zoo.tensors("t").values() if facts.base]
        assert len(used) == len(set(used)) == sum(t.numel() >= 256 for t in base.values())
        found = zoo.state_dict("t")
        assert all(same_bits(found[name], task[name]) for name, kind in kinds(zoo, "t").items() if kind == "private")


# Tensors that only one side has.


def test_heads_that_the_base_lacks_come_back_exactly(target: Path) -> None:
    base, tasks = tiny_zoo()
    heads = {"a": noise(3, 16, seed=1), "b": noise(1000, 16, seed=2, dtype=torch.bfloat16), "c": torch.tensor(3.5)}
    for task, head in heads.items():
        tasks[task]["head.weight"] = head
    with packed(base, tasks, target) as zoo:
        for task, head in heads.items():
            assert same_bits(zoo.state_dict(task)["head.weight"], head)
            with pytest.raises(NoSuchTensorError, match=r"head\.weight"):
                zoo.mask(task, "head.weight")
    report = tallstore.pack(base, tasks, target.with_name("again.tall"))
    assert "no such tensor" in report.tasks["a"].private["head.weight"]


def test_base_tensors_that_a_task_lacks_are_told_and_not_invented(tmp_path: Path) -> None:
    base, tasks = tiny_zoo()
    base["pooler.weight"], base["mlm.bias"] = noise(20, 20), noise(40)
    tasks["b"]["pooler.weight"] = near(base["pooler.weight"], 3)
    report = tallstore.pack(base, tasks, tmp_path / "zoo.tall")
    assert report.tasks["a"].missing == ("pooler.weight", "mlm.bias")
    assert report.tasks["b"].missing == ("mlm.bias",)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        for task, state in tasks.items():
            assert list(zoo.state_dict(task)) == list(state)
        assert same_bits(zoo.base("mlm.bias"), base["mlm.bias"]), "the base is whole nevertheless"


@pytest.mark.parametrize("recipe", RECIPES)
def test_tasks_may_have_unequal_sets_of_tensors(recipe: str, tmp_path: Path) -> None:
    """Each base tensor has another set of tasks; one has none."""
    base, tasks = tiny_zoo(4)
    base["nobody"] = noise(400)
    del tasks["a"]["emb.weight"], tasks["b"]["emb.weight"], tasks["b"]["fc.bias"], tasks["c"]["norm.weight"]
    del tasks["d"]["fc.weight"]
    with packed(base, tasks, tmp_path / "zoo.tall", recipe=recipe) as zoo:
        for task, state in tasks.items():
            found = zoo.state_dict(task)
            assert list(found) == list(state)
            for name, facts in zoo.tensors(task).items():
                if facts.base:
                    assert raw(found[name]).tobytes() == formula(zoo, task, name).tobytes()
        assert not zoo.vector("nobody").any()


def test_a_task_with_tensors_in_another_order_keeps_its_order(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    task = dict(reversed(tasks["a"].items()))
    with packed(base, {"a": task}, tmp_path / "zoo.tall") as zoo:
        assert list(zoo.state_dict("a")) == list(task)


# Rows.


@pytest.mark.parametrize("rows", [41, 48, 64])
@pytest.mark.parametrize("recipe", ["fit", "solo"])
def test_an_embedding_with_more_rows(rows: int, recipe: str, tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    fresh = noise(rows - 40, 16, seed=7)
    tasks["a"]["emb.weight"] = torch.cat([tasks["a"]["emb.weight"], fresh])
    with packed(base, tasks, tmp_path / "zoo.tall", recipe=recipe) as zoo:
        found, facts = zoo.state_dict("a")["emb.weight"], zoo.tensors("a")["emb.weight"]
        assert (facts.rows, facts.shape) == (40, (rows, 16))
        assert same_bits(found[40:], fresh), "new rows are stored whole and exact"
        assert (
            0
            < (found[:40] - tasks["a"]["emb.weight"][:40]).norm()
            < (tasks["a"]["emb.weight"][:40] - base["emb.weight"]).norm()
        )
        if facts.kind == "binary":
            mask = zoo.mask("a", "emb.weight")
            assert mask.shape == (rows, 16)
            assert not mask[40:].any()
        assert same_bits(zoo.state_dict("a", names=["emb.weight"])["emb.weight"], found)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_embedding_with_fewer_rows(recipe: str, tmp_path: Path) -> None:
    base, tasks = tiny_zoo(3)
    tasks["a"]["emb.weight"] = tasks["a"]["emb.weight"][:25]
    with packed(base, tasks, tmp_path / "zoo.tall", recipe=recipe) as zoo:
        found = zoo.state_dict("a")["emb.weight"]
        assert found.shape == (25, 16)
        assert raw(found).tobytes() == formula(zoo, "a", "emb.weight").tobytes()
        assert zoo.state_dict("b")["emb.weight"].shape == (40, 16)


def test_resized_rows_across_chunks(tmp_path: Path, small_chunks: int) -> None:
    base = {"emb": noise(300, 16, seed=1), "w": noise(40, 40, seed=2)}
    tasks = {
        task: {
            "emb": torch.cat([near(base["emb"], seed), noise(200, 16, seed=seed)])[:rows],
            "w": near(base["w"], seed),
        }
        for task, seed, rows in (
            ("more", 3, 431),
            ("fewer", 4, 157),
            ("same", 5, 300),
            ("edge", 6, 256),
            ("little", 7, 301),
        )
    }
    with packed(base, tasks, tmp_path / "zoo.tall", recipe="fit") as zoo:
        for task, state in tasks.items():
            found = zoo.state_dict(task)["emb"]
            assert found.shape == state["emb"].shape
            assert same_bits(found[300:], state["emb"][300:])
            if len(found) <= 300:
                assert raw(found).tobytes() == formula(zoo, task, "emb").tobytes()


def test_shared_rows_that_did_not_move_cost_nothing(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(1)
    fresh = noise(5, 16, seed=7)
    tasks["a"]["emb.weight"] = torch.cat([base["emb.weight"], fresh])
    with packed(base, tasks, tmp_path / "zoo.tall") as zoo:
        facts = zoo.tensors("a")["emb.weight"]
        assert (facts.kind, facts.rows, facts.bytes) == ("base", 40, 0)
        assert same_bits(zoo.state_dict("a")["emb.weight"], tasks["a"]["emb.weight"])


def test_a_table_of_another_size_altogether_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    tasks["a"]["emb.weight"] = noise(15, 16, seed=3)
    tasks["b"]["fc.weight"] = noise(16, 31, seed=4)
    with packed(base, tasks, tmp_path / "zoo.tall") as zoo:
        assert same_bits(zoo.state_dict("a")["emb.weight"], tasks["a"]["emb.weight"])
        assert same_bits(zoo.state_dict("b")["fc.weight"], tasks["b"]["fc.weight"])
