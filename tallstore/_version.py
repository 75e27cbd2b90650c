"""The package's version, and how archives name their writer."""

from __future__ import annotations

__version__ = "0.1.0"
WRITER = f"tallstore {__version__}"
