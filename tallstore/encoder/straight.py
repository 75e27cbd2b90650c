"""Rows straight from their files: each is read, looked at and measured or marked in one compiled call.

What most packing is: float32 against float32, or bfloat16 or float16 against the same, each row by itself, signs above
a threshold over v = 1. What is found is bit for bit what `work` finds of rows that it reads; whatever is out of the
ordinary, an error too, is left to it.

Of a narrow row the sums are of what a reader gets, in which its type's rounding has a part (see `kept`): marks and
their scale are found in float32, and what is kept is measured over the row once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.checkpoints import Checkpoint
from tallstore.codecs.base import MaskCodec
from tallstore.encoder.chunk import TILE, Made
from tallstore.encoder.leveled import encode
from tallstore.encoder.quality import N_SUMS, scaled
from tallstore.kernels import cpu, fast
from tallstore.kernels.forms import BFLOAT16, FLOAT16, FLOAT32
from tallstore.kernels.scratch import scratch
from tallstore.recipes.allocation import SHIFT, Levels, Magnitudes, tallies
from tallstore.recipes.base import Recipe
from tallstore.recipes.dither import unmixed
from tallstore.tensors import TORCH, as_bytes

__all__ = ["Start", "counted", "leveled", "marked", "moved", "reach", "start_of"]

Singles = npt.NDArray[np.float32]
_FAR, _NEAR = 2.0**100, {torch.float16: 2.0**15}
_FORMS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
"""Types of rows that go straight."""


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
    """Where rows begin that go straight, in this thread's memory or the base's own; None where none does.

    Args:
        base: θ0, flat.
        largest: its largest magnitude; not finite if there is a NaN.
    """
    compiled, form = fast.kernels(), _FORMS.get(base.dtype)
    if compiled is None or form is None or not largest <= reach(base.dtype):
        return None
    if form == FLOAT32:
        return Start(base.numpy(), base.dtype)
    values = scratch("start", len(base), np.float32)
    compiled.widen(values, as_bytes(base).view(np.uint16), base.dtype == torch.bfloat16)
    return Start(values, base.dtype)


def counted(
    checkpoint: Checkpoint, name: str, cut: Sequence[npt.NDArray[np.int64]], base: Start
) -> list[Magnitudes] | None:
    """|τ| of each tile of a tensor; None where this is not the way.

    Args:
        checkpoint: of the task.
        name: of its tensor.
        cut: of each tile its runs: the first element of each and the one behind its last, shape (R, 2).
        base: θ0 of all of these elements, one behind the other.
    """
    read, compiled, place = fast.pack_kernels(), fast.encode_kernels(), checkpoint.place(name)
    if read is None or compiled is None or place is None or TORCH[checkpoint.tensors[name].dtype] != base.kind:
        return None
    seen, found, done, form = np.zeros(2, np.uint32), [], 0, _FORMS[base.kind]
    for runs in cut:
        end = len(base.values) if runs is cut[-1] else done + int((runs[:, 1] - runs[:, 0]).sum())
        before = base.values[done:end]
        tables, sums = tallies(len(before))
        if read.tally(tables, sums, seen, *place, runs, before, SHIFT, form) != len(before):
            return None
        found.append(Magnitudes(*compiled.tallied(tables, sums)))
        done += len(before)
    return found if _largest(seen) <= reach(base.kind) else None


def moved(
    checkpoint: Checkpoint, name: str, runs: Sequence[tuple[int, int]], base: Start
) -> tuple[Singles, bool] | None:
    """τ of runs of a tensor, one behind the other, in this thread's memory, and whether any bit differs.

    None where this is not the way.

    Args:
        checkpoint: of the task.
        name: of its tensor.
        runs: the first element of each and the one behind its last.
        base: θ0 of the same elements.
    """
    compiled, place = fast.pack_kernels(), checkpoint.place(name)
    if compiled is None or place is None or TORCH[checkpoint.tensors[name].dtype] != base.kind:
        return None
    n = len(base.values)
    tau, seen = scratch("tau", n, np.float32), np.zeros(2, np.uint32)
    done = compiled.moved(tau, seen, *place, np.array(runs, np.int64), base.values, _FORMS[base.kind])
    return (tau, bool(seen[0])) if done == n and _largest(seen) <= reach(base.kind) else None


def marked(
    checkpoint: Checkpoint,
    name: str,
    start: int,
    base: Start,
    recipe: Recipe,
    mask: MaskCodec,
    task: int,
    tensor: str,
) -> tuple[Made, bool] | None:
    """What becomes of a chunk of a row, and whether it is not the base's in every bit; None where this is not the way.

    Args:
        checkpoint: of the task.
        name: of its tensor.
        start: where in the tensor the chunk begins.
        base: θ0 of the chunk's elements.
        recipe: its statistics are finished.
        mask: codec of the masks.
        task: index into the zoo's task list.
        tensor: the base's name of the tensor.
    """
    compiled, place = fast.pack_kernels(), checkpoint.place(name)
    if compiled is None or place is None or TORCH[checkpoint.tensors[name].dtype] != base.kind:
        return None
    rule = recipe.rule([task], tensor)
    if rule is None or (rule.vector, rule.mask) != ("ones", "above") or recipe.levels(task, tensor) is not None:
        return None
    n, (handle, first), form = len(base.values), place, _FORMS[base.kind]
    at, words = first + base.kind.itemsize * start, scratch("words", 0 if form == FLOAT32 else n, np.uint16)
    packed, differs = scratch("marks", cpu.packed_size(recipe.kind, n), np.uint8), np.zeros(1, np.bool_)
    seen = np.zeros(2, np.uint32)
    found, low, width = np.zeros(N_SUMS), np.float32(rule.limits[0]), np.float32(rule.widths[0])
    begin = unmixed(start, rule.seeds[0])
    done = compiled.marks_above(
        packed, found, differs, seen, words, handle, at, base.values, low, width, begin, TILE, form
    )
    _, norm, kept, dot, on = found.tolist()
    # A float32 or bfloat16 beyond reach is 2^77 at the least from any within, the square of which float32 has no more.
    if done != n or not math.isfinite(norm) or not _largest(seen) <= reach(base.kind):
        return None
    sums: tuple[float, ...] = (norm - 2 * dot + kept, norm, kept, dot, on)
    scale = float(np.float32(recipe.scale(task, sums)))
    if form == FLOAT32:
        sums = scaled(sums, scale)
    elif not 0 <= scale < math.inf:
        return None
    else:
        compiled.rounded_marks(found, words, base.values, packed, np.float32(scale), form)
        sums = tuple(found.tolist())
    return Made(recipe.kind, mask.encode_packed(packed, recipe.kind, n), scale, sums), bool(differs[0])


def leveled(
    checkpoint: Checkpoint, name: str, start: int, base: Start, levels: Levels, seed: int
) -> tuple[Made, bool] | None:
    """The same of a row that gets levels of its own.

    Args:
        checkpoint: of the task.
        name: of its tensor.
        start: where in the tensor the chunk begins.
        base: θ0 of the chunk's elements.
        levels: where they begin.
        seed: of the dither.
    """
    compiled, found = fast.pack_kernels(), moved(checkpoint, name, [(start, start + len(base.values))], base)
    if compiled is None or found is None:
        return None
    tau, differs = found
    coded = encode(tau, levels, start, seed, scratch("indices", len(tau), np.uint8))
    sums = np.array(coded.sums)
    if base.kind != torch.float32:
        if not np.isfinite(coded.table).all():
            return None
        compiled.rounded_levels(sums, tau, base.values, coded.indices, coded.table, _FORMS[base.kind])
    return Made("delta", coded.data, 1.0, tuple(sums.tolist()), coded.codec), differs


def _largest(seen: npt.NDArray[np.uint32]) -> float:
    """The largest magnitude that was seen; not finite if there was a NaN."""
    return float(seen[1:].view(np.float32)[0])
