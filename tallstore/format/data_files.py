"""Files of a model that are neither text nor weights, and harm nobody: what their bytes must not be.

Their names end as those of pickles may (`5gram.bin`, `vocab.pkl`), and whoever opens them may take them for pickles. So
their bytes are looked at, when they are packed and again before they are written: a file that calls something when it
is unpickled, or that is a container which a loader would unpickle from, is not one of them.
"""

from __future__ import annotations

import io
import pickletools
import tarfile

from tallstore.errors import FormatError

__all__ = ["ENDINGS", "check_data_file", "is_data_name", "is_harmless"]

ENDINGS = (".bin", ".pkl", ".pickle")
"""How the names of such files may end, in any letter case."""
_CONTAINERS = (b"PK\x03\x04", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n", b"\x1f\x8b")
"""How zip, HDF5 and gzip files begin."""
_CALLS = frozenset(
    {
        "GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD",
        "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID",
    }
)  # fmt: skip
"""What a pickle does that is more than making lists, numbers and text."""


def is_data_name(name: str) -> bool:
    """Whether a file's name ends as such files' names do."""
    return name.lower().endswith(ENDINGS)


def is_harmless(data: bytes) -> bool:
    """Whether bytes are no container, and call nothing however they are unpickled."""
    if data.startswith(_CONTAINERS) or _is_tar(data):
        return False
    # An unpickler does all that stands before the first byte that is no instruction: so much is looked at.
    try:
        for code, _, _ in pickletools.genops(data):
            if code.name in _CALLS:
                return False
    except (ValueError, OverflowError, MemoryError):
        return True
    return True


def check_data_file(name: str, data: bytes, where: str) -> bytes:
    """Return a file's bytes, or raise FormatError if it may not lie in a model's folder under its name."""
    if is_data_name(name) and not is_harmless(data):
        raise FormatError(f"{where}: file {name!r} runs code if it is unpickled: it is not written")
    return data


def _is_tar(data: bytes) -> bool:
    try:
        tarfile.open(fileobj=io.BytesIO(data[: 1 << 10]), mode="r:").close()
    except (tarfile.TarError, EOFError, ValueError, OSError):
        return False
    return True
