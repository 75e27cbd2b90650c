"""Letters for terminals and files that have few: what an encoding lacks is said in ASCII, one sign for one sign.

Python would stop with a traceback; a table would lose its columns. Only what is shown is changed, never a file.
"""

from __future__ import annotations

import codecs
import io
import sys

__all__ = ["is_unicode", "prepare"]

_HANDLER = "tallstore.plain"
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("–—−─╌━╭╮╰╯┌┐└┘├┤┬┴┼", "-"),
        **dict.fromkeys("│┃‖", "|"),
        **dict.fromkeys("█▉▊▋▌▓", "#"),
        **dict.fromkeys("▍▎▏░", " "),
        **dict.fromkeys("…·•", "."),
        "×": "x",
        "→": ">",
        "τ": "t",
        "δ": "d",
        "α": "a",
        "λ": "l",
        "θ": "o",
        "∩": "&",
        "∪": "|",
        "≤": "<",
        "≥": ">",
        "✓": "+",
        "✗": "x",
        "\N{COMBINING CIRCUMFLEX ACCENT}": "",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    }
)


def prepare() -> None:
    """Make stdout and stderr take any text."""
    codecs.register_error(_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def is_unicode(stream: object) -> bool:
    """Whether a stream takes every letter there is."""
    return str(getattr(stream, "encoding", None) or "").lower().startswith("utf")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = error.object[error.start : error.end].replace("τ̂", "T").translate(_SIGNS)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end
