"""Quantized models of the libraries that people use: packed, extracted, and opened by the stock loader as before."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import same_bits

import tallstore

transformers = pytest.importorskip("transformers")

# What these libraries deprecate in themselves and in torch is theirs.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("_quiet")]


@pytest.fixture
def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def small(seed: int) -> Any:
    """A tiny language model in bfloat16; other seeds than 0 are fine-tunes of 0."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters() if seed else ():
            weights += (0.03 * weights.float().std() * torch.randn(weights.shape, generator=draw)).to(weights.dtype)
    return model


def torchao(kind: str, folder: Path, seed: int) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    how = {
        "int8": lambda: quantization.Int8WeightOnlyConfig(version=2),
        "fp8": lambda: quantization.Float8WeightOnlyConfig(version=2),
    }[kind]()
    small(seed).save_pretrained(folder / "float")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "float", dtype=torch.bfloat16, quantization_config=transformers.TorchAoConfig(how)
    )
    model.save_pretrained(folder)


def compressed_tensors(kind: str, folder: Path, seed: int) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    bits, what, form, most = {
        "int4": (4, "int", "pack-quantized", 7.5),
        "int8": (8, "int", "int-quantized", 127.5),
        "fp8": (8, "float", "float-quantized", 448.0),
    }[kind]
    strategy = {"strategy": "group", "group_size": 64} if kind == "int4" else {"strategy": "channel"}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=bits, type=what, **strategy))
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, quantization_status="frozen", ignore=["lm_head"]
    )
    model = small(seed)
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            scales = module.weight_scale
            groups = module.weight.data.float().reshape(len(module.weight), scales.shape[1], -1)
            scales.data = (groups.abs().amax(-1) / most).to(scales.dtype)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


MADE: dict[str, tuple[Callable[[str, Path, int], None], str, str]] = {
    "torchao-int8": (torchao, "int8", "torchao Int8WeightOnlyConfig"),
    "torchao-fp8": (torchao, "fp8", "torchao Float8WeightOnlyConfig"),
    "compressed-tensors-int4": (compressed_tensors, "int4", "compressed-tensors int4"),
    "compressed-tensors-int8": (compressed_tensors, "int8", "compressed-tensors int8"),
    "compressed-tensors-fp8": (compressed_tensors, "fp8", "compressed-tensors float8"),
}


@pytest.mark.parametrize("name", MADE)
def test_codes_are_exact_and_the_stock_loader_opens_them(name: str, tmp_path: Path) -> None:
    make, kind, form = MADE[name]
    for seed, folder in enumerate(("base", "a", "b")):
        (tmp_path / folder).mkdir()
        make(kind, tmp_path / folder, seed)
    tasks = {task: tmp_path / task for task in ("a", "b")}
    for folder in ("base", "a", "b"):
        _without_floats(tmp_path / folder)
    report = tallstore.pack(tmp_path / "base", tasks, tmp_path / "zoo.tall")
    for task, folder in tasks.items():
        told = report.tasks[task].without_loss
        assert told is not None
        assert told.form == form
        assert told.coded_bytes < 0.8 * told.bytes
        with tallstore.open(tmp_path / "zoo.tall") as zoo:
            zoo.export(task, tmp_path / f"out-{task}")
        there, back = (load_file(place / "model.safetensors") for place in (folder, tmp_path / f"out-{task}"))
        assert there.keys() == back.keys()
        exact = [n for n in there if same_bits(there[n], back[n])]
        assert sum(there[n].nbytes for n in exact) >= told.bytes
        assert all("embed" in n or "lm_head" in n or "norm" in n for n in there.keys() - exact)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out-a")
        original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    words = torch.arange(8)[None]
    with torch.no_grad():
        assert bool(model(words).logits.isfinite().all())
        assert model(words).logits.shape == original(words).logits.shape


def _without_floats(folder: Path) -> None:
    """Take away the float model that the quantized one was made from."""
    for path in sorted((folder / "float").rglob("*"), reverse=True) if (folder / "float").is_dir() else ():
        path.unlink()
    if (folder / "float").is_dir():
        (folder / "float").rmdir()
