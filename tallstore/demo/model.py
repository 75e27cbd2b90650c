"""The demo's model: a small pre-norm transformer that reads an image as four strips of two rows.

As with real checkpoints, base and fine-tunes share the body only. The base (`Reconstructor`) has a decoder and a mask
token that no task keeps, a fine-tune (`Classifier`) a head that the base lacks. A classifier's shape can be read off
its state dict (`Shape.of`), so a state dict alone is enough to run it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tallstore.demo.digits import SIDE

STRIPS = 4
_PIXELS = SIDE * SIDE // STRIPS
_HEAD_WIDTH = 32


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a body. The width is a multiple of 32."""

    width: int
    depth: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Shape:
        """The size of the body that `state` holds."""
        blocks = {match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
        return cls(width=state["positions"].shape[1], depth=len(blocks))


def strips(images: Tensor) -> Tensor:
    """(N, 8, 8) to (N, 4, 16): the pixels of each strip."""
    return images.reshape(-1, STRIPS, _PIXELS)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def _attention(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, -1, _HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * _HEAD_WIDTH**-0.5).softmax(-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(n, tokens, width))
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm1(x))
        mixed: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return mixed


class _Body(nn.Module):
    """Strips, embedded, to one vector a strip that knows of the others."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Linear(_PIXELS, shape.width)
        self.positions = nn.Parameter(torch.randn(STRIPS, shape.width) * 0.1)
        self.blocks = nn.ModuleList(_Block(shape.width) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width)

    def _read(self, embedded: Tensor) -> Tensor:
        x = embedded + self.positions
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


class Reconstructor(_Body):
    """The base: guesses the strips it is not shown, and which digit it is."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.mask_token = nn.Parameter(torch.zeros(shape.width))
        self.decoder = nn.Linear(shape.width, _PIXELS)
        self.digit = nn.Linear(shape.width, 10)

    def forward(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Every strip as it guesses it, and the digit's logits. It does not see strips where `hidden`, (N, 4), is."""
        seen = self._read(torch.where(hidden.unsqueeze(-1), self.mask_token, self.embed(strips(images))))
        return self.decoder(seen), self.digit(seen.mean(1))


class Classifier(_Body):
    """A fine-tune: one answer an image."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__(shape)
        self.head = nn.Linear(shape.width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of each image, (N, classes)."""
        logits: Tensor = self.head(self._read(self.embed(strips(images))).mean(1))
        return logits
