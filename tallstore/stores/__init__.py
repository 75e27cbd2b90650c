"""Where archives lie: folder or `.tall` file. Stores move byte ranges and never interpret them."""

from __future__ import annotations

from tallstore.stores.base import Sink, Store
from tallstore.stores.local import check_target, open_sink, open_store

__all__ = ["Sink", "Store", "check_target", "open_sink", "open_store"]
