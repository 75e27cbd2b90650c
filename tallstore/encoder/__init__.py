"""The write path: checkpoints → recipe → codecs → format → store. Meets the read path only in `format`."""

from __future__ import annotations

from tallstore.encoder.options import Options
from tallstore.encoder.pack import pack
from tallstore.encoder.report import PackReport, Progress, TaskReport

__all__ = ["Options", "PackReport", "Progress", "TaskReport", "pack"]
