"""What marks keep, measured on what a reader gets, where that is not what they were made of.

Marks are chosen in float32 and against the base as it was given. Two things come between them and the reader: a base
that is stored with fewer bits, and a task whose own type has fewer, so that θ̂ is rounded to it. Both are in the error
that is recorded, and that a promise is about: ‖θ̂ − θt‖ / ‖θt − θ0‖, with the θ0 that the archive has.

Rows that go `straight` measure the second by themselves, to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tallstore import codecs
from tallstore.codecs.base import Floats, MaskCodec, VectorCodec
from tallstore.encoder.chunk import CodedChunk, Made, TaskRow, task_vector
from tallstore.encoder.metrics import agreement
from tallstore.kernels.dispatch import decoding
from tallstore.kernels.native import encode as native
from tallstore.kernels.native_types import BFLOAT16, FLOAT16
from tallstore.kernels.steps import Steps
from tallstore.merging.counting import count_on
from tallstore.tensors import as_bytes

__all__ = ["remeasure"]

_NARROW = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def remeasure(
    coded: CodedChunk, rows: Sequence[TaskRow], base: Tensor, *, rounded: bool, vector: VectorCodec, mask: MaskCodec
) -> CodedChunk:
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
    shared = None if vector.id == "ones" else vector.decode(coded.vector, len(base))
    again = [
        replace(made, sums=_sums(made, row.weights, base[: len(row.weights)], shared, mask))
        if rounded or row.weights.dtype in _NARROW
        else made
        for made, row in zip(coded.rows, rows, strict=True)
    ]
    return replace(coded, rows=tuple(again))


def _sums(made: Made, weights: Tensor, base: Tensor, shared: Floats | None, mask: MaskCodec) -> tuple[float, ...]:
    n, decoded = len(weights), torch.empty_like(weights)
    steps: Steps
    backend = decoding()
    if made.kind == "delta":
        values = codecs.VECTOR[made.codec].decode(made.data, n)
        on = int(np.count_nonzero(values))
        steps = backend.values(values, weights.dtype)
    elif shared is None and backend.by_gaps and (marks := mask.decode_marks(made.data, made.kind, n)) is not None:
        on, steps = marks.number, backend.gaps(marks.gaps, marks.signs, made.kind, n, made.scale, weights.dtype)
    else:
        packed = mask.decode_packed(made.data, made.kind, n)
        on = count_on(np.pad(packed, (0, -len(packed) % 8)).view(np.uint64))
        steps = backend.mask(packed, made.kind, n, made.scale, weights.dtype, None if shared is None else shared[:n])
    steps.begin()(decoded, base)
    if weights.dtype == base.dtype and weights.dtype in _NARROW and native.available():
        own, before, after = (as_bytes(each).view(np.uint16) for each in (weights, base, decoded))
        return *native.agree_rows(own, before, after, _NARROW[weights.dtype]), float(on)
    measured = agreement(task_vector(base, weights), task_vector(base, decoded))
    return *measured[:-1], float(on)
