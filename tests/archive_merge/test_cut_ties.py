"""Merging where some tasks tie two tensors and others have them apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import State, near, noise, packed, same_bits

EMBEDDING, HEAD, BODY = noise(64, 32, seed=1), noise(64, 32, seed=2), noise(64, 32, seed=3)
BASES: dict[str, State] = {
    "equal": {"emb.weight": EMBEDDING, "head.weight": EMBEDDING.clone(), "x.weight": BODY},
    "apart": {"emb.weight": EMBEDDING, "head.weight": HEAD, "x.weight": BODY},
}


def tied(form: str) -> State:
    embedding = near(EMBEDDING, 11)
    out = {"emb.weight": embedding, "x.weight": near(BODY, 12)}
    return out if form == "once" else {**out, "head.weight": embedding.clone()}


def cut(base: str) -> State:
    return {name: near(tensor, seed) for seed, (name, tensor) in enumerate(BASES[base].items(), 20)}


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("quality", ["balanced", "lossless"])
@pytest.mark.parametrize(("base", "form"), [("equal", "twice"), ("equal", "once"), ("apart", "twice")])
def test_a_tied_tensor_counts_in_both_places(base: str, form: str, quality: str, order: str, tmp_path: Path) -> None:
    tasks = {"a": tied(form), "b": cut(base)}
    before = BASES[base]
    named = {name: tasks[name] for name in order}
    with packed(before, named, tmp_path / "z.tall", quality=quality) as zoo:
        one, two = (zoo.state_dict(task) for task in "ab")
        merged = zoo.merged("arithmetic", alpha=0.5)
        for name, source in (("emb.weight", "emb.weight"), ("head.weight", "emb.weight"), ("x.weight", "x.weight")):
            right = (one[source].double() + two[name].double()) / 2
            torch.testing.assert_close(merged[name].double(), right, atol=1e-6, rtol=0)
        (note,) = [note for note in merged.report.notes if "tied" in note]
        assert "a has it tied to emb.weight, b apart" in note
        assert not merged.report.left_out
        of_b = zoo.merged("arithmetic", alpha=0.5, heads="b")
        assert all(same_bits(of_b[name], merged[name]) for name in merged)
        of_a = zoo.merged("arithmetic", alpha=0.5, heads="a")
        assert of_a.report.left_out == {"head.weight": "a has it tied to another, b apart"}
        assert form == "once" or of_a["head.weight"].data_ptr() == of_a["emb.weight"].data_ptr()


def test_matrices_that_begin_alike_are_not_tied(tmp_path: Path) -> None:
    """Zeros, of which one task lacks one: nothing of that task belongs in its place."""
    base = {"a.weight": torch.zeros(64, 32), "b.weight": torch.zeros(64, 32), "x.weight": BODY}
    whole = {name: near(tensor, seed) for seed, (name, tensor) in enumerate(base.items(), 30)}
    lacks = {name: near(tensor, seed) for seed, (name, tensor) in enumerate(base.items(), 40) if name != "b.weight"}
    with packed(base, {"a": whole, "b": lacks}, tmp_path / "z.tall", quality="lossless") as zoo:
        merged = zoo.merged("arithmetic", alpha=1.0)
        assert same_bits(merged["b.weight"], whole["b.weight"])
        assert not [note for note in merged.report.notes if "tied" in note]


@pytest.mark.parametrize("method", ["arithmetic", "ties", "consensus"])
def test_every_method_takes_them(method: str, tmp_path: Path) -> None:
    recipe = "ties" if method == "ties" else "tall"
    with packed(BASES["equal"], {"a": tied("twice"), "b": cut("equal")}, tmp_path / "z.tall", recipe=recipe) as zoo:
        merged = zoo.merged(method)
        assert (merged["head.weight"] - EMBEDDING).norm() > 0
        assert not same_bits(merged["head.weight"], merged["emb.weight"])


def test_a_head_that_the_base_has_not_is_each_tasks_own(tmp_path: Path) -> None:
    base = {"emb.weight": EMBEDDING, "x.weight": BODY}
    with packed(base, {"a": tied("twice"), "b": cut("equal")}, tmp_path / "z.tall") as zoo:
        assert "own: b" in zoo.merged("arithmetic").report.left_out["head.weight"]
        of_b = zoo.merged("arithmetic", heads="b")
        assert same_bits(of_b["head.weight"], zoo.state_dict("b")["head.weight"])
        of_a = zoo.merged("arithmetic", heads="a")
        assert of_a["head.weight"].data_ptr() == of_a["emb.weight"].data_ptr()
