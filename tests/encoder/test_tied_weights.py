"""Tied weights are stored once and come back tied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import State, formula, kinds, near, noise, packed, raw, read_all, same_bits, slots, tiny_zoo


def tied_zoo() -> tuple[State, State]:
    base, tasks = tiny_zoo(1)
    task = tasks["a"]
    task["lm_head.weight"] = task["emb.weight"]
    return base, task


def saved_bin(folder: Path, state: State) -> Path:
    folder.mkdir(parents=True)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("source", ["memory", "bin", "legacy"])
def test_tied_weights_are_stored_once_and_come_back_tied(source: str, tmp_path: Path, target: Path) -> None:
    base, task = tied_zoo()
    given: object = task
    if source == "bin":
        given = saved_bin(tmp_path / "t", task)
    if source == "legacy":
        given = tmp_path / "t.pt"
        torch.save(task, given, _use_new_zipfile_serialization=False)
    with packed(base, {"a": given}, target, recipe="fit") as zoo:
        assert kinds(zoo, "a")["lm_head.weight"] == "tied"
        found = zoo.state_dict("a")
        assert list(found) == list(task)
        assert found["lm_head.weight"].data_ptr() == found["emb.weight"].data_ptr(), "they share their memory"
        assert raw(found["emb.weight"]).tobytes() == formula(zoo, "a", "emb.weight").tobytes()
        alone = zoo.state_dict("a", names=["lm_head.weight"])
        assert list(alone) == ["lm_head.weight"]
        assert same_bits(alone["lm_head.weight"], found["emb.weight"])
        zoo.export("a", tmp_path / "out")
        exported = load_file(tmp_path / "out" / "model.safetensors")
        assert set(exported) == set(task)
        assert all(same_bits(exported[name], tensor) for name, tensor in found.items())


def test_a_tie_whose_other_name_the_base_knows(tmp_path: Path) -> None:
    """The first name is the head's; the base knows the memory as the embedding."""
    base, tasks = tiny_zoo(1)
    task = {"lm_head.weight": tasks["a"]["emb.weight"], **tasks["a"]}
    with packed(base, {"a": task}, tmp_path / "zoo.tall", recipe="fit") as zoo:
        assert kinds(zoo, "a")["lm_head.weight"] == "binary"
        assert kinds(zoo, "a")["emb.weight"] == "tied"
        assert zoo.tensors("a")["lm_head.weight"].base == "emb.weight"


def test_a_tied_base_is_stored_once(tmp_path: Path) -> None:
    base, tasks = tiny_zoo(2)
    base["lm_head.weight"] = base["emb.weight"]
    tasks["a"]["lm_head.weight"] = tasks["a"]["emb.weight"]
    tasks["b"]["lm_head.weight"] = near(base["emb.weight"], 77)  # this one cut the tie
    with packed(base, tasks, tmp_path / "zoo", recipe="fit", base_codec="raw") as zoo:
        _, places = slots(read_all(tmp_path / "zoo")["base/base.safetensors"])
        assert "lm_head.weight" not in places
        assert same_bits(zoo.base("lm_head.weight"), base["emb.weight"])
        for task, name in (("a", "emb.weight"), ("b", "emb.weight"), ("b", "lm_head.weight")):
            assert raw(zoo.state_dict(task)[name]).tobytes() == formula(zoo, task, name).tobytes()
        assert kinds(zoo, "a")["lm_head.weight"] == "tied"
        assert kinds(zoo, "b")["lm_head.weight"] == "binary"


def test_views_into_one_memory_are_not_tied(tmp_path: Path) -> None:
    """A fused matrix and its parts share memory but are not the same tensor."""
    fused = noise(48, 16, seed=1)
    base = {"qkv": fused, "q": fused[:16], "k": fused[16:32], "turned": fused[:16].T}
    task = {name: near(tensor, 5) for name, tensor in base.items()}
    moved = near(fused, 5)
    task = {"qkv": moved, "q": moved[:16], "k": moved[16:32], "turned": moved[:16].T, "flat": moved.reshape(-1)}
    with packed(base, {"t": task}, tmp_path / "zoo.tall") as zoo:
        assert "tied" not in kinds(zoo, "t").values()
        zoo.verify(against={"t": task})
