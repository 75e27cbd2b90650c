"""Tiny zoos, packed by tallstore itself, with what real checkpoints hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tallstore

State = dict[str, torch.Tensor]
PACKINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "exact": {"exact": "all"},
    "fit": {"recipe": "fit", "vector": "q4", "mask": "bits+zstd"},
    "fit referenced": {
        "recipe": "fit",
        "vector": "f32",
        "mask": "bits",
        "base_storage": "reference",
        "base_codec": "raw",
    },
    "emr": {"recipe": "emr", "vector": "bf16"},
}


@dataclass(frozen=True)
class Packed:
    """A packed zoo, and the base that it may only reference."""

    path: Path
    base: State


def base_state() -> State:
    numbers = torch.Generator().manual_seed(0)
    weights = torch.randn(90, 40, generator=numbers)
    weights[0, :4] = torch.tensor([-0.0, 0.0, 1e-40, -1e-40])
    return {
        "layer.weight": weights,
        "layer.half": torch.randn(50, 20, generator=numbers).to(torch.bfloat16),
        "embedding": torch.randn(30, 20, generator=numbers),
        "bias": torch.randn(40, generator=numbers),
        "steps": torch.tensor(7),
    }


def task_state(base: State, seed: int) -> State:
    numbers = torch.Generator().manual_seed(seed)
    moved = {
        name: (t.float() + 0.02 * torch.randn(t.shape, generator=numbers)).to(t.dtype)
        for name, t in base.items()
        if t.is_floating_point()
    }
    moved["embedding"] = torch.cat([moved["embedding"], torch.randn(2, 20, generator=numbers)])
    if seed % 2:
        moved["layer.weight"] = moved["layer.weight"].to(torch.float16)
    head = torch.randn(3, 40, generator=numbers)
    return moved | {
        "steps": torch.tensor(seed),
        "head.weight": head,
        "head.tied": head,
        "mask": torch.tensor([True, False]),
        "odd": torch.tensor([float("nan"), -0.0, 1.0]),
        "none": torch.empty(0, 4),
    }


@pytest.fixture(scope="module", params=PACKINGS)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    base = base_state()
    target = tmp_path_factory.mktemp("spec") / "zoo.tall"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", 1024)
        tasks = {f"task-{seed}": task_state(base, seed) for seed in (1, 2, 3)}
        tallstore.pack(base, tasks, target, **PACKINGS[request.param])
    return Packed(target, base)
