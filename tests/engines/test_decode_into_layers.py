"""Layers that are written straight: which ones are found, what an engine then holds, and what is left to its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import near, noise, write_folder
from torch import Tensor, nn

import tallstore
from tallstore.engines.decode_into_layers import Part, StraightLayers, written_parameters
from tallstore.engines.digests import hash_of
from tallstore.engines.task_exchange import Exchange
from tallstore.engines.worker_catalogue import ArchiveSource, Catalogue, Loaded
from tallstore.errors import ModelMismatchError

PARTS = ("q_proj", "k_proj", "v_proj")
ROWS = {"q_proj": 16, "k_proj": 8, "v_proj": 8}
FUSED = {"qkv_proj": PARTS}
State = dict[str, Tensor]


def base_state() -> State:
    state = {"embed.weight": noise(40, 16, seed=1), "norm.weight": noise(300, seed=2)}
    for number, (part, rows) in enumerate(ROWS.items()):
        state[f"layers.0.{part}.weight"] = noise(rows, 16, seed=10 + number)
        state[f"layers.0.{part}.bias"] = noise(rows, seed=20 + number)
    state["layers.0.up.weight"] = noise(24, 16, seed=9)
    return state


class Kept(nn.Module):
    """A layer that gives its weight up for a form of its own once it is prepared, as engines' layers do."""

    def __init__(self, rows: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, 16), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(rows), requires_grad=False) if bias else None
        self.own: Tensor | None = None


class Model(nn.Module):
    """A table that a head shares and that has rows of filling, a fused layer, a plain one, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.norm = nn.Module(), nn.Module(), nn.Module()
        self.embed.weight = self.head.weight = nn.Parameter(torch.zeros(64, 16), requires_grad=False)
        self.norm.weight = nn.Parameter(torch.zeros(300), requires_grad=False)
        layer = nn.Module()
        layer.qkv_proj, layer.up = Kept(32, bias=True), Kept(24, bias=False)
        self.layers = nn.ModuleList([layer])

    def load(self, state: State) -> None:
        """The engine's own way, before the device has its form."""
        fused = {kind: torch.cat([state[f"layers.0.{p}.{kind}"] for p in PARTS]) for kind in ("weight", "bias")}
        with torch.no_grad():
            self.embed.weight[:40] = state["embed.weight"]
            self.norm.weight.copy_(state["norm.weight"])
            self.layers[0].qkv_proj.weight.copy_(fused["weight"])
            self.layers[0].qkv_proj.bias.copy_(fused["bias"])
            self.layers[0].up.weight.copy_(state["layers.0.up.weight"])

    def holds(self, state: State) -> bool:
        """Whether every layer's own form is that of a state."""
        wanted = Model()
        wanted.load(state)
        layers = [(each.layers[0].qkv_proj, each.layers[0].up) for each in (self, wanted)]
        own = [(a.own, b.weight, a.bias, b.bias) for a, b in zip(*layers, strict=True)]
        return (
            torch.equal(self.embed.weight, wanted.embed.weight)
            and torch.equal(self.norm.weight, wanted.norm.weight)
            and all(torch.equal(a, b) for a, b, *_ in own)
            and all(a is None or torch.equal(a, b) for *_, a, b in own)
        )


def finish(module: nn.Module) -> None:
    """Prepare a layer: its matrix is kept transposed, and the parameter is empty."""
    if isinstance(module, Kept):
        module.own = module.weight.detach().T.clone().T
        module.weight = nn.Parameter(torch.empty(0), requires_grad=False)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    base = base_state()
    states = {"a": moved(1), "b": moved(2), "half": {**base, "layers.0.k_proj.bias": noise(8, seed=77)}}
    write_folder(tmp_path / "base", base)
    for name, state in states.items():
        write_folder(tmp_path / name, state)
    tallstore.pack(tmp_path / "base", {name: tmp_path / name for name in states}, tmp_path / "zoo", quality="lossless")
    return Catalogue(ArchiveSource(archive=str(tmp_path / "zoo")), resident=True)


def moved(seed: int) -> State:
    return {name: near(tensor, seed=100 * seed + i) for i, (name, tensor) in enumerate(base_state().items())}


def started(state: State) -> tuple[Model, StraightLayers]:
    """A model that serves a state, and its layers."""
    model = Model()
    model.load(state)
    found = written_parameters(
        model, {name: hash_of(t) for name, t in state.items()}, {name: t.shape for name, t in state.items()}, FUSED
    )
    for module in model.modules():
        finish(module)
    return model, StraightLayers(model, found, lambda _: True, finish)


def test_rows_of_several_tensors_and_shared_tables_are_found() -> None:
    state, model = moved(1), Model()
    model.load(state)
    hashes, shapes = {n: hash_of(t) for n, t in state.items()}, {n: t.shape for n, t in state.items()}
    found = {each.owners[0]: each for each in written_parameters(model, hashes, shapes, FUSED)}
    assert found[("embed", "weight")].owners == (("embed", "weight"), ("head", "weight"))
    assert found[("layers.0.qkv_proj", "weight")].parts == (
        Part(name="layers.0.q_proj.weight", first=0, last=16),
        Part(name="layers.0.k_proj.weight", first=16, last=24),
        Part(name="layers.0.v_proj.weight", first=24, last=32),
    )
    assert len(found) == 5


@pytest.mark.parametrize("other", ["value", "order", "not given"])
def test_what_holds_something_else_is_not_found(other: str) -> None:
    state, model = moved(1), Model()
    model.load(state)
    hashes, shapes = {n: hash_of(t) for n, t in state.items()}, {n: t.shape for n, t in state.items()}
    with torch.no_grad():
        if other == "value":
            model.layers[0].qkv_proj.weight[20, 3] += 1
        elif other == "order":
            model.layers[0].qkv_proj.weight.copy_(model.layers[0].qkv_proj.weight.flip(0))
        else:
            hashes.pop("layers.0.v_proj.weight")
    found = {each.owners[0] for each in written_parameters(model, hashes, shapes, FUSED)}
    assert ("layers.0.qkv_proj", "weight") not in found
    assert len(found) == 4


def test_any_task_is_written_and_prepared(catalogue: Catalogue) -> None:
    base = base_state()
    model, layers = started(base)
    names = list(base)
    pointer = model.embed.weight.data_ptr()
    for task, state in (("a", moved(1)), ("b", moved(2)), ("a", moved(1))):
        applied: dict[str, str] = {}
        assert layers.write(catalogue, task, names, applied) == []
        assert model.holds(state)
        assert applied == {name: hash_of(tensor) for name, tensor in state.items()}
    assert model.embed.weight.data_ptr() == pointer
    assert model.head.weight is model.embed.weight
    catalogue.close()


def test_a_layer_is_written_whole_where_a_part_of_it_is_asked_for(catalogue: Catalogue) -> None:
    base = base_state()
    model, layers = started(base)
    assert layers.write(catalogue, "half", ["layers.0.k_proj.bias"], {}) == []
    assert model.holds({**base, "layers.0.k_proj.bias": noise(8, seed=77)})
    catalogue.close()


def test_what_is_not_plain_is_left(catalogue: Catalogue) -> None:
    """A layer of another kind, one with a parameter that is no tensor's, and one that was changed meanwhile."""
    base = base_state()
    qkv = [name for name in base if any(part in name for part in PARTS)]
    model, _ = started(base)
    hashes, shapes = {n: hash_of(t) for n, t in base.items()}, {n: t.shape for n, t in base.items()}
    fresh = Model()
    fresh.load(base)
    found = written_parameters(fresh, hashes, shapes, FUSED)
    up = model.layers[0].up
    another = StraightLayers(model, found, lambda module: module is not up, finish)
    assert another.write(catalogue, "a", list(base), {}) == ["layers.0.up.weight"]
    model.layers[0].qkv_proj.scale = nn.Parameter(torch.ones(1))
    assert StraightLayers(model, found, lambda _: True, finish).write(catalogue, "a", list(base), {}) == qkv
    model.norm.weight = nn.Parameter(model.norm.weight.double(), requires_grad=False)
    assert StraightLayers(model, found, lambda _: True, finish).write(catalogue, "a", list(base), {}) == [
        "norm.weight",
        *qkv,
    ]
    catalogue.close()


class Served:
    """A worker's model whose layers are all written straight."""

    refused, config = None, {}

    def __init__(self, catalogue: Catalogue) -> None:
        self.module, self._layers = started(moved(1))
        applied = {name: hash_of(tensor) for name, tensor in moved(1).items()}
        self.loaded = Loaded(catalogue=catalogue, task="a", applied=applied)

    def straight(self, catalogue: Catalogue, task: str, names: list[str], applied: dict[str, str]) -> list[str]:
        return self._layers.write(catalogue, task, names, applied)

    def held(self, names: Iterable[str]) -> dict[str, Tensor]:
        return self._layers.held(names)

    def weights(self, *_: Any) -> Iterator[tuple[str, Tensor]]:
        raise AssertionError

    def reload(self, weights: Any) -> None:
        raise AssertionError

    def recover(self) -> None:
        pass


@pytest.mark.parametrize("place", ["norm", "embed", "qkv_proj"])
def test_what_somebody_else_writes_to_is_noticed(place: str, catalogue: Catalogue) -> None:
    """To a whole tensor of the checkpoint, to one that shares its memory with rows of filling, and to rows of several."""
    served = Served(catalogue)
    exchange = Exchange(served)
    catalogue.config = lambda _: {}  # type: ignore[method-assign] # folders of plain tensors have none
    for turn, (task, state) in enumerate((("b", moved(2)), ("a", moved(1)), ("b", moved(2)))):
        assert exchange.prepare(str(turn), task, None)["ok"]
        assert exchange.apply(str(turn))["ok"]
        assert exchange.settle(str(turn), keep=True)["task"] == task
        assert served.module.holds(state)
    changed = {"norm": served.module.norm.weight, "embed": served.module.embed.weight}
    with torch.no_grad():
        changed.get(place, served.module.layers[0].qkv_proj.bias)[3] += 1
    assert exchange.prepare("4", "a", None)["ok"]
    told = exchange.apply("4")
    assert (told["ok"], told["kind"]) == (False, "ModelChangedError")
    exchange.close()


def test_memory_of_another_kind_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    with tallstore.open(tmp_path / "zoo") as zoo:
        kept = torch.zeros(300)
        wrong = {"norm.weight": kept, "embed.weight": torch.zeros(16, 40)}
        with pytest.raises(ModelMismatchError, match=r"'embed.weight' is F32 \[40, 16\]"):
            zoo.decode_into("a", wrong)
        assert not kept.any()
        with pytest.raises(ModelMismatchError, match="norm"):
            zoo.decode_into("a", {"norm.weight": torch.zeros(300, dtype=torch.float64)})
        zoo.decode_into("a", {"norm.weight": kept})
        assert torch.equal(kept, moved(1)["norm.weight"])
    catalogue.close()
