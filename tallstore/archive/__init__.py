"""The read path: manifest → one task's ranges → codecs → kernel → tensors. Meets the write path only in `format`."""

from __future__ import annotations

from tallstore.archive.zoo import Zoo, open_zoo

__all__ = ["Zoo", "open_zoo"]
