"""Quantized checkpoints in the matrix: codes, scales and floats as their libraries name and type them.

The libraries' own models, with tensors of their own classes, are in the tests of quantized checkpoints.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from quantized.forms import made
from safetensors.torch import load_file, save_file

__all__ = ["FORMS", "Codes"]

FORMS = {
    "gptq": "quantized: gptq, awq",
    "compressed-tensors": "quantized: compressed-tensors int4",
    "nf4": "quantized: bitsandbytes nf4",
    "int8": "quantized: bitsandbytes int8",
    "mxfp4": "quantized: mxfp4, experts",
    "deepseek": "quantized: fp8 with block scales",
    "fp8": "plain fp8",
}
"""Form → what the table calls it."""


class Codes(torch.nn.Module):
    """What a file of codes holds; modules that compute with them are their libraries' own."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.held = state

    def state_dict(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return self.held


def make(form: str, seed: int = 0) -> Codes:
    codes, rest = made(form, seed)
    return Codes(codes | rest)


def tuned(form: str, model: Codes, seed: int) -> Codes:
    return make(form, seed)


def tuner(form: str) -> partial[Codes]:
    return partial(tuned, form)


def save(model: Codes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.held.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "tiny"}')


def load(folder: Path) -> Codes:
    return Codes(load_file(folder / "model.safetensors"))
