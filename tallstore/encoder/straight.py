"""Rows straight from their files: each is read, looked at and measured or marked in one compiled call.

What most packing is: float32 against float32, each row by itself, signs above a threshold over v = 1. What is found is
bit for bit what `work` finds of rows that it reads; whatever is out of the ordinary, an error too, is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tallstore.checkpoints import Checkpoint
from tallstore.codecs.base import MaskCodec
from tallstore.encoder.chunk import TILE, Made
from tallstore.encoder.leveled import CODEC, encode
from tallstore.encoder.quality import N_SUMS, scaled
from tallstore.kernels import cpu, fast
from tallstore.kernels.scratch import scratch
from tallstore.recipes.allocation import SHIFT, Levels, Magnitudes, tallies
from tallstore.recipes.base import Recipe
from tallstore.recipes.dither import unmixed

__all__ = ["FAR", "counted", "leveled", "marked", "moved"]

Singles = npt.NDArray[np.float32]
FAR = 2.0**100
"""Magnitudes of float32 above these are stored as they are: sums and differences of such numbers could overflow."""


def counted(
    checkpoint: Checkpoint, name: str, cut: Sequence[npt.NDArray[np.int64]], base: Singles
) -> list[Magnitudes] | None:
    """|τ| of each tile of a float32 tensor; None where this is not the way.

    Args:
        checkpoint: of the task.
        name: of its tensor.
        cut: of each tile its runs: the first element of each and the one behind its last, shape (R, 2).
        base: θ0 of all of these elements, one behind the other.
    """
    read, compiled, place = fast.pack_kernels(), fast.encode_kernels(), checkpoint.place(name)
    if read is None or compiled is None or place is None or checkpoint.tensors[name].dtype != "F32":
        return None
    seen, found, done = np.zeros(2, np.uint32), [], 0
    for runs in cut:
        before = base[done:] if runs is cut[-1] else base[done : done + int((runs[:, 1] - runs[:, 0]).sum())]
        tables, sums = tallies(len(before))
        if read.tally(tables, sums, seen, *place, runs, before, SHIFT) != len(before):
            return None
        found.append(Magnitudes(*compiled.tallied(tables, sums)))
        done += len(before)
    return found if _largest(seen) <= FAR else None


def moved(
    checkpoint: Checkpoint, name: str, runs: Sequence[tuple[int, int]], base: Singles
) -> tuple[Singles, bool] | None:
    """τ of runs of a float32 tensor, one behind the other, in this thread's memory, and whether any bit differs.

    None where this is not the way.

    Args:
        checkpoint: of the task.
        name: of its tensor.
        runs: the first element of each and the one behind its last.
        base: θ0 of the same elements.
    """
    compiled, place = fast.pack_kernels(), checkpoint.place(name)
    if compiled is None or place is None or checkpoint.tensors[name].dtype != "F32":
        return None
    tau, seen = scratch("tau", len(base), np.float32), np.zeros(2, np.uint32)
    done = compiled.moved(tau, seen, *place, np.array(runs, np.int64), base)
    return (tau, bool(seen[0])) if done == len(base) and _largest(seen) <= FAR else None


def marked(
    checkpoint: Checkpoint,
    name: str,
    start: int,
    base: Singles,
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
    if compiled is None or place is None or checkpoint.tensors[name].dtype != "F32":
        return None
    rule = recipe.rule([task], tensor)
    if rule is None or (rule.vector, rule.mask) != ("ones", "above") or recipe.levels(task, tensor) is not None:
        return None
    n, (handle, first) = len(base), place
    packed, differs = scratch("marks", cpu.packed_size(recipe.kind, n), np.uint8), np.zeros(1, np.bool_)
    found, low, width = np.zeros(N_SUMS), np.float32(rule.limits[0]), np.float32(rule.widths[0])
    begin = unmixed(start, rule.seeds[0])
    done = compiled.marks_above(packed, found, differs, handle, first + 4 * start, base, low, width, begin, TILE)
    _, norm, kept, dot, on = found.tolist()
    # A number above FAR is 2^77 at the least from any up to it, the square of which float32 has no more.
    if done != n or not math.isfinite(norm):
        return None
    sums = (norm - 2 * dot + kept, norm, kept, dot, on)
    scale = float(np.float32(recipe.scale(task, sums)))
    data = mask.encode_packed(packed, recipe.kind, n)
    return Made(recipe.kind, data, scale, scaled(sums, scale)), bool(differs[0])


def leveled(
    checkpoint: Checkpoint, name: str, start: int, base: Singles, levels: Levels, seed: int
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
    found = moved(checkpoint, name, [(start, start + len(base))], base)
    if found is None:
        return None
    tau, differs = found
    coded = encode(tau, levels, start, seed, scratch("indices", len(tau), np.uint8))
    return Made("delta", coded.data, 1.0, coded.sums, CODEC.id), differs


def _largest(seen: npt.NDArray[np.uint32]) -> float:
    """The largest magnitude that was seen; not finite if there was a NaN."""
    return float(seen[1:].view(np.float32)[0])
