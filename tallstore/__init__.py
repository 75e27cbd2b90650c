"""tallstore: pack a zoo of fine-tuned models into one archive, and get any task's weights back on demand."""

from __future__ import annotations

from tallstore import errors
from tallstore._version import __version__
from tallstore.archive import Zoo
from tallstore.archive import open_zoo as open  # noqa: A004 - `tallstore.open` is the name users expect
from tallstore.encoder import Options, PackReport, TaskReport, pack
from tallstore.errors import TallstoreError

__all__ = ["Options", "PackReport", "TallstoreError", "TaskReport", "Zoo", "__version__", "errors", "open", "pack"]
