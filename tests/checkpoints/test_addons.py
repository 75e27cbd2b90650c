"""Textual inversions and IP-Adapters: refused for what they are; what only resembles them is packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import near, noise

import tallstore
from tallstore.errors import WrongBaseError

BASE = {"text_model.embeddings.weight": noise(100, 32), "text_model.layers.0.fc1.weight": noise(64, 32, seed=1)}
INVERSIONS: dict[str, Any] = {
    "of diffusers": {"<cat-toy>": noise(1, 32)},
    "of a web interface": {"string_to_token": {"*": 265}, "string_to_param": {"*": noise(2, 32)}, "name": "cat", "step": 5},
    "of a trainer": {"emb_params": noise(2, 32)},
    "of two text encoders": {"clip_l": noise(2, 32), "clip_g": noise(2, 48)},
}  # fmt: skip
IMAGE_PROMPT = {
    "image_proj": {"proj.weight": noise(32, 32), "norm.weight": noise(32)},
    "ip_adapter": {"1.to_k_ip.weight": noise(32, 32, seed=2), "1.to_v_ip.weight": noise(32, 32, seed=3)},
}


@pytest.mark.parametrize("kind", INVERSIONS)
def test_a_textual_inversion(kind: str, tmp_path: Path) -> None:
    torch.save(INVERSIONS[kind], tmp_path / "cat.pt")
    with pytest.raises(WrongBaseError, match=r"cat\.pt: a textual inversion: .* keep the file"):
        tallstore.pack(BASE, {"cat": tmp_path / "cat.pt"}, tmp_path / "zoo.tall")
    assert not (tmp_path / "zoo.tall").exists()


@pytest.mark.parametrize("form", ["a pickle", "safetensors"])
def test_an_image_prompt_adapter(form: str, tmp_path: Path) -> None:
    path = tmp_path / "ip.safetensors"
    if form == "safetensors":
        save_file({f"{part}.{name}": t for part, held in IMAGE_PROMPT.items() for name, t in held.items()}, path)
    else:
        torch.save(IMAGE_PROMPT, path := tmp_path / "ip.bin")
    with pytest.raises(WrongBaseError, match=r"an IP-Adapter: .* keep the file"):
        tallstore.pack(BASE, {"face": path}, tmp_path / "zoo.tall")


def test_a_model_with_such_names_is_a_model(tmp_path: Path) -> None:
    base = {"emb_params": noise(200, 32), "clip_l": noise(64, 32, seed=1)}
    tuned = {name: near(tensor, seed=5) for name, tensor in base.items()}
    tallstore.pack(base, {"a": tuned}, tmp_path / "zoo.tall")
    joined = BASE | {f"{part}.{name}": t for part, held in IMAGE_PROMPT.items() for name, t in held.items()}
    tallstore.pack(
        joined, {"a": {name: near(tensor, seed=5) for name, tensor in joined.items()}}, tmp_path / "two.tall"
    )
