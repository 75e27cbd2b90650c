"""The `.tall` file as a zip: its directory and where the data of an entry begins. Read alike here and far away."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import IO

from tallstore.errors import DamagedError, FormatError, NotAnArchiveError
from tallstore.format import limits
from tallstore.format.names import check_paths

SUFFIX = ".tall"
LOCAL = struct.Struct("<4s5H3I2H")
"""The header before an entry's data."""
END = struct.Struct("<4s4H2IH")
"""The last record: disks, files, where the directory is, how long a comment."""
NO_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error)
"""What zipfile raises for bytes that are no zip."""
_MAGIC, _END = b"PK\x03\x04", b"PK\x05\x06"
_UNIX = 3
_ELSEWHERE, _SMALL = 0xFFFFFFFF, 0xFFFF
"""In the place of a number of 32 or 16 bits: a ZIP64 field or record has it."""


@dataclass(frozen=True, kw_only=True)
class ZipEntry:
    """What the zip's directory says of a file."""

    filename: str
    header_offset: int
    file_size: int
    flags: int
    crc: int
    first: bool
    """Whether no other file lies before it."""
    end: int
    """Where its data must end: where the next file, or the directory, begins."""

    @property
    def name_bytes(self) -> bytes:
        """Its name, as both headers must have it."""
        return self.filename.encode()


def read_directory(file: IO[bytes], where: str) -> list[ZipEntry]:
    """The entries that the zip's directory, at its end, lists: each checked as far as the directory tells."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos, comment = archive.infolist(), archive.comment
            start: int = archive.start_dir
    except NO_ZIP as error:
        raise NotAnArchiveError(f"{where}: not a .tall file, or cut off ({error}); fetch or pack it again") from error
    if len(infos) > limits.PARTS:
        raise FormatError(f"{where}: {len(infos)} files are over the cap of {limits.PARTS}")
    try:
        # As they are stored: the library ends a name at its first zero byte, and may take another from an extra field.
        check_paths(info.orig_filename for info in infos)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    _check_end(file, len(infos), comment, where)
    begins = {info.header_offset for info in infos}
    first, ends = min(begins, default=0), dict(pairwise(sorted(begins | {start})))
    for info in infos:
        _check_plain(info, f"{where}: {info.orig_filename}")
        if not 0 <= info.header_offset < start:
            raise FormatError(f"{where}: {info.orig_filename}: the zip's directory points at no file")
    return [
        ZipEntry(
            filename=info.orig_filename,
            header_offset=info.header_offset,
            file_size=info.file_size,
            flags=info.flag_bits,
            crc=info.CRC,
            first=info.header_offset == first,
            end=ends.get(info.header_offset, start),
        )
        for info in infos
    ]


def _check_end(file: IO[bytes], count: int, comment: bytes, where: str) -> None:
    """Raise FormatError unless the directory ends the file, and is the whole of the only disk's."""
    file.seek(-END.size, os.SEEK_END)
    magic, disk, begun_on, here, total, _, _, comment_length = END.unpack(file.read(END.size))
    if comment or magic != _END or comment_length:
        raise FormatError(f"{where}: something lies behind the zip's directory; fetch or pack it again")
    if _SMALL in {disk, begun_on, here, total}:
        return  # the numbers are those of the ZIP64 record, which was read
    if disk or begun_on or {here, total} != {count}:
        raise FormatError(f"{where}: the zip's end speaks of other disks or files; fetch or pack it again")


def _check_plain(info: zipfile.ZipInfo, where: str) -> None:
    """Raise FormatError for an entry that is not simply stored, or is no regular file."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & ~0x800:
        raise FormatError(f"{where}: compressed or encrypted; entries of a .tall file are stored")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.create_system == _UNIX and kind not in {0, stat.S_IFREG}:
        raise FormatError(f"{where}: a link or a device; entries of a .tall file are regular files")


def find_data(info: ZipEntry, read: Callable[[int, int], memoryview], total: int, where: str) -> int:
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
    if info.first and info.header_offset:
        raise FormatError(f"{where}: bytes before it belong to no file")
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = LOCAL.unpack(head)
    start: int = info.header_offset + LOCAL.size + name_length + extra_length
    name = info.name_bytes
    if name_length != len(name) or bytes(read(info.header_offset + LOCAL.size, name_length)) != name:
        raise FormatError(f"{where}: the zip's directory and the file's own header disagree on the name")
    if start + info.file_size > total:
        raise DamagedError(f"{where}: is cut off; fetch or pack it again")
    if start + info.file_size > info.end:
        raise FormatError(f"{where}: overlaps another file of the archive")
    if start + info.file_size < info.end:
        raise FormatError(f"{where}: bytes behind it belong to no file")
    sizes = {info.file_size, _ELSEWHERE}
    if method or flags != info.flags or crc != info.crc or size not in sizes or packed not in sizes:
        raise DamagedError(
            f"{where}: damaged (the zip's directory and the file's own header disagree); fetch or pack it again"
        )
    if start % limits.ALIGNMENT:
        raise FormatError(f"{where}: its data is not aligned to {limits.ALIGNMENT} bytes")
    return start
