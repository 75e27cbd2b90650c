"""The write path: checkpoints → recipe → codecs → format → store. Meets the read path only in `format`."""

from __future__ import annotations

from tallstore.encoder.options import Evaluator, Options
from tallstore.encoder.pack import PackedArchive, encode
from tallstore.encoder.report import PackReport, Progress, TaskReport
from tallstore.encoder.stream import GroupSlot

__all__ = ["Evaluator", "GroupSlot", "Options", "PackReport", "PackedArchive", "Progress", "TaskReport", "encode"]
