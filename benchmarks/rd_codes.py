"""What things cost on disk, in bytes, with the coders that tallstore itself uses: equal footing for every method."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.codecs import zstd

CHUNK = 1 << 20
SCALE = 4
"""Bytes of a float32 scale."""

_FLOATS = {2: "F16", 4: "F32"}


def _chunks(values: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
    return [values[a : a + CHUNK] for a in range(0, len(values), CHUNK)]


def lossless(tensor: Tensor) -> int:
    """A float tensor, exactly: byte planes and zstd."""
    flat = tensor.detach().flatten().contiguous()
    values = (flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).numpy()  # which numpy lacks
    codec, kind = codecs.WHOLE["planes+zstd"], _FLOATS[values.itemsize]
    return sum(min(len(codec.encode(c.view(np.uint8), kind)), c.nbytes) for c in _chunks(values))


def packed(n: int, bits: float) -> int:
    """n symbols of a fixed number of bits."""
    return int(-(-n * bits // 8))


def mask(marks: Tensor, kind: str) -> int:
    """Marks −1, 0, 1 (kind `signed`) or 0, 1 (kind `binary`), entropy-coded."""
    symbols = np.where(marks.numpy() < 0, 2, marks.numpy() != 0).astype(np.uint8)
    codec = codecs.MASK["adaptive"]
    return sum(len(codec.encode(c, kind)) for c in _chunks(symbols))


def levels(indices: Tensor, table: int) -> int:
    """Indices into a float32 table, entropy-coded: two a byte where the table has at most 16 levels."""
    codes = indices.numpy().astype(np.uint8)
    if table <= 16:
        codes = np.pad(codes, (0, len(codes) % 2))
        codes = codes[0::2] | codes[1::2] << 4
    return 4 * table + sum(len(zstd.compress(c.tobytes())) for c in _chunks(codes))


def entropy(data: bytes) -> int:
    """Bytes as zstd's Huffman stage leaves them."""
    return min(len(data), len(zstd.compress(data)))
