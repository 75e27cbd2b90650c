"""Numbers and names as people read them: on the command line, in reports, on model cards."""

from __future__ import annotations

import unicodedata

__all__ = ["harmless", "number", "share", "size"]

_LARGE = 1e6
"""From here on a number is shown with its exponent."""


def size(count: float) -> str:
    """Bytes: powers of 1024, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def number(value: float | None, digits: int = 3) -> str:
    """A measured number, or a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if abs(value) < _LARGE else f"{value:.3g}"


def share(value: float | None) -> str:
    """A share as per cent, or a dash."""
    return "–" if value is None else f"{number(100 * value, 1)} %"


def harmless(text: str) -> str:
    """A name from anywhere, without control characters, halves of pairs, and marks that turn a line around."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c)[0] == "C" else c for c in text)
