"""Synthetic checkpoints of the shape of CLIP's ViT-B/32, fp32, with the names of an open_clip image classifier.

An image encoder is fine-tuned (87.8 M parameters), the rest of the text side is not (25.8 M; the vocabulary is padded
to 49,792 rows to make the count). A base and twenty tasks take 9.5 GB; what is there already is used again.

example:
  python benchmarks/synthetic.py /tmp/synthetic --tasks 4
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import progress_to_stderr

WEIGHTS = "model.safetensors"
HEAD_WIDTH = 64
WIDTH, TEXT_WIDTH, VOCABULARY, CONTEXT, PATCH, POSITIONS = 768, 512, 49_792, 77, 32, 50


@dataclass(frozen=True)
class Figures:
    """How a tensor of one sort looks, in the base and in how tasks move it."""

    center: float
    """Mean of θ0."""
    spread: float
    """Standard deviation of θ0."""
    moved: float
    """Root mean square of τ; 0 for a frozen tensor."""
    shared: float
    """Mean correlation between two tasks' τ."""
    unmoved: float
    """Share of elements where τ is exactly 0."""


# Measured on the project's real zoo (MiniLM-L6, eight text classifiers, fp32, two passes), means over its tensors of
# each sort. Tails there are hardly heavier than a normal distribution's: kurtosis 3.2, |τ|/rms at 99.9 % 3.4.
FIGURES = {
    "weight": Figures(center=0.0, spread=0.064, moved=1.8e-3, shared=0.026, unmoved=0.0035),
    "bias": Figures(center=0.0, spread=0.080, moved=1.4e-3, shared=0.19, unmoved=0.0025),
    "norm.weight": Figures(center=0.61, spread=0.08, moved=2.4e-3, shared=0.11, unmoved=0.0020),
    "norm.bias": Figures(center=0.0, spread=0.073, moved=1.2e-3, shared=0.20, unmoved=0.0028),
    "embedding": Figures(center=0.0, spread=0.024, moved=8.6e-4, shared=0.054, unmoved=0.50),
    "frozen": Figures(center=0.0, spread=0.040, moved=0.0, shared=0.0, unmoved=1.0),
}
KURTOSIS = 3.2


@dataclass(frozen=True)
class Spec:
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    sort: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def vit_b32(layers: int = 12, scale: float = 1.0) -> list[Spec]:
    """The tensors of the model, its widths and vocabulary times `scale`."""
    width, text = _scaled(WIDTH, scale), _scaled(TEXT_WIDTH, scale)
    visual = "model.visual."
    found = [
        Spec("model.positional_embedding", (CONTEXT, text), "frozen"),
        Spec("model.text_projection", (text, text), "frozen"),
        Spec("model.logit_scale", (), "frozen"),
        Spec(f"{visual}class_embedding", (width,), "embedding"),
        Spec(f"{visual}positional_embedding", (POSITIONS, width), "embedding"),
        Spec(f"{visual}proj", (width, text), "weight"),
        Spec(f"{visual}conv1.weight", (width, 3, PATCH, PATCH), "weight"),
        *_norm(f"{visual}ln_pre", width),
    ]
    for layer in range(layers):
        found += _block(f"{visual}transformer.resblocks.{layer}.", width)
    found += _norm(f"{visual}ln_post", width)
    found.append(Spec("model.token_embedding.weight", (_scaled(VOCABULARY, scale), text), "frozen"))
    return [*found, Spec("model.ln_final.weight", (text,), "frozen"), Spec("model.ln_final.bias", (text,), "frozen")]


def _scaled(width: int, scale: float) -> int:
    return max(HEAD_WIDTH, round(width * scale / HEAD_WIDTH) * HEAD_WIDTH)


def _norm(prefix: str, width: int) -> list[Spec]:
    return [Spec(f"{prefix}.weight", (width,), "norm.weight"), Spec(f"{prefix}.bias", (width,), "norm.bias")]


def _linear(prefix: str, out: int, width: int) -> list[Spec]:
    return [Spec(f"{prefix}.weight", (out, width), "weight"), Spec(f"{prefix}.bias", (out,), "bias")]


def _block(prefix: str, width: int) -> list[Spec]:
    return [
        *_norm(f"{prefix}ln_1", width),
        Spec(f"{prefix}attn.in_proj_weight", (3 * width, width), "weight"),
        Spec(f"{prefix}attn.in_proj_bias", (3 * width,), "bias"),
        *_linear(f"{prefix}attn.out_proj", width, width),
        *_norm(f"{prefix}ln_2", width),
        *_linear(f"{prefix}mlp.c_fc", 4 * width, width),
        *_linear(f"{prefix}mlp.c_proj", width, 4 * width),
    ]


def base_tensor(spec: Spec) -> Any:
    """θ0 of a tensor."""
    figures = FIGURES[spec.sort]
    return figures.center + figures.spread * _noise(spec, "base")


def tuned_tensor(spec: Spec, task: str) -> Any:
    """θt: θ0 plus a part that all tasks share and a part of the task's own."""
    import torch

    figures, base = FIGURES[spec.sort], base_tensor(spec)
    if not figures.moved:
        return base
    tau = math.sqrt(1 - figures.shared) * _noise(spec, task) + math.sqrt(figures.shared) * _noise(spec, "shared")
    tau += (KURTOSIS - 3) / 24 * (tau**3 - 3 * tau)  # Cornish-Fisher: the tails' weight, the variance as before
    chance = torch.rand(spec.shape, generator=_generator(spec, f"{task} unmoved"))
    return torch.where(chance < figures.unmoved, base, base + figures.moved / math.sqrt(1 - figures.unmoved) * tau)


def _noise(spec: Spec, what: str) -> Any:
    import torch

    return torch.randn(spec.shape, generator=_generator(spec, what))


def _generator(spec: Spec, what: str) -> Any:
    import torch

    return torch.Generator().manual_seed(zlib.crc32(f"{what}\0{spec.name}".encode()))


def make_checkpoints(folder: Path, specs: list[Spec], tasks: int) -> tuple[Path, dict[str, Path]]:
    """Write the base and the tasks, but for those that are there."""
    names = [f"task{n:02}" for n in range(tasks)]
    progress_to_stderr("making checkpoints", 0, tasks + 1)
    _write(folder / "base", specs, base_tensor)
    for n, name in enumerate(names, start=1):
        progress_to_stderr("making checkpoints", n, tasks + 1)
        _write(folder / name, specs, lambda spec, name=name: tuned_tensor(spec, name))
    progress_to_stderr("making checkpoints", tasks + 1, tasks + 1)
    return folder / "base", {name: folder / name for name in names}


def _write(folder: Path, specs: list[Spec], tensor: Callable[[Spec], Any]) -> None:
    from safetensors.torch import save_file

    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file({spec.name: tensor(spec) for spec in specs}, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architectures": ["ImageEncoder"]}), encoding="utf-8")


def main() -> None:
    what, _, example = (__doc__ or "").partition("example:\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=f"example:\n{example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--scale", type=float, default=1.0, help="of widths and vocabulary")
    arguments = parser.parse_args()
    make_checkpoints(arguments.folder, vit_b32(arguments.layers, arguments.scale), arguments.tasks)


if __name__ == "__main__":
    main()
