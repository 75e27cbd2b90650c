"""What is plain to see of an item's rows before anything is coded: which moved, and which arithmetic can carry."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from tallstore.encoder.chunk import TaskRow
from tallstore.encoder.fused_rows import (
    reach,
)
from tallstore.encoder.items import Outcome, Read
from tallstore.encoder.plan import User
from tallstore.encoder.reasons import Reason, Why
from tallstore.encoder.row_bits import same_and_largest


def looks_of(chunk: Read) -> list[Outcome | None]:
    """What is plain to see of each row, before anything is coded."""
    return [None if row is None else look_at(row, chunk.base[: len(row)], chunk.largest) for row in chunk.rows]


def usable_rows(users: Sequence[User], chunk: Read, looks: Sequence[Outcome | None]) -> list[TaskRow]:
    """The rows that arithmetic can carry."""
    together = zip(users, chunk.rows, looks, strict=True)
    return [
        TaskRow(user.task, row) for user, row, look in together if row is not None and look is not None and look.usable
    ]


def look_at(weights: Tensor, base: Tensor, base_largest: float) -> Outcome:
    """Whether a row moved, and whether it or its base holds what arithmetic cannot carry."""
    same, own_largest = same_and_largest(weights, base.to(weights.dtype))
    for whose, largest in ((Reason.BASE_NUMBERS, base_largest), (Reason.NUMBERS, own_largest)):
        if largest <= reach(weights.dtype):
            continue
        why = Why(whose, f"{largest:.3g}" if math.isfinite(largest) else "")
        # A NaN has no one image in another type, so only in the same type is such a row the base's.
        return Outcome(if_moved=why) if same and weights.dtype == base.dtype else Outcome(moved=True, why_whole=why)
    return Outcome(moved=not same)
