"""Tensors of files that a model computes itself: buffers that are not saved, and what older libraries saved of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import near, noise
from torch import Tensor, nn

import tallstore
from tallstore.errors import ModelMismatchError

SIZES = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = SIZES | {"intermediate_size": 64, "max_position_embeddings": 64}
MASK = torch.ones(1, 1, 64, 64).tril().bool()


def of_layers(name: str, value: Tensor) -> dict[str, Tensor]:
    return {name.format(layer): value.clone() for layer in range(2)}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Tensor]]] = {
    "bert": ("BertForMaskedLM", WIDE, {"bert.embeddings.position_ids": torch.arange(64)[None]}),
    "roberta": ("RobertaModel", WIDE, {"embeddings.position_ids": torch.arange(64)[None]}),
    "llama": ("LlamaForCausalLM", WIDE, of_layers("model.layers.{}.self_attn.rotary_emb.inv_freq", torch.arange(8.0))),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
        of_layers("transformer.h.{}.attn.bias", MASK.float())
        | of_layers("transformer.h.{}.attn.masked_bias", torch.tensor(-1e4)),
    ),
    "gpt-neox": (
        "GPTNeoXForCausalLM",
        WIDE,
        of_layers("gpt_neox.layers.{}.attention.bias", MASK)
        | of_layers("gpt_neox.layers.{}.attention.masked_bias", torch.tensor(-1e9))
        | of_layers("gpt_neox.layers.{}.attention.rotary_emb.inv_freq", torch.arange(2.0)),
    ),
}


def saved(model: Any, folder: Path, extra: dict[str, Tensor]) -> Path:
    """As an older version saved it."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    state = load_file(file) | {name: value.contiguous() for name, value in extra.items()}
    save_file(state, file, metadata={"format": "pt"})
    return folder


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES)
def test_what_older_versions_saved_is_no_obstacle_and_comes_back(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="models are of transformers")
    name, options, extra = CASES[case]
    kind = getattr(transformers, name)

    def made(seed: int = 0) -> Any:
        torch.manual_seed(0)
        model = kind(kind.config_class(**options))
        with torch.no_grad():
            for at, parameter in enumerate(model.parameters()):
                parameter.copy_(near(parameter, 100 * seed + at) if seed else parameter)
        return model

    base, task = (saved(made(seed), tmp_path / f"{seed}", extra) for seed in (0, 1))
    tallstore.pack(base, {"a": task}, tmp_path / "z.tall", quality="lossless")
    wanted = kind.from_pretrained(task).state_dict()
    with tallstore.open(tmp_path / "z.tall") as zoo:
        file = load_file(zoo.export("a", tmp_path / "out") / "model.safetensors")
        assert all(torch.equal(file[n], value) for n, value in extra.items()), "the file has it again"
        zoo.load_into(loaded := made(), "a")
        zoo.switcher(switched := made()).switch("a")
    again = tallstore.from_pretrained(tmp_path / "z.tall", task="a", model_class=kind)
    for model in (loaded, switched, again):
        state = model.state_dict()
        assert state.keys() == wanted.keys()
        assert [n for n in wanted if not torch.equal(state[n], wanted[n])] == []


class Windowed(nn.Module):
    """A model with a table that it computes."""

    def __init__(self, offset: int = 0) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.register_buffer("index", torch.arange(64) + offset, persistent=False)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: nn.Sequential(model)], ids=["plain", "inside"])
def test_a_buffer_that_is_not_saved_keeps_its_own_value(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    base = {"fc.weight": noise(64, 64, seed=1), "fc.bias": noise(64, seed=2), "index": torch.arange(64)}
    task = base | {"fc.weight": near(base["fc.weight"], 3)}
    tallstore.pack(base, {"a": task}, tmp_path / "z.tall", quality="lossless")
    model = wrap(inner := Windowed(offset=5))
    with tallstore.open(tmp_path / "z.tall") as zoo:
        zoo.load_into(model, "a")
        assert torch.equal(inner.fc.weight, task["fc.weight"])
        zoo.switcher(model).switch("a")
    assert torch.equal(inner.index, torch.arange(64) + 5)


def test_what_is_no_buffer_is_still_refused_by_the_way_that_comes_nearest(tmp_path: Path) -> None:
    base = {f"net.{n}": noise(64, 64, seed=at) for at, n in enumerate(("fc.weight", "head.weight"))}
    base |= {"net.fc.bias": noise(64, seed=9)}
    task = base | {"net.fc.weight": near(base["net.fc.weight"], 3)}
    tallstore.pack(base, {"a": task}, tmp_path / "z.tall")
    model = nn.ModuleDict({"net": Windowed()})
    with tallstore.open(tmp_path / "z.tall") as zoo:
        with pytest.raises(ModelMismatchError, match=r"the model lacks 'net\.head\.weight'; nothing was written"):
            zoo.load_into(model, "a")
        with pytest.raises(ModelMismatchError, match=r"the model lacks 'net\.head\.weight'; nothing was written"):
            zoo.load_into(nn.ModuleDict({"module": model}), "a")
