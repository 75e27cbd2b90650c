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
from tallstore.encoder.chunk import Coded, Made, Row, task_vector
from tallstore.encoder.quality import BLOCK, N_SUMS, add_blocks, sums
from tallstore.kernels import cpu, fast
from tallstore.kernels.dispatch import decoding
from tallstore.kernels.steps import TILE, Steps
from tallstore.merging.counting import count_on

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
    shared = None if vector.id == "ones" else vector.decode(coded.vector, len(base))
    again = [
        replace(made, sums=_sums(made, row.weights, base[: len(row.weights)], shared, mask))
        if rounded or row.weights.dtype in _NARROW
        else made
        for made, row in zip(coded.rows, rows, strict=True)
    ]
    return replace(coded, rows=tuple(again))


def _sums(made: Made, weights: Tensor, base: Tensor, shared: Floats | None, mask: MaskCodec) -> tuple[float, ...]:
    n, compiled = len(weights), fast.encode_kernels()
    narrow = compiled is not None and weights.dtype == base.dtype == torch.bfloat16
    decoded = torch.empty_like(weights if compiled is None or narrow else weights[:TILE])
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
    run = steps.begin()
    if compiled is None:
        run(decoded, base)
        everywhere = torch.ones(1, n, dtype=torch.uint8)
        (measured,) = sums(task_vector(base, weights)[None], task_vector(base, decoded), everywhere, "binary").tolist()
        return *measured[:-1], float(on)
    blocks = np.empty((N_SUMS - 1, -(-n // BLOCK)))
    if narrow:
        run(decoded, base)
        compiled.agreement_bf16(blocks, *(each.view(torch.uint16).numpy() for each in (weights, base, decoded)))
        return *add_blocks(torch.from_numpy(blocks)).tolist(), float(on)
    for a in range(0, n, TILE):
        before, after, here = base[a : a + TILE], weights[a : a + TILE], decoded[: min(TILE, n - a)]
        run(here, before)
        start = before.to(weights.dtype).to(cpu.wide(weights.dtype))  # as `task_vector` has it
        tau, kept = after.to(start.dtype, copy=True).sub_(start), here.to(start.dtype, copy=True).sub_(start)
        compiled.agreement(blocks[:, a // BLOCK : -(-(a + len(here)) // BLOCK)], tau.numpy(), kept.numpy())
    return *add_blocks(torch.from_numpy(blocks)).tolist(), float(on)
