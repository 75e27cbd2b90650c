"""Packing with promises: λ chosen on an evaluator, errors and scores kept within bounds. On top of encoder and archive.

An archive is tried, opened and judged by the same decode path that its users will take; what is judged is what is
stored.
"""

from __future__ import annotations

from tallstore.packing.pack_zoo import pack

__all__ = ["pack"]
