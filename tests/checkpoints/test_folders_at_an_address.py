"""Model folders at an address are read as those on this machine are: components, shards, variants, companions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tallstore
from tallstore.checkpoints import open_checkpoint
from tallstore.errors import CheckpointError

from .folders import assert_same_weights, files_of, put
from .test_weight_sets import MODEL, state

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/models"):
        system.rm("/models", recursive=True)


def pipeline(folder: Path, seed: int) -> Path:
    weights = state(seed)
    put(folder / "unet" / "diffusion_pytorch_model.safetensors", weights)
    put(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {n: t.half() for n, t in weights.items()})
    for number, name in enumerate(weights, 1):
        put(folder / "text_encoder" / f"model-{number:05}-of-{len(weights):05}.safetensors", {name: weights[name] * 2})
    table = {name: f"model-{number:05}-of-{len(weights):05}.safetensors" for number, name in enumerate(weights, 1)}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "P", "unet": ["diffusers", "U"], "text_encoder": ["transformers", "T"]})
    )
    (folder / "unet" / "config.json").write_text('{"_class_name": "U"}')
    (folder / "text_encoder" / "config.json").write_text('{"model_type": "t"}')
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"x" * 100)
    return folder


def test_a_pipeline_is_read_as_it_is_here(memory: Any, tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("a", 1)):
        memory.put(str(pipeline(tmp_path / name, seed)), f"/models/{name}", recursive=True)
    near = tallstore.pack(tmp_path / "base", {"a": tmp_path / "a"}, tmp_path / "near.tall", exact="all")
    far = tallstore.pack("memory://models/base", {"a": "memory://models/a"}, tmp_path / "far.tall", exact="all")
    assert far.tasks["a"].left_out == near.tasks["a"].left_out
    with tallstore.open(tmp_path / "near.tall") as one, tallstore.open(tmp_path / "far.tall") as two:
        assert one.manifest.tasks["a"].weights == two.manifest.tasks["a"].weights
        out = two.export("a", tmp_path / "out", exact=True)
        assert files_of(out) == files_of(one.export("a", tmp_path / "other", exact=True))
        assert_same_weights(out, tmp_path / "other")


def test_a_variant_is_chosen_there(memory: Any, tmp_path: Path) -> None:
    put(tmp_path / "m" / "model.safetensors", MODEL)
    put(tmp_path / "m" / "model.fp16.safetensors", {name: tensor.half() for name, tensor in MODEL.items()})
    memory.put(str(tmp_path / "m"), "/models/m", recursive=True)
    found = open_checkpoint("memory://models/m", weights="fp16")
    assert {info.dtype for info in found.tensors.values()} == {"F16"}
    found.close()
    with pytest.raises(CheckpointError, match="holds no weights 'ema'"):
        open_checkpoint("memory://models/m", weights="ema")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: [path.unlink() for path in (f / "unet").glob("*.safetensors")], r"memory://.*models/a.*no weights"),
        (lambda f: (f / "text_encoder" / "model-00002-of-00003.safetensors").unlink(), r"memory://.*models/a.*missing"),
        (lambda f: torch.save(MODEL, f / "pytorch_model.bin"), r"models/a: pytorch_model.bin: pickled.*fetch"),
    ],
    ids=["component", "shard", "pickle"],
)
def test_what_is_not_whole_there_is_refused_by_its_address(
    make: Any, message: str, memory: Any, tmp_path: Path
) -> None:
    make(pipeline(tmp_path / "a", 1))
    memory.put(str(tmp_path / "a"), "/models/a", recursive=True)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint("memory://models/a")
    assert "/tallstore-" not in str(caught.value)


def test_names_there_reach_no_file_outside(memory: Any, tmp_path: Path) -> None:
    put(tmp_path / "m" / "model.safetensors", MODEL)
    memory.put(str(tmp_path / "m"), "/models/m", recursive=True)
    memory.store["/models/m/../../../escaped.json"] = memory.store["/models/m/model.safetensors"]
    try:
        found = open_checkpoint("memory://models/m")
        assert any("escaped" in name for name in found.left_out)
        assert not any("escaped" in name for name in found.files)
        found.close()
    finally:
        del memory.store["/models/m/../../../escaped.json"]


def test_what_lists_nothing_says_how_to_name_a_file() -> None:
    fsspec.filesystem("memory").mkdirs("/models/none", exist_ok=True)
    with pytest.raises(CheckpointError, match=r"nothing is listed.*name the \.safetensors file"):
        open_checkpoint("memory://models/none")
