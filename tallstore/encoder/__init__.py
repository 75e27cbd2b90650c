"""The write path: checkpoints → recipe → codecs → format → store. Meets the read path only in `format`."""

from __future__ import annotations

from tallstore.encoder.driver import GroupSlot
from tallstore.encoder.options import Evaluator, Options
from tallstore.encoder.pack import PackedArchive, encode
from tallstore.encoder.report import PackReport, Progress, TaskReport

__all__ = ["Evaluator", "GroupSlot", "Options", "PackReport", "PackedArchive", "Progress", "TaskReport", "encode"]
