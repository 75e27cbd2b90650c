"""The `.tall` file as a zip: its directory and where the data of an entry begins. Read alike here and far away."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from typing import IO

from tallstore.errors import DamagedError, FormatError, NotAnArchiveError
from tallstore.format import limits
from tallstore.format.names import check_paths

SUFFIX = ".tall"
LOCAL = struct.Struct("<4s5H3I2H")
"""The header before an entry's data."""
NO_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error)
"""What zipfile raises for bytes that are no zip."""
_MAGIC = b"PK\x03\x04"


def read_directory(file: IO[bytes], where: str) -> list[zipfile.ZipInfo]:
    """The entries that the zip's directory, at its end, lists; their names checked."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except NO_ZIP as error:
        raise NotAnArchiveError(f"{where}: not a .tall file, or cut off ({error}); fetch or pack it again") from error
    if len(infos) > limits.PARTS:
        raise FormatError(f"{where}: {len(infos)} files are over the cap of {limits.PARTS}")
    try:
        check_paths(info.filename for info in infos)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    return infos


def check_entry(info: zipfile.ZipInfo, where: str) -> None:
    """Raise FormatError for an entry that is not simply stored."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & ~0x800:
        raise FormatError(f"{where}: compressed or encrypted; entries of a .tall file are stored")


def find_data(info: zipfile.ZipInfo, read: Callable[[int, int], memoryview], total: int, where: str) -> int:
    """Where an entry's data begins, by its own header, which must agree with the directory.

    Args:
        info: what the directory says.
        read: gives bytes of the file, from where and how many; fewer where it ends.
        total: bytes of the file.
        where: how messages name the entry.
    """
    head = bytes(read(info.header_offset, LOCAL.size))
    if len(head) != LOCAL.size or head[:4] != _MAGIC:
        raise FormatError(f"{where}: the zip's directory points at no file")
    name_length, extra_length = (int(length) for length in LOCAL.unpack(head)[-2:])
    start = info.header_offset + LOCAL.size + name_length + extra_length
    if bytes(read(info.header_offset + LOCAL.size, name_length)) != info.orig_filename.encode():
        raise FormatError(f"{where}: the zip's directory and the file's own header disagree on the name")
    if start + info.file_size > total:
        raise DamagedError(f"{where}: is cut off; fetch or pack it again")
    if start % limits.ALIGNMENT:
        raise FormatError(f"{where}: its data is not aligned to {limits.ALIGNMENT} bytes")
    return start
