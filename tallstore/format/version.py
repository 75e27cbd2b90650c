"""The version of the format, which versions this reader takes, and which one an archive needs.

What is written says the lowest version that has all it uses, so that older readers open whatever they can.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tallstore.errors import FormatError, VersionError

VERSION = "1.0"
"""`major.minor` of what uses nothing newer. A reader takes every minor version of its major version."""
NEWEST = "1.4"
"""The newest version that this writer knows all of."""
SINCE: dict[str, str] = {
    "task.weights": "1.1",
    "task.data": "1.1",
    "lossless": "1.1",
    "lattice": "1.1",
    "lanes": "1.1",
    "F4": "1.1",
    "F6_E2M3": "1.1",
    "F6_E3M2": "1.1",
    "F8_E8M0": "1.1",
    "F8_E4M3FNUZ": "1.1",
    "F8_E5M2FNUZ": "1.1",
    "task.adapter": "1.1",
    "task.relatives": "1.2",
    "relative": "1.2",
    "drift": "1.3",
    "sampled": "1.4",
    "dare": "1.4",
    "dither": "1.4",
    "dither-levels": "1.4",
}
"""Members (`object.member`), kinds of part and entry, codecs and element types that came after 1.0 → their version."""

_PATTERN = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})", re.ASCII)


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


def minor(version: str) -> int:
    """The minor number of a version that was checked."""
    return int(version.partition(".")[2])


def newest(versions: Iterable[str]) -> str:
    """The newest of some versions of one major version; `VERSION` where there are none."""
    return max(versions, key=minor, default=VERSION)


def needed(words: Iterable[str]) -> str:
    """The lowest version that has all of these members, kinds, codecs and element types."""
    return newest(SINCE.get(word, VERSION) for word in set(words))
