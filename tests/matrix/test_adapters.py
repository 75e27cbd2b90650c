"""Every kind of adapter in the matrix × everything that is done with an archive: each cell right, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tallstore
from matrix.kinds import ADAPTERS, AdapterKind, parameters_of
from tallstore.errors import OptionError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
State = dict[str, torch.Tensor]
FILES = ("adapter_config.json", "README.md")


@dataclass(frozen=True)
class Zoo:
    """A base, its adapters `a` and `b`, their archive, and what PEFT makes of each."""

    kind: AdapterKind
    folder: Path
    merged: dict[str, State]

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def archive(self) -> Path:
        return self.folder / "zoo.tall"


@pytest.fixture(scope="module", params=ADAPTERS, ids=lambda kind: kind.name)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    pytest.importorskip("peft", reason="adapters are made with PEFT")
    pytest.importorskip("transformers", reason="their base is one of transformers' models")
    kind: AdapterKind = request.param
    made = Zoo(kind, tmp_path_factory.mktemp("zoo"), {})
    for name, seed in (("base", 0), ("a", 1), ("b", 2)):
        torch.manual_seed(0)
        model = kind.make()
        if seed:
            kind.save(model, made.path(name), seed)
            made.merged[name] = parameters_of(kind.merged(made.path("base"), made.path(name)))
        else:
            model.save_pretrained(made.path(name))
    tallstore.pack(made.path("base"), {"a": made.path("a"), "b": made.path("b")}, made.archive)
    return made


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


def base_of(zoo: Zoo) -> torch.nn.Module:
    from transformers import LlamaForCausalLM

    model: torch.nn.Module = LlamaForCausalLM.from_pretrained(zoo.path("base"))
    return model


@pytest.mark.parametrize("task", ["a", "b"])
def test_what_is_extracted_opens_in_its_library(zoo: Zoo, tmp_path: Path, task: str) -> None:
    with tallstore.open(zoo.archive) as opened:
        opened.export(task, tmp_path / task)
    weights = "adapter_model.safetensors"
    assert_same(load_file(tmp_path / task / weights), load_file(zoo.path(task) / weights))
    assert_same(parameters_of(zoo.kind.merged(zoo.path("base"), tmp_path / task)), zoo.merged[task])
    for name in FILES:
        assert (tmp_path / task / name).read_bytes() == (zoo.path(task) / name).read_bytes()


def test_into_a_model_and_switching(zoo: Zoo) -> None:
    model = base_of(zoo)
    with tallstore.open(zoo.archive) as opened:
        opened.load_into(model, "a")
        assert_same(parameters_of(model), zoo.merged["a"])
        model = base_of(zoo)
        switcher = opened.switcher(model)
        for task in ("a", "b", "a"):
            switcher.switch(task)
            assert_same(parameters_of(model), zoo.merged[task])


def test_from_pretrained_and_the_merged_folder(zoo: Zoo, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    assert_same(parameters_of(tallstore.from_pretrained(zoo.archive, task="b")), zoo.merged["b"])
    with tallstore.open(zoo.archive) as opened:
        opened.export("b", tmp_path / "b", merged=True)
    assert_same(parameters_of(LlamaForCausalLM.from_pretrained(tmp_path / "b")), zoo.merged["b"])


def test_adding_and_verifying(zoo: Zoo, tmp_path: Path) -> None:
    target = tmp_path / "zoo.tall"
    tallstore.pack(zoo.path("base"), {"a": zoo.path("a")}, target)
    tallstore.add(target, {"b": zoo.path("b")})
    assert_same(parameters_of(tallstore.from_pretrained(target, task="b")), zoo.merged["b"])
    with tallstore.open(target) as opened:
        assert opened.verify(against={"a": zoo.path("a"), "b": zoo.path("b")}).against["b"].exact


def test_without_loss(zoo: Zoo, tmp_path: Path) -> None:
    tallstore.pack(zoo.path("base"), {"a": zoo.path("a")}, tmp_path / "zoo.tall", quality="lossless")
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        assert_same(opened.state_dict("a"), load_file(zoo.path("a") / "adapter_model.safetensors"))


def test_merging_of_models_says_that_it_is_none(zoo: Zoo) -> None:
    with tallstore.open(zoo.archive) as opened, pytest.raises(OptionError, match="is an adapter"):
        opened.merged("arithmetic")
