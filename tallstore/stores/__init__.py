"""Where archives lie: a folder or `.tall` file here, or far away. Stores move byte ranges and never interpret them."""

from __future__ import annotations

from tallstore.stores.base import Range, Sink, Store
from tallstore.stores.hub_client import Access
from tallstore.stores.local import open_store
from tallstore.stores.opening import check_target, is_address, open_any, open_files, open_sink

__all__ = [
    "Access",
    "Range",
    "Sink",
    "Store",
    "check_target",
    "is_address",
    "open_any",
    "open_files",
    "open_sink",
    "open_store",
]
