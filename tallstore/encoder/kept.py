"""What marks keep, measured on what a reader gets, where that is not what they were made of.

Marks are chosen in float32 and against the base as it was given. Two things come between them and the reader: a base
that is stored with fewer bits, and a task whose own type has fewer, so that θ̂ is rounded to it. Both are in the error
that is recorded, and that a promise is about: ‖θ̂ − θt‖ / ‖θt − θ0‖, with the θ0 that the archive has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.codecs.base import MaskCodec, VectorCodec
from tallstore.encoder.chunk import Coded, Made, Row, task_vector
from tallstore.encoder.quality import sums
from tallstore.kernels import cpu

__all__ = ["remeasure"]

_NARROW = {torch.bfloat16, torch.float16}


def remeasure(
    coded: Coded, rows: Sequence[Row], base: Tensor, *, rounded: bool, vector: VectorCodec, mask: MaskCodec
) -> Coded:
    """The same coded chunk, its sums measured anew where they must be.

    Args:
        coded: of `encode_chunk`.
        rows: what it was made of.
        base: θ0, flat, n elements, as it is stored.
        rounded: whether that is not the base that it was made against.
        vector: codec of v.
        mask: codec of the masks.
    """
    if not any(rounded or row.weights.dtype in _NARROW for row in rows):
        return coded
    shared = torch.from_numpy(np.array(vector.decode(coded.vector, len(base))))
    again = [
        replace(made, sums=_sums(made, row.weights, base[: len(row.weights)], shared, mask))
        if rounded or row.weights.dtype in _NARROW
        else made
        for made, row in zip(coded.rows, rows, strict=True)
    ]
    return replace(coded, rows=tuple(again))


def _sums(made: Made, weights: Tensor, base: Tensor, shared: Tensor, mask: MaskCodec) -> tuple[float, ...]:
    n = len(weights)
    decoded = torch.empty_like(weights)
    if made.kind == "delta":
        marks = torch.from_numpy(np.array(codecs.VECTOR[made.codec].decode(made.data, n)))
        cpu.apply_delta(decoded, base, marks)
    else:
        marks = torch.from_numpy(mask.decode(made.data, made.kind, n))
        cpu.apply_mask(decoded, base, shared[:n], marks, made.scale)
    everywhere = torch.ones(1, n, dtype=torch.uint8)
    (found,) = sums(task_vector(base, weights)[None], task_vector(base, decoded), everywhere, "binary").tolist()
    return *found[:-1], float(marks.count_nonzero())
