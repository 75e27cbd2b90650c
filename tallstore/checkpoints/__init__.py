"""What pack reads: checkpoints of every usual kind behind one interface, tensor ranges read on demand."""

from __future__ import annotations

from tallstore.checkpoints.base import Checkpoint, Source, TensorInfo
from tallstore.checkpoints.every import with_every_set
from tallstore.checkpoints.find import open_checkpoint, opened_checkpoint
from tallstore.checkpoints.merged import merged_state
from tallstore.checkpoints.referenced import ReferencedBase, referenced
from tallstore.checkpoints.respelled import respelled, same_share
from tallstore.checkpoints.rounded import RoundedBase

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
