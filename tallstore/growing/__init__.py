"""Archives that change: tasks that are added, removed, packed anew, and what pays to be rewritten. On top of encoder
and archive."""

from __future__ import annotations

from tallstore.growing.adding import add
from tallstore.growing.compacting import compact
from tallstore.growing.merging import add_merge
from tallstore.growing.removing import remove
from tallstore.growing.report import CompactReport, GrowReport
from tallstore.growing.runs import add_run

__all__ = ["CompactReport", "GrowReport", "add", "add_merge", "add_run", "compact", "remove"]
