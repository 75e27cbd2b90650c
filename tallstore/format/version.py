"""The version of the format, and which versions this reader takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tallstore.errors import FormatError, VersionError
from tallstore.format.dtypes import SINCE

VERSION = "1.0"
"""`major.minor` of what needs nothing newer. A reader takes every minor version of its major version."""

NEWER_WORDS: Mapping[str, str] = {"lossless": "1.1"} | SINCE
"""Kinds of entry and element types that a later version added, and which one."""

_PATTERN = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})", re.ASCII)


def lowest_version(words: Iterable[str | None]) -> str:
    """The lowest version that has all kinds of entry and element types that a part, or a manifest, holds."""
    return max((NEWER_WORDS.get(word or "", VERSION) for word in words), default=VERSION, key=_numbers)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def check_version(version: object, where: str) -> str:
    """Return `version`, or raise VersionError if its major version is not this reader's."""
    if not isinstance(version, str) or not (match := _PATTERN.fullmatch(version)):
        raise FormatError(f"{where}: {version!r} is not a version")
    major = VERSION.split(".", maxsplit=1)[0]
    if match[1] != major:
        raise VersionError(
            f"{where}: format version {version}, and this tallstore reads {major}.x: "
            f"{'upgrade it with pip install -U tallstore' if int(match[1]) > int(major) else 'pack the zoo again'}"
        )
    return version
