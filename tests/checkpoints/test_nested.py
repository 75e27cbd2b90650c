"""Mappings inside mappings in files of torch.save: parts of one model belong together, and no tensor goes unnamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_same
from torch import Tensor

import tallstore
from tallstore.checkpoints import open_checkpoint
from tallstore.errors import CheckpointError

from .folders import same


def weights(*names: str, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(64, 64, generator=draw) for name in names}


LANGUAGE = {
    "embedding": {"word_embeddings": weights("weight"), "position_embeddings": weights("weight", seed=1)},
    "encoder": weights("layers.0.weight", "final_layernorm.weight", seed=2),
    "output_layer": weights("weight", seed=3),
}
CASES: dict[str, tuple[Any, set[str]]] = {
    "megatron": (
        {"model": {"language_model": LANGUAGE, "word_embeddings_for_head": weights("weight", seed=4)}, "iteration": 5},
        {
            "language_model.embedding.word_embeddings.weight", "language_model.embedding.position_embeddings.weight",
            "language_model.encoder.layers.0.weight", "language_model.encoder.final_layernorm.weight",
            "language_model.output_layer.weight", "word_embeddings_for_head.weight",
        },
    ),
    "an image prompt adapter": (
        {"image_proj": weights("proj.weight"), "ip_adapter": weights("1.to_k_ip.weight", seed=1)},
        {"image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"},
    ),
    "two networks": (
        {"net_g": weights("a", "b"), "net_d": weights("c", seed=1), "optimizer": {"state": weights("d")}},
        {"net_g.a", "net_g.b", "net_d.c"},
    ),
    "tensors beside mappings": ({"w": weights("w")["w"], "sub": weights("u", "v")}, {"w", "sub.u", "sub.v"}),
    "statistics beside a network": (
        {"net_g": weights("a"), "mean": torch.ones(3), "count": torch.tensor(4)},
        {"net_g.a", "mean", "count"},
    ),
    "extra states of modules": (weights("a", "b", "c") | {"a._extra_state": weights("amax")}, {"a", "b", "c", "a._extra_state.amax"}),
    "far below": ({"a": {"b": {"c": {"d": weights("w")}}}}, {"w"}),
    "a lone wrapper": ({"weight": weights("a"), "config": [1], "epoch": torch.tensor(3)}, {"a"}),
    "a copy below its model": (weights("a", "b") | {"ema": weights("a", "b", seed=1)}, {"a", "b"}),
}  # fmt: skip


def tensors_of(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{path}{key}", value
        elif isinstance(value, Mapping):
            yield from tensors_of(value, f"{path}{key}.")


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_model_are_one_and_every_tensor_is_taken_or_named(case: str, tmp_path: Path) -> None:
    content, names = CASES[case]
    torch.save(content, tmp_path / "x.pt")
    found = open_checkpoint(tmp_path / "x.pt")
    assert set(found.tensors) == names
    told = [name.removeprefix("x.pt: ") for name in found.left_out]
    for path, tensor in tensors_of(content):
        taken = next((name for name in names if path == name or path.endswith(f".{name}")), None)
        here = taken is not None and same(found.read(taken, 0, tensor.numel()), tensor.reshape(-1))
        assert here or any(path == name or path.startswith(f"{name}.") for name in told), path


def test_a_part_is_taken_alone_where_it_is_asked_for(tmp_path: Path) -> None:
    torch.save({"net_g": weights("a", "b"), "net_d": weights("c", seed=1)}, tmp_path / "x.pt")
    found = open_checkpoint(tmp_path / "x.pt", weights="net_d")
    assert set(found.tensors) == {"c"}
    assert found.left_out == {"x.pt: net_g": "other weights; weights='net_g' (--weights net_g) takes them"}
    with pytest.raises(CheckpointError, match="net_x"):
        open_checkpoint(tmp_path / "x.pt", weights="net_x")


def test_what_comes_back_is_what_was_there(tmp_path: Path) -> None:
    content, names = CASES["megatron"]
    torch.save(content, tmp_path / "base.pt")
    moved = {name: tensor + 0.01 for name, tensor in tensors_of(content)}
    content = {"model": {"language_model": {}}}
    for path, tensor in moved.items():
        *keys, last = path.split(".")[: 5 if "embedding." in path else 4]
        at = content
        for key in keys if "encoder" not in path else keys[:3]:
            at = at.setdefault(key, {})
        at[path.split("encoder.")[1] if "encoder" in path else last] = tensor
    torch.save(content, tmp_path / "a.pt")
    report = tallstore.pack(tmp_path / "base.pt", {"a": tmp_path / "a.pt"}, tmp_path / "z.tall", quality="lossless")
    assert not report.tasks["a"].private
    with tallstore.open(tmp_path / "z.tall") as zoo:
        state = zoo.state_dict("a")
    assert set(state) == names
    assert all(same(state[name], moved[f"model.{name}"]) for name in names)


def test_one_name_twice_and_endless_keys_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4), "a": {"b": torch.ones(2)}, "a.b": torch.ones(3)}, tmp_path / "twice.pt")
    with pytest.raises(CheckpointError, match=r"twice\.pt: holds 'a\.b' twice"):
        open_checkpoint(tmp_path / "twice.pt")
    inner: dict[str, Any] = {"w": torch.ones(4)}
    for _ in range(40):
        inner = {"a": inner, "b": inner}
    torch.save(inner, tmp_path / "deep.pt")
    with pytest.raises(CheckpointError, match=r"deep\.pt: mappings in mappings"):
        open_checkpoint(tmp_path / "deep.pt")


@pytest.mark.parametrize(
    "more", [{}, {"ema": weights("a", "b", seed=9)}, {"epoch": 3}], ids=["alone", "a copy", "a number"]
)
@pytest.mark.parametrize("name", ["run 7.pt", "model.pth"])
def test_a_lone_file_comes_back_as_torchs_own_under_its_name_and_key(
    name: str, more: Mapping[str, Any], tmp_path: Path
) -> None:
    base = weights("a", "b")
    tuned = {key: tensor + 0.01 * weights("x", seed=5)["x"] for key, tensor in base.items()}
    torch.save({"state_dict": tuned, **more}, tmp_path / name)
    tallstore.pack(base, {"t": tmp_path / name}, tmp_path / "zoo.tall", quality="lossless")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        back = zoo.export("t", tmp_path / "back", weights_format="torch")
    content = torch.load(back / name, weights_only=True)
    assert list(content) == ["state_dict"]
    assert_same(content["state_dict"], tuned)
