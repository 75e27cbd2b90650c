"""One weight under several names: stored once, equal when it comes back; two weights never go into one memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import TIED, made
from safetensors.torch import load_file, save_file
from support import State, kinds, near, noise, packed, same_bits
from torch import nn

import tallstore
from tallstore.errors import ModelMismatchError


class Tied(nn.Module):
    """An embedding and a head that are one memory."""

    def __init__(self, *, tie: bool = True) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 16), nn.Linear(16, 64, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


def two(seed: int) -> State:
    return {"embedding.weight": noise(64, 16, seed=seed), "head.weight": noise(64, 16, seed=seed + 1)}


def moved(state: State) -> State:
    return {name: near(tensor, 7 + at) for at, (name, tensor) in enumerate(state.items())}


def load(zoo: tallstore.Zoo, model: nn.Module) -> None:
    zoo.load_into(model, "t")


def switch(zoo: tallstore.Zoo, model: nn.Module) -> None:
    zoo.switcher(model).switch("t")


@pytest.mark.parametrize("write", [load, switch])
def test_two_tensors_for_one_memory_are_refused_by_name(
    write: Callable[[tallstore.Zoo, nn.Module], None], tmp_path: Path
) -> None:
    base = two(1)
    with packed(base, {"t": moved(base)}, tmp_path / "z.tall") as zoo:
        model = Tied()
        before = model.embedding.weight.detach().clone()
        with pytest.raises(
            ModelMismatchError, match=r"'(embedding|head).weight' and '(embedding|head).weight'.*nothing"
        ):
            write(zoo, model)
        assert same_bits(model.embedding.weight.detach(), before)
        apart = Tied(tie=False)
        write(zoo, apart)
        assert same_bits(apart.head.weight.detach(), zoo.state_dict("t")["head.weight"])
        assert same_bits(apart.embedding.weight.detach(), zoo.state_dict("t")["embedding.weight"])


@pytest.mark.parametrize("write", [load, switch])
@pytest.mark.parametrize("base_holds", ["one", "equal", "different"])
def test_equal_copies_cost_nothing_and_come_back_equal(
    write: Callable[[tallstore.Zoo, nn.Module], None], base_holds: str, tmp_path: Path
) -> None:
    embedding = noise(64, 16, seed=1)
    bases: dict[str, State] = {
        "one": {"embedding.weight": embedding},
        "equal": {"embedding.weight": embedding, "head.weight": embedding.clone()},
        "different": {"embedding.weight": embedding, "head.weight": noise(64, 16, seed=2)},
    }
    once = near(embedding, 5)
    with packed(bases[base_holds], {"t": {"embedding.weight": once}}, tmp_path / "once.tall") as zoo:
        size = zoo.manifest.tasks["t"].measured["bytes"]
    twice = {"embedding.weight": once, "head.weight": once.clone()}
    with packed(bases[base_holds], {"t": twice}, tmp_path / "twice.tall") as zoo:
        assert kinds(zoo, "t")["head.weight"] == "tied"
        assert zoo.manifest.tasks["t"].measured["bytes"] - size < 256, "a line in a header"
        state = zoo.state_dict("t")
        assert same_bits(state["embedding.weight"], state["head.weight"])
        zoo.export("t", tmp_path / "out")
        assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(twice)
        write(zoo, model := Tied())
        assert same_bits(model.head.weight.detach(), state["head.weight"])


def test_a_base_with_equal_copies_is_stored_once(tmp_path: Path) -> None:
    base = {"a": noise(256, 64, seed=1), "b": noise(256, 64, seed=2)}
    task = moved(base)
    with packed(base, {"t": task}, tmp_path / "plain.tall", base_codec="raw") as zoo:
        size = zoo.info()["bytes"]["base"]
    copies = {**base, "c": base["a"].clone()}
    with packed(copies, {"t": {**task, "c": task["a"].clone()}}, tmp_path / "z.tall", base_codec="raw") as zoo:
        assert zoo.info()["bytes"]["base"] - size < 512
        assert same_bits(zoo.base("c"), base["a"])
        merged = zoo.merged("arithmetic", alpha=1.0)
        assert same_bits(merged["c"], merged["a"])


def test_what_is_equal_without_being_tied_stays_apart(tmp_path: Path) -> None:
    """Zeros and ones that nothing trained, and what stayed as the base has it, are the base's by themselves."""
    base = {"a": torch.zeros(32, 32), "b": torch.zeros(32, 32), "c": noise(32, 32, seed=3), "w": noise(64, 64, seed=4)}
    base["d"] = base["c"].clone()
    task = {**{name: tensor.clone() for name, tensor in base.items()}, "w": near(base["w"], 9)}
    with packed(base, {"t": task}, tmp_path / "z.tall") as zoo:
        assert {kinds(zoo, "t")[name] for name in "abcd"} == {"base"}


@pytest.mark.parametrize("family", TIED)
def test_a_file_with_every_copy_comes_back_tied_in_the_stock_loader(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    kind = made(TIED[family], tmp_path, ("a",))
    model = kind.from_pretrained(tmp_path / "a")
    copies = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(copies, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    tallstore.pack(tmp_path / "base", {"t": tmp_path / "a"}, tmp_path / "z.tall")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        found = kind.from_pretrained(zoo.export("t", tmp_path / "out"))
        out, own = found.get_output_embeddings().weight, found.get_input_embeddings().weight
        assert out.data_ptr() == own.data_ptr(), "tied"
        fresh = kind.from_pretrained(tmp_path / "base")
        zoo.load_into(fresh, "t")
        assert all(
            same_bits(a, b) for a, b in zip(fresh.state_dict().values(), found.state_dict().values(), strict=True)
        )
