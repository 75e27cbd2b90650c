"""Where archives lie: folder or `.tall` file. Stores move byte ranges and never interpret them."""

from __future__ import annotations

from tallstore.stores.base import Sink, Store
from tallstore.stores.local import open_sink, open_store

__all__ = ["Sink", "Store", "open_sink", "open_store"]
