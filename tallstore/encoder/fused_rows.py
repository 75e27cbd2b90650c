"""Rows straight from their files: the native library reads, looks at and measures or marks each in one call or few.

What most packing is: float32 against float32, or bfloat16 or float16 against the same, each row by itself, signs above
a threshold over v = 1. What is found is bit for bit what `encode_item` finds of rows that it reads. A row of which that
cannot be known beforehand (it holds a NaN, its file ends within it) is a `Fallback`: it takes the general way, errors
too.

Of a narrow row the sums are of what a reader gets, in which its type's rounding has a part: see `quantize.mark_moved`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.checkpoints import Checkpoint
from tallstore.codecs.base import MaskCodec
from tallstore.encoder.chunk import Made
from tallstore.encoder.mark_codes import code_marks
from tallstore.encoder.metrics import N_SUMS, scaled
from tallstore.encoder.moved_elements import Moved
from tallstore.encoder.quantize import encode, encode_moved
from tallstore.encoder.remeasure import marks_of
from tallstore.kernels import reference
from tallstore.kernels.native import encode as native
from tallstore.kernels.native import levels as native_levels
from tallstore.kernels.native import library
from tallstore.kernels.native_types import BFLOAT16, FLOAT16, FLOAT32
from tallstore.kernels.place_hash import first_of
from tallstore.kernels.rules import Rule
from tallstore.kernels.scratch import scratch
from tallstore.recipes.base import Recipe
from tallstore.recipes.coherence import BITS, gain_of
from tallstore.recipes.histogram import BINS, SHIFT, Magnitudes
from tallstore.recipes.quantizers import Quantizer
from tallstore.tensors import TORCH, as_bytes

__all__ = [
    "Fallback",
    "Start",
    "coherent",
    "counted",
    "leveled",
    "marked",
    "moved",
    "reach",
    "row_in_file",
    "row_in_memory",
    "start_of",
]

Singles = npt.NDArray[np.float32]
_FAR, _NEAR = 2.0**100, {torch.float16: 2.0**15}
_FORMS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
"""Types of rows that go straight."""


class Fallback(Enum):
    """Why a row takes the general way after all."""

    CUT_OFF = "its file ends within it"
    OUT_OF_REACH = "it holds NaN, Inf, or numbers with which sums could overflow"
    SCALE = "its scale or its levels are no finite numbers"


def reach(kind: torch.dtype) -> float:
    """Magnitudes of a type above this are stored as they are: sums and differences of such numbers could overflow."""
    return _NEAR.get(kind, _FAR)


@dataclass(frozen=True)
class Start:
    """θ0 of some elements, of the type that rows over it must have."""

    values: Singles
    """As float32."""
    kind: torch.dtype
    """Its own type."""


def start_of(base: Tensor, largest: float) -> Start | None:
    """Where rows begin that go straight, in this thread's memory or the base's own; None where rows over it cannot.

    Args:
        base: θ0, flat.
        largest: its largest magnitude; not finite if there is a NaN.
    """
    form = _FORMS.get(base.dtype)
    if library.chosen() is None or form is None or not largest <= reach(base.dtype):
        return None
    if form == FLOAT32:
        return Start(base.numpy(), base.dtype)
    values = scratch("start", len(base), np.float32)
    torch.from_numpy(values).copy_(base)
    return Start(values, base.dtype)


def row_in_file(checkpoint: Checkpoint, name: str, base: Start) -> native.NativeRow | None:
    """A task's tensor as kernels read it; None where it has no place in a file, or not the base's type."""
    place = checkpoint.place(name)
    if place is None or TORCH[checkpoint.tensors[name].dtype] != base.kind:
        return None
    return native.NativeRow(_FORMS[base.kind], *place)


def row_in_memory(weights: Tensor, base: Start) -> native.NativeRow | None:
    """Elements that were read, as kernels read them; None where they are not of the base's type."""
    return native.NativeRow(_FORMS[base.kind], data=as_bytes(weights)) if weights.dtype == base.kind else None


def counted(row: native.NativeRow, cut: Sequence[npt.NDArray[np.int64]], base: Start) -> list[Magnitudes] | Fallback:
    """|τ| of each tile of a tensor.

    Args:
        row: the task's tensor.
        cut: of each tile its runs: the first element of each and the one behind its last, shape (R, 2).
        base: θ0 of all of these elements, one behind the other.
    """
    seen, magnitudes, done = native.Seen(), [], 0
    for runs in cut:
        end = len(base.values) if runs is cut[-1] else done + int((runs[:, 1] - runs[:, 0]).sum())
        tally = native.tally_row(seen, row, runs, base.values[done:end], SHIFT, BINS)
        if tally is None:
            return Fallback.CUT_OFF
        magnitudes.append(Magnitudes(*tally).of(end - done, narrow=row.form != FLOAT32))
        done = end
    return magnitudes if seen.largest <= reach(base.kind) else Fallback.OUT_OF_REACH


def coherent(row: native.NativeRow, firsts: Sequence[int], base: Start, n: int) -> float | None:
    """`coherence.gain` of rows of a tensor, each of n elements; None where its file ends within them.

    Args:
        row: the task's tensor.
        firsts: the elements that these rows begin with.
        base: θ0 of the same elements.
        n: elements of a row.
    """
    sums = native.coherence(row, np.array(firsts, np.int64), base.values.reshape(len(firsts), n), BITS)
    return None if sums is None else gain_of(n, *sums)


def moved(row: native.NativeRow, runs: Sequence[tuple[int, int]], base: Start) -> tuple[Singles, bool] | Fallback:
    """τ of runs of a tensor, one behind the other, in this thread's memory, and whether any bit differs.

    Args:
        row: the task's tensor.
        runs: the first element of each and the one behind its last.
        base: θ0 of the same elements.
    """
    tau, seen = scratch("tau", len(base.values), np.float32), native.Seen()
    if not native.subtract(tau, seen, row, np.array(runs, np.int64), base.values):
        return Fallback.CUT_OFF
    return (tau, seen.differs) if seen.largest <= reach(base.kind) else Fallback.OUT_OF_REACH


def marked(
    row: native.NativeRow, start: int, base: Start, rule: Rule, recipe: Recipe, mask: MaskCodec, task: int
) -> tuple[Made, bool] | Fallback:
    """What becomes of a chunk of a row, and whether it is not the base's in every bit.

    Args:
        row: the task's tensor.
        start: where in the tensor the chunk begins.
        base: θ0 of the chunk's elements.
        rule: the recipe's for this task alone: signs above a threshold, over v = 1.
        recipe: its statistics are finished.
        mask: codec of the masks.
        task: index into the zoo's task list.
    """
    low, width = (float(np.float32(each[0])) for each in (rule.limits, rule.widths))
    if row.form != FLOAT32:
        elements = _moved_elements(row, start, base)
        if isinstance(elements, Fallback):
            return elements
        moved, differs = elements
        made = marks_of(moved, Quantizer((low,), width), rule.seeds[0], recipe, mask, task)
        return Fallback.SCALE if made is None else (made, differs)
    n, seen, totals = len(base.values), native.Seen(), np.zeros(N_SUMS)
    packed = scratch("marks", reference.packed_size(recipe.kind, n), np.uint8)
    first = first_of(start, rule.seeds[0])
    if not native.mark(packed, totals, seen, row, start, base.values, low, width, first):
        return Fallback.CUT_OFF
    _, norm, kept, dot, on = totals.tolist()
    # A number beyond reach is 2^77 at the least from any within, the square of which float32 has no more.
    if not math.isfinite(norm):
        return Fallback.OUT_OF_REACH
    sums: tuple[float, ...] = (norm - 2 * dot + kept, norm, kept, dot, on)
    scale = float(np.float32(recipe.scale(task, sums)))
    codec, data = code_marks(mask, packed, recipe.kind, n, width, first)
    return Made(recipe.kind, data, scale, scaled(sums, scale), codec), seen.differs


def _moved_elements(row: native.NativeRow, start: int, base: Start) -> tuple[Moved, bool] | Fallback:
    """What of a narrow row's chunk moved, and whether any bit differs."""
    seen = native.Seen()
    arrays = native_levels.moved(seen, row, start, base.values)
    if arrays is None:
        return Fallback.CUT_OFF
    if not seen.largest <= reach(base.kind):
        return Fallback.OUT_OF_REACH
    return Moved(*arrays, len(base.values), start, row.form), seen.differs


def leveled(
    row: native.NativeRow, start: int, base: Start, levels: Quantizer, seed: int
) -> tuple[Made, bool] | Fallback:
    """The same of a row that gets levels of its own.

    Args:
        row: the task's tensor.
        start: where in the tensor the chunk begins.
        base: θ0 of the chunk's elements.
        levels: where they begin.
        seed: of the dither.
    """
    if row.form != FLOAT32:
        elements = _moved_elements(row, start, base)
        if isinstance(elements, Fallback):
            return elements
        chunk, differs = elements
        coded = encode_moved(chunk, levels, seed)
        if not np.isfinite(coded.table).all():
            return Fallback.SCALE
    else:
        row_moved = moved(row, [(start, start + len(base.values))], base)
        if isinstance(row_moved, Fallback):
            return row_moved
        tau, differs = row_moved
        coded = encode(tau, levels, start, seed, scratch("indices", len(tau), np.uint8))
    return Made("delta", coded.data, 1.0, coded.sums, coded.codec), differs
