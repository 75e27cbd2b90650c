"""timm and open_clip: what they save comes back under the names that they look for. In a process of their own.

Their torchvision may not fit the torch that is installed; `TALLSTORE_VISION` names a folder that has both libraries.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("TALLSTORE_VISION", "")
HEAD = f"""
import json, sys
from pathlib import Path
import torch
if {FOLDER!r}:
    sys.path.append({FOLDER!r})
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import tallstore
root = Path(sys.argv[1])

def nudged(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() > 1:
                p.add_(0.02 * p.std() * torch.randn(p.shape, generator=generator))
    return model

def check(name, make, save, load, files):
    (root / name).mkdir()
    for form, safe in (("safetensors", True), ("pickle", False)):
        check_form(make, lambda model, folder: save(model, folder, safe), load, files, root / name / form)

def check_form(make, save, load, files, root):
    root.mkdir()
    for name, seed in (("base", 0), ("a", 1), ("b", 2)):
        torch.manual_seed(0)
        model = make()
        save(nudged(model, seed) if seed else model, root / name)
    tasks = {{name: root / name for name in "ab"}}
    tallstore.pack(root / "base", tasks, root / "zoo.tall", exact="all")
    with tallstore.open(root / "zoo.tall") as zoo:
        for task in tasks:
            out = zoo.export(task, root / "out" / task, exact=True)
            assert files <= {{p.name for p in out.iterdir()}}, list(out.iterdir())
            one, two = load(root / task), load(out)
            assert all(torch.equal(one[name], two[name]) for name in one)
"""
TIMM = """
import timm
from timm.models import save_for_hf
from safetensors.torch import load_file
make = lambda: timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2, img_size=32, num_classes=3)
check("timm", make, lambda m, f, safe: save_for_hf(m, f, safe_serialization=safe), lambda f: timm.create_model(
    f"local-dir:{f}", depth=1, embed_dim=24, num_heads=2, img_size=32, num_classes=3, pretrained=True).state_dict(),
    {"model.safetensors", "config.json"})
"""
CLIP = """
import open_clip
from open_clip.push_to_hf_hub import save_for_hf
small = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
         "text_cfg": {"context_length": 8, "vocab_size": 512, "width": 16, "heads": 2, "layers": 1}}
class NoTokenizer:
    def save_pretrained(self, folder):
        pass
def save(model, folder, safe):
    folder.mkdir(exist_ok=True)
    save_for_hf(model, tokenizer=NoTokenizer(), model_config=small, save_directory=str(folder), safe_serialization=safe)
def load(folder):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.state_dict()
def make():
    model = open_clip.CLIP(**small)
    open_clip.model.set_model_preprocess_cfg(model, {"mean": [0.5] * 3, "std": [0.5] * 3})
    return model
check("open_clip", make, save, load, {"open_clip_model.safetensors", "open_clip_config.json"})
"""


@pytest.mark.skipif(
    not FOLDER and importlib.util.find_spec("timm") is None, reason="neither timm nor TALLSTORE_VISION is there"
)
def test_it_comes_back_for_its_own_loader(tmp_path: Path) -> None:
    """One process for both: it imports for seconds."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HEAD + TIMM + CLIP, str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
