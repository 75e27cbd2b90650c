"""Single files and folders as trainers write them with torch.save: Stable Diffusion in one file, nnU-Net, MONAI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tallstore
from tallstore.checkpoints import open_checkpoint

from .folders import files_of, same

State = dict[str, Tensor]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tuned(state: Mapping[str, Tensor], seed: int) -> State:
    return {
        name: tensor + (0.01 * noise(*tensor.shape, seed=100 * seed + n)).to(tensor.dtype)
        if seed and tensor.is_floating_point()
        else tensor
        for n, (name, tensor) in enumerate(state.items())
    }


def stable_diffusion(seed: int) -> dict[str, Any]:
    """As its trainer writes it: three models in one state dict, an average without dots, and the trainer's own."""
    unet = {"input_blocks.0.0.weight": noise(32, 4, 3, 3, seed=1), "out.2.weight": noise(4, 320, 3, 3, seed=2)}
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()}
    state |= {"first_stage_model.encoder.conv_in.weight": noise(128, 3, 3, 3, seed=3)}
    state |= {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": noise(99, 32, seed=4)}
    state = tuned(state, seed)
    state |= {
        f"model_ema.diffusion_model{name.replace('.', '')}": 0.9 * state[f"model.diffusion_model.{name}"]
        for name in unet
    }
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    state |= {"betas": torch.linspace(0, 1, 1000), "alphas_cumprod": torch.linspace(1, 0, 1000)}
    return {
        "epoch": 3,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4",
        "state_dict": state,
        "callbacks": {},
    }


def test_a_stable_diffusion_file(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("a", 1)):
        torch.save(stable_diffusion(seed), tmp_path / f"{name}.ckpt")
    report = tallstore.pack(tmp_path / "base.ckpt", {"a": tmp_path / "a.ckpt"}, tmp_path / "z.tall", quality="lossless")
    state = stable_diffusion(1)["state_dict"]
    with tallstore.open(tmp_path / "z.tall") as zoo:
        found = zoo.state_dict("a")
    assert all(same(tensor, state[name]) for name, tensor in found.items())
    assert {name for name in state if name not in found} == {name for name in state if name.startswith("model_ema.")}
    assert any("model_ema" in warning for warning in report.warnings)
    averaged = open_checkpoint(tmp_path / "a.ckpt", weights="model_ema")
    name = "model.diffusion_model.out.2.weight"
    assert same(averaged.read(name, 0, state[name].numel()), (0.9 * state[name]).reshape(-1))


def nnunet(folder: Path, seed: int) -> Path:
    """A trained model's folder: plans, the data's description, and a fold with its last and its best state."""
    weights = {
        "encoder.stages.0.conv.weight": noise(32, 1, 3, 3, 3, seed=5),
        "decoder.seg.weight": noise(3, 320, seed=6),
    }
    for fold in ("fold_0", "fold_1"):
        (folder / fold).mkdir(parents=True)
        for name, step in (("checkpoint_final", 0.0), ("checkpoint_best", 1e-4)):
            content = {
                "network_weights": {n: t + step for n, t in tuned(weights, seed + 10 * (fold == "fold_1")).items()},
                "optimizer_state": {"state": {}, "param_groups": []},
                "logging": {"ema_fg_dice": [0.1]},
                "current_epoch": 1000,
                "init_args": {"configuration": "3d_fullres"},
                "trainer_name": "nnUNetTrainer",
            }
            torch.save(content, folder / fold / f"{name}.pth")
        (folder / fold / "training_log.txt").write_text("epoch 0")
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    return folder


def test_a_folder_of_nnunet(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("a", 1)):
        nnunet(tmp_path / name, seed)
    report = tallstore.pack(tmp_path / "base", {"a": tmp_path / "a"}, tmp_path / "z.tall", quality="lossless")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        found = zoo.state_dict("a")
        out = zoo.export("a", tmp_path / "out")
        saved = {file.saved for file in zoo.manifest.tasks["a"].weights}
    left = report.tasks["a"].left_out
    for fold in ("fold_0", "fold_1"):
        content = torch.load(tmp_path / "a" / fold / "checkpoint_final.pth", weights_only=True)["network_weights"]
        assert all(same(found[f"{fold}/{name}"], tensor) for name, tensor in content.items())
        assert f"{fold}/checkpoint_final.pth" in saved
        assert f"{fold}/checkpoint_best.pth" in left
    assert {"plans.json", "dataset.json", "dataset_fingerprint.json", "fold_0/training_log.txt"} <= files_of(out)


def monai(folder: Path, seed: int) -> Path:
    """A bundle: its configurations, its weights under `models/`, and its pages."""
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text('{"version": "0.1.0"}')
    (folder / "configs" / "inference.yaml").write_text("network: x")
    (folder / "docs" / "README.md").write_text("# bundle")
    (folder / "LICENSE").write_text("free")
    weights = {"model.0.conv.unit0.conv.weight": noise(16, 1, 3, 3, 3, seed=7), "model.2.weight": noise(40, 30, seed=8)}
    torch.save(tuned(weights, seed), folder / "models" / "model.pt")
    return folder


def test_a_bundle_of_monai(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("a", 1)):
        monai(tmp_path / name, seed)
    report = tallstore.pack(tmp_path / "base", {"a": tmp_path / "a"}, tmp_path / "z.tall", quality="lossless")
    content = torch.load(tmp_path / "a" / "models" / "model.pt", weights_only=True)
    with tallstore.open(tmp_path / "z.tall") as zoo:
        found = zoo.state_dict("a")
        out = files_of(zoo.export("a", tmp_path / "out"))
        (file,) = zoo.manifest.tasks["a"].weights
    assert file.saved == "models/model.pt"
    assert found.keys() == content.keys()
    assert all(same(found[name], tensor) for name, tensor in content.items())
    assert files_of(tmp_path / "a") - out - set(report.tasks["a"].left_out) == {"models/model.pt"}


@pytest.mark.parametrize("key", ["network_weights", "state_dict", "model"])
def test_numbers_of_numpy_beside_the_weights_are_no_obstacle(key: str, tmp_path: Path) -> None:
    """Trainers log them; they are told, and not taken."""
    weights = {"w.weight": noise(50, 40, seed=1)}
    torch.save({key: weights, "best": np.float64(0.5), "curve": [np.float32(1.0)]}, tmp_path / "x.pth")
    found = open_checkpoint(tmp_path / "x.pth")
    assert same(found.read("w.weight", 0, 2000), weights["w.weight"].reshape(-1))
    assert any("best" in name for name in found.left_out)
