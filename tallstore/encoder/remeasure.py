"""What marks keep, measured on what a reader gets, where that is not what they were made of.

Marks are chosen in float32 and against the base as it was given. Two things come between them and the reader: a base
that is stored with fewer bits, and a task whose own type has fewer, so that θ̂ is rounded to it. Both are in the error
that is recorded, and that a promise is about: ‖θ̂ − θt‖ / ‖θt − θ0‖, with the θ0 that the archive has. Of the second
alone, marks by sign are chosen anew, and their scale settled by what is kept (see `quantize.mark_moved`).

Rows of `fused_rows` measure the second by themselves, to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tallstore.codecs import MASK, VECTOR
from tallstore.codecs.base import Floats, MaskCodec, VectorCodec
from tallstore.encoder.backend import is_by_sign
from tallstore.encoder.chunk import CodedChunk, Made, TaskRow, task_vector
from tallstore.encoder.mark_codes import code_marks
from tallstore.encoder.metrics import agreement
from tallstore.encoder.moved_elements import Moved, moved_of
from tallstore.encoder.quantize import mark_moved
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.native_types import NARROW
from tallstore.kernels.place_hash import first_of
from tallstore.kernels.steps import Steps
from tallstore.merging.counting import count_on
from tallstore.recipes.base import Recipe
from tallstore.recipes.quantizers import Quantizer

__all__ = ["marks_of", "remeasure"]


def remeasure(
    coded: CodedChunk,
    rows: Sequence[TaskRow],
    base: Tensor,
    *,
    rounded: bool,
    codecs: tuple[VectorCodec, MaskCodec],
    recipe: Recipe,
    tensor: str = "",
    first: int = 0,
) -> CodedChunk:
    """The same coded chunk, its sums measured anew where they must be, and scales of marks settled by them.

    Args:
        coded: of `encode_chunk`.
        rows: what it was made of.
        base: θ0, flat, n elements, as it is stored.
        rounded: whether that is not the base that it was made against.
        codecs: of v, and of the masks.
        recipe: which scale is right.
        tensor: the base's name of the tensor.
        first: where in it the chunk begins.
    """
    if not any(rounded or row.weights.dtype in NARROW for row in rows):
        return coded
    vector, mask = codecs
    shared = None if vector.id == "ones" else vector.decode(coded.vector, len(base))

    def again(made: Made, row: TaskRow) -> Made:
        if not rounded and row.weights.dtype not in NARROW:
            return made
        start = base[: len(row.weights)]

        def measure(scale: float) -> tuple[float, ...]:
            return _sums(replace(made, scale=scale), row.weights, start, shared)

        # Of what is exact too, lost bits are those of the scale that was chosen.
        if rounded or row.form is not None or recipe.shared or row.exact or base.dtype != row.weights.dtype:
            return replace(made, sums=measure(made.scale))
        if made.kind == "delta":
            return made  # on levels that were chosen by what is rounded, which was measured
        rule = recipe.rule([row.task], tensor)
        if rule is not None and is_by_sign(rule, vector):
            before, tau = start.to(torch.float32).numpy(), task_vector(start, row.weights).numpy()
            moved = moved_of(tau, before, first, NARROW[row.weights.dtype])
            levels = Quantizer((float(np.float32(rule.limits[0])),), float(np.float32(rule.widths[0])))
            marks = marks_of(moved, levels, rule.seeds[0], recipe, mask, row.task)
            return marks or replace(made, sums=measure(made.scale))
        return replace(made, sums=measure(made.scale))

    return replace(coded, rows=tuple(again(made, row) for made, row in zip(coded.rows, rows, strict=True)))


def marks_of(moved: Moved, levels: Quantizer, seed: int, recipe: Recipe, mask: MaskCodec, task: int) -> Made | None:
    """What becomes of a row of few bits whose marks are signs above a threshold; None: see `quantize.mark_moved`.

    Args:
        moved: what of a chunk of it moved.
        levels: the threshold.
        seed: of the dither, if there is any.
        recipe: which scale is right.
        mask: codec of the masks.
        task: index into the zoo's task list.
    """
    marks = mark_moved(moved, levels, seed, partial(recipe.scale, task))
    if marks is None:
        return None
    first = first_of(moved.start, seed)
    codec, data = code_marks(mask, marks.packed, recipe.kind, moved.n, levels.width, first)
    return Made(recipe.kind, data, marks.scale, marks.sums, codec)


def _sums(made: Made, weights: Tensor, base: Tensor, shared: Floats | None) -> tuple[float, ...]:
    n = len(weights)
    steps: Steps
    backend = decoding()
    if made.kind == "delta":
        values = VECTOR[made.codec].decode(made.data, n)
        on = int(np.count_nonzero(values))
        steps = backend.values(values, weights.dtype)
    elif shared is None and backend.by_gaps and (marks := MASK[made.codec].decode_marks(made.data, made.kind, n)):
        on, steps = marks.number, backend.gaps(marks.gaps, marks.signs, made.kind, n, made.scale, weights.dtype)
    else:
        packed = MASK[made.codec].decode_packed(made.data, made.kind, n)
        on = count_on(np.pad(packed, (0, -len(packed) % 8)).view(np.uint64))
        steps = backend.mask(packed, made.kind, n, made.scale, weights.dtype, None if shared is None else shared[:n])
    return _kept(steps, weights, base, float(on))


def _kept(steps: Steps, weights: Tensor, base: Tensor, on: float) -> tuple[float, ...]:
    decoded = torch.empty_like(weights)
    steps.begin()(decoded, base)
    return *agreement(task_vector(base, weights), task_vector(base, decoded))[:-1], on
