"""Quantized checkpoints, made by hand as their libraries name and type them: base and fine-tunes of one recipe each."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from support import State, near, noise
from torch import Tensor

IN, OUT, GROUP = 256, 128, 64


def layers(seed: int) -> dict[str, Tensor]:
    """Float weights of two linear modules; other seeds than 0 are fine-tunes of 0."""
    start = {f"model.layers.{n}.q_proj": noise(OUT, IN, size=0.02, seed=n + 1) for n in range(2)}
    return start if not seed else {name: near(w, 50 * seed + n, 2e-4) for n, (name, w) in enumerate(start.items())}


def rest(seed: int) -> State:
    """What stays in floats."""
    start = {"model.embed.weight": noise(100, 32, seed=9), "model.norm.weight": 1 + noise(300, size=0.01, seed=8)}
    start = {name: tensor.to(torch.bfloat16) for name, tensor in start.items()}
    return start if not seed else {name: near(t, 70 * seed + n) for n, (name, t) in enumerate(start.items())}


def codes(weights: Tensor, most: int, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Symmetric codes and the scales of groups, shapes (OUT, IN) and (OUT, IN / group)."""
    grouped = weights.reshape(len(weights), -1, group)
    scales = grouped.abs().amax(-1) / most
    found = (grouped / scales[..., None]).round().clamp(-most - 1, most)
    return found.reshape(weights.shape), scales


def pairs(nibbles: Tensor) -> Tensor:
    """Two codes a byte."""
    flat = nibbles.to(torch.uint8).reshape(len(nibbles), -1)
    return flat[:, 0::2] | flat[:, 1::2] << 4


def gptq(name: str, weights: Tensor) -> State:
    found, scales = codes(weights, 7)
    words = pairs(found + 8).contiguous().view(torch.int32).T.contiguous()
    return {
        f"{name}.qweight": words,
        f"{name}.qzeros": torch.full((IN // GROUP, OUT // 8), 0x77777777, dtype=torch.int32),
        f"{name}.scales": scales.T.contiguous().half(),
        f"{name}.g_idx": (torch.arange(IN) // GROUP).int(),
    }


def compressed_int4(name: str, weights: Tensor) -> State:
    found, scales = codes(weights, 7)
    return {
        f"{name}.weight_packed": pairs(found + 8).contiguous().view(torch.int32),
        f"{name}.weight_scale": scales.to(torch.bfloat16),
        f"{name}.weight_shape": torch.tensor(weights.shape),
    }


def nf4(name: str, weights: Tensor) -> State:
    levels = torch.linspace(-1, 1, 16)
    blocks = weights.reshape(-1, 64)
    absmax = blocks.abs().amax(1)
    found = ((blocks / absmax[:, None])[..., None] - levels).abs().argmin(-1)
    said = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": list(weights.shape), "dtype": "float32"}).encode()
    return {
        f"{name}.weight": pairs(found.reshape(1, -1)).reshape(-1, 1),
        f"{name}.weight.absmax": absmax,
        f"{name}.weight.quant_map": levels,
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(said), dtype=torch.uint8),
    }


def int8(name: str, weights: Tensor) -> State:
    found, scales = codes(weights, 127, IN)
    return {f"{name}.weight": found.to(torch.int8), f"{name}.SCB": scales[:, 0] * 127}


def mxfp4(name: str, weights: Tensor) -> State:
    blocks = weights.reshape(4, OUT // 4, IN // 32, 32)
    exponents = blocks.abs().amax(-1).log2().floor()
    found = (blocks / exponents.exp2()[..., None] * 4).round().clamp(-7, 7).to(torch.int8)
    signed = found.abs().to(torch.uint8) | (found < 0).to(torch.uint8) << 3
    return {
        f"{name}.experts.gate_up_proj_blocks": signed[..., 0::2] | signed[..., 1::2] << 4,
        f"{name}.experts.gate_up_proj_scales": (exponents + 127).to(torch.uint8),
    }


def blocked_fp8(name: str, weights: Tensor) -> State:
    blocks = weights.reshape(1, OUT, IN // 128, 128).transpose(1, 2)
    scales = blocks.abs().amax((-1, -2)) / 448
    found = (blocks / scales[..., None, None]).transpose(1, 2).reshape(OUT, IN)
    return {f"{name}.weight": found.to(torch.float8_e4m3fn), f"{name}.weight_scale_inv": scales}


def plain_fp8(name: str, weights: Tensor) -> State:
    return {f"{name}.weight": (weights * 100).to(torch.float8_e4m3fn)}


FORMS: dict[str, tuple[str | None, Callable[[str, Tensor], State]]] = {
    "gptq": ("GPTQ or AWQ", gptq),
    "compressed-tensors": ("compressed-tensors", compressed_int4),
    "nf4": ("bitsandbytes nf4", nf4),
    "int8": ("bitsandbytes int8", int8),
    "mxfp4": ("MXFP4", mxfp4),
    "deepseek": ("FP8 with block scales", blocked_fp8),
    "fp8": (None, plain_fp8),
}
"""What each is called, and what it makes of a module's weights."""


def made(form: str, seed: int) -> tuple[State, State]:
    """The quantized tensors of a checkpoint, and the others."""
    quantized: State = {}
    for name, weights in layers(seed).items():
        quantized |= FORMS[form][1](name, weights)
    return quantized, rest(seed)
