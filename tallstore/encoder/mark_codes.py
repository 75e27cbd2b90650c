"""How marks and levels are coded: given the dither that drew them, where one did."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallstore.codecs.adaptive import Adaptive
from tallstore.codecs.base import Bytes, Floats, MaskCodec
from tallstore.codecs.codebook import Codebook
from tallstore.codecs.known_dither import DitheredLevels, DitheredMask
from tallstore.kernels.native import encode
from tallstore.kernels.registry import kernel

__all__ = ["MarkCode", "code_levels", "code_marks", "signed_levels"]

_MASK, _LEVELS = DitheredMask(), DitheredLevels()
_CODEBOOKS = (Codebook("q4", 16), Codebook("q5", 32), Codebook("q8", 256))


class MarkCode(NamedTuple):
    """Coded marks or levels of a chunk."""

    codec: str
    data: bytes


def code_marks(mask: MaskCodec, packed: Bytes, kind: str, n: int, width: float, first: int) -> MarkCode:
    """Code the marks of a chunk.

    Args:
        mask: the codec of masks that is asked for; `adaptive` takes what is known of a dither, too.
        packed: n symbols, packed.
        kind: of the mask.
        n: elements of the chunk.
        width: of the dither that drew the marks; 0: none did.
        first: what drew for the first element: see `place_hash.first_of`.
    """
    if width and kind == "signed" and mask.id == Adaptive.id:
        return MarkCode(_MASK.id, _MASK.encode_drawn(packed, n, first))
    return MarkCode(mask.id, mask.encode_packed(packed, kind, n))


def code_levels(table: Floats, indices: Bytes, numbers: npt.NDArray[np.int64], width: float, first: int) -> MarkCode:
    """Code the levels of a chunk.

    Args:
        table: 0, the levels of +, then those of −, which have the same magnitudes.
        indices: into it, uint8, shape (n,).
        numbers: how often each index comes.
        width: of the dither that drew them; 0: none did.
        first: what drew for the first element.
    """
    count = len(table) // 2
    if width:
        largest = max((k for k in range(1, count + 1) if numbers[k] or numbers[count + k]), default=0)
        return MarkCode(_LEVELS.id, _LEVELS.encode_drawn(signed_levels(indices, count), table[1 : 1 + largest], first))
    codec = next(codec for codec in _CODEBOOKS if len(table) <= codec.levels)
    return MarkCode(codec.id, codec.encode_indices(table, indices, numbers))


@kernel
def signed_levels(indices: Bytes, count: int) -> npt.NDArray[np.int8]:
    """Indices into 0, the levels of +, then those of −, `count` of each and at most 127, as numbers: shape (n,)."""
    numbers = indices.astype(np.int16)
    return np.where(numbers > count, count - numbers, numbers).astype(np.int8)


@signed_levels.native
def _(indices: Bytes, count: int) -> npt.NDArray[np.int8]:
    return encode.signed_levels(indices, count)
