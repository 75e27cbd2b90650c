"""Models of no transformers class, as timm and open_clip keep them: bare safetensors beside a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_model
from support import assert_same, bytes_of

import tallstore

KINDS = {
    "timm": ("config.json", "model.safetensors", {"architecture": "tiny", "num_classes": 3}),
    "open_clip": ("open_clip_config.json", "open_clip_model.safetensors", {"model_cfg": {"embed_dim": 16}}),
}


class Tiny(torch.nn.Module):
    """Convolutions, running statistics, an integer buffer and a tied head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = torch.nn.Conv2d(3, 16, 3)
        self.norm = torch.nn.BatchNorm2d(16)
        self.inner = torch.nn.Linear(16, 16, bias=False)
        self.head = torch.nn.Linear(16, 16, bias=False)
        self.head.weight = self.inner.weight
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.inner(self.norm(self.stem(x)).mean((2, 3)))) * self.logit_scale
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_folder_is_what_its_own_library_expects(kind: str, tmp_path: Path) -> None:
    config, weights, facts = KINDS[kind]
    base = Tiny(0)
    for seed, name in enumerate(("base", "one", "two")):
        model = Tiny(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * seed * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        model.norm.num_batches_tracked += seed
        (tmp_path / name).mkdir()
        save_model(base if name == "base" else model, str(tmp_path / name / weights))
        (tmp_path / name / config).write_text(json.dumps({**facts, "name": name}))
    tallstore.pack(tmp_path / "base", {t: tmp_path / t for t in ("one", "two")}, tmp_path / "zoo.tall")
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        out = zoo.export("two", tmp_path / "out")
        assert sorted(path.name for path in out.iterdir()) == sorted([config, weights])
        assert json.loads((out / config).read_bytes())["name"] == "two"
        state = zoo.state_dict("two")
        assert_same(dict(sorted(load_file(out / weights).items())), dict(sorted(state.items())))
        before = bytes_of(out)
        assert bytes_of(zoo.export("two", out, overwrite=True)) == before
    with safe_open(out / weights, "pt") as file, safe_open(tmp_path / "two" / weights, "pt") as before_packing:
        assert file.metadata() == before_packing.metadata(), "its loader reads of ties there"
    found, original = Tiny(1), Tiny(1)
    assert load_model(found, str(out / weights)) == (set(), [])
    load_model(original, str(tmp_path / "two" / weights))
    assert int(found.norm.num_batches_tracked) == 2
    assert found.head.weight is found.inner.weight
    images = torch.ones(2, 3, 8, 8)
    assert torch.allclose(found.eval()(images), original.eval()(images), rtol=0.2, atol=0.2)
