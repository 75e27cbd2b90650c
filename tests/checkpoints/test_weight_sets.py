"""Several sets of weights in one file: one is chosen, the others are named, or all are packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tallstore
from tallstore.checkpoints import open_checkpoint
from tallstore.errors import CheckpointError

from .folders import put, same

State = dict[str, Tensor]


def state(seed: int) -> State:
    start = torch.Generator().manual_seed(0)
    moved = torch.Generator().manual_seed(seed)
    out = {}
    for name in ("net.0.weight", "net.1.weight", "net.1.bias"):
        weight = torch.randn(40, 40, generator=start)
        out[name] = weight + (0.01 * torch.randn(40, 40, generator=moved) if seed else 0)
    return out


MODEL, EMA = state(1), state(2)


def prefixed(prefix: str, weights: Mapping[str, Tensor]) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in weights.items()}


def undotted(weights: Mapping[str, Tensor]) -> State:
    """As latent diffusion's averager writes names."""
    return {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in weights.items()} | {
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(3),
    }


CASES: dict[str, tuple[Any, str, str]] = {
    "model and ema": ({"model": MODEL, "ema": EMA, "opt": {}, "args": {"lr": 1e-4}}, "ema", ""),
    "a wrapper around both": ({"checkpoint": {"state_dict": MODEL, "ema_state_dict": EMA}}, "ema_state_dict", ""),
    "model and model_ema": ({"model": MODEL, "model_ema": EMA, "epoch": 3}, "model_ema", ""),
    "state_dict_ema": ({"state_dict": MODEL, "state_dict_ema": EMA}, "state_dict_ema", ""),
    "two prefixes": ({"state_dict": prefixed("model", MODEL) | prefixed("ema_model", EMA)}, "ema_model", "model."),
    "names without dots": ({"state_dict": prefixed("model", MODEL) | undotted(EMA)}, "model_ema", "model."),
    "beside the bare names": (MODEL | prefixed("ema", EMA), "ema", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_the_main_set_is_taken_and_the_other_named_and_chosen(case: str, tmp_path: Path) -> None:
    content, other, prefix = CASES[case]
    torch.save(content, tmp_path / "last.ckpt")
    main = open_checkpoint(tmp_path / "last.ckpt")
    assert any(other in name and f"{other}) takes it" in why for name, why in main.left_out.items())
    _assert_holds(main, MODEL, prefix)
    averaged = open_checkpoint(tmp_path / "last.ckpt", weights=other)
    _assert_holds(averaged, EMA, prefix)
    with pytest.raises(CheckpointError, match=other):
        open_checkpoint(tmp_path / "last.ckpt", weights="nothing")


def _assert_holds(found: Any, weights: Mapping[str, Tensor], prefix: str) -> None:
    assert set(found.tensors) == {f"{prefix}{name}" for name in weights}
    for name, tensor in weights.items():
        assert same(found.read(f"{prefix}{name}", 0, tensor.numel()), tensor.reshape(-1))


@pytest.mark.parametrize(("case", "engine"), [*((case, "threads") for case in CASES), ("two prefixes", "processes")])
def test_all_sets_are_tasks_beside_each_other(case: str, engine: str, tmp_path: Path) -> None:
    content, other, prefix = CASES[case]
    torch.save(content, tmp_path / "last.ckpt")
    torch.save(state(0), tmp_path / "base.pt")
    report = tallstore.pack(
        tmp_path / "base.pt", {"t": tmp_path / "last.ckpt"}, tmp_path / "zoo.tall", weights="all", exact="all",
        engine=engine, workers=1,
    )  # fmt: skip
    names = {f"t.{other}", f"t.{other}".replace("checkpoint.", "checkpoint-")}
    (extra,) = set(report.tasks) - {"t"}
    assert extra in names or extra.endswith(other)
    assert not any(other in warning for warning in report.warnings)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        for task, weights in (("t", MODEL), (extra, EMA)):
            found = zoo.state_dict(task, exact=True)
            assert all(same(found[f"{prefix}{name}"], tensor) for name, tensor in weights.items())
    assert all(not task.private for task in report.tasks.values()), "each is coded against the base"


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: put(path, prefixed_all(content))], ids=["keys", "prefixes"]
)
def test_two_sets_of_which_none_is_the_main_one_are_asked_about(
    write: Callable[[Any, Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / ("x.pt" if write is torch.save else "x.safetensors")
    write({"student": MODEL, "teacher": EMA}, path)
    with pytest.raises(CheckpointError, match=r"student.*teacher.*--weights student"):
        open_checkpoint(path)
    found = open_checkpoint(path, weights="teacher")
    name = next(name for name in found.tensors if name.endswith("net.1.bias"))
    assert same(found.read(name, 0, 1600), EMA["net.1.bias"].reshape(-1))
    assert len(found.tensors) == len(EMA)


def prefixed_all(content: Mapping[str, Mapping[str, Tensor]]) -> State:
    return {name: tensor for prefix, weights in content.items() for name, tensor in prefixed(prefix, weights).items()}


def test_towers_with_equal_names_are_no_copies_of_each_other(tmp_path: Path) -> None:
    both = prefixed("encoder", MODEL) | prefixed("decoder", EMA)
    assert set(open_checkpoint(put(tmp_path / "x.safetensors", both)).tensors) == set(both)


def test_a_variant_beside_the_plain_weights_is_chosen_by_its_name(tmp_path: Path) -> None:
    put(tmp_path / "m" / "model.safetensors", MODEL)
    put(tmp_path / "m" / "model.fp16.safetensors", {name: tensor.half() for name, tensor in MODEL.items()})
    plain = open_checkpoint(tmp_path / "m")
    assert {info.dtype for info in plain.tensors.values()} == {"F32"}
    assert "--weights fp16" in plain.left_out["model.fp16.safetensors"]
    half = open_checkpoint(tmp_path / "m", weights="fp16")
    assert {info.dtype for info in half.tensors.values()} == {"F16"}
    assert [file.path for file in half.layout] == ["model.fp16.safetensors"]
