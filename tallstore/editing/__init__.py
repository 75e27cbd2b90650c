"""Archives that change: tasks that are added, removed, packed anew, and what pays to be rewritten. On top of encoder
and archive."""

from __future__ import annotations

from tallstore.editing.adding import add
from tallstore.editing.compacting import compact
from tallstore.editing.merging import add_merge
from tallstore.editing.removing import remove
from tallstore.editing.report import CompactReport, GrowReport
from tallstore.editing.run_folders import add_run

__all__ = ["CompactReport", "GrowReport", "add", "add_merge", "add_run", "compact", "remove"]
