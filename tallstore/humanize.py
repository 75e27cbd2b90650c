"""Numbers and names as people read them: on the command line, in reports, on model cards."""

from __future__ import annotations

import re
import unicodedata

from tallstore.errors import OptionError

__all__ = ["harmless", "number", "parse_size", "share", "size"]

_LARGE = 1e6
"""From here on a number is shown with its exponent."""


def size(count: float) -> str:
    """Bytes: powers of 1024, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE | re.ASCII)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: int | str, what: str) -> int:
    """Bytes that a number, or one like `5GB` or `512MiB`, stands for; else an OptionError about `what`."""
    match = _SIZE.fullmatch(str(text).strip())
    count = float(match[1]) * (1024 if match[3] else 1000) ** _POWER[match[2].upper()] if match else 0
    if not 1 <= count < 2**63:
        raise OptionError(f"{what} {text!r} is not a size; expected a number of bytes, or one like 5GB or 512MiB")
    return int(count)


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
