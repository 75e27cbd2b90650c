"""What pack reads: checkpoints of every usual kind behind one interface, tensor ranges read on demand."""

from __future__ import annotations

from tallstore.checkpoints.base import Checkpoint, Source, TensorInfo
from tallstore.checkpoints.merged import merged_state
from tallstore.checkpoints.opening import open_checkpoint, opened_checkpoint
from tallstore.checkpoints.referenced import ReferencedBase, referenced
from tallstore.checkpoints.respelled import respelled, same_share
from tallstore.checkpoints.rounded import RoundedBase
from tallstore.checkpoints.weight_sets_as_tasks import with_every_set

__all__ = [
    "Checkpoint",
    "ReferencedBase",
    "RoundedBase",
    "Source",
    "TensorInfo",
    "merged_state",
    "open_checkpoint",
    "opened_checkpoint",
    "referenced",
    "respelled",
    "same_share",
    "with_every_set",
]
