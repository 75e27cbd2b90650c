"""Zip files that every reader must refuse."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

from .build import Archive, ZipEntry, tall
from .invalid import CASES, MASK, Case, bare, zipped


def _zip(
    name: str, about: str, error: str, mentions: str, spoil: Callable[[list[ZipEntry]], Any], at: str = "open"
) -> None:
    entries = [ZipEntry(path, data) for path, data in bare().build().items()]
    spoil(entries)
    CASES[name] = Case(about, error, at, mentions, file=tall(entries))


def _deflate(item: ZipEntry) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    item.data = bytes(1 << 20)
    item.raw = packer.compress(item.data) + packer.flush()
    item.method = 8


def _zips() -> None:
    for name, about, data in (
        ("zip-not-a-zip", "bytes that are no zip", b"tall" * 40),
        ("zip-empty-file", "a file of no bytes", b""),
        ("zip-cut-off", "the zip's directory is missing", zipped(bare().build())[:900]),
    ):
        CASES[name] = Case(about, "NotAnArchiveError", "open", "archive.tall", file=data)
    for name, about, mentions, key, value in (
        ("zip-encrypted", "an encrypted entry", "encrypted", "flags", 1),
        ("zip-data-descriptor", "a data descriptor", "stored", "flags", 8),
        ("zip-sizes-differ", "stored, with two sizes", "stored", "raw", b"x"),
        ("zip-unaligned", "data that is not aligned", "aligned", "aligned", False),
        (
            "zip-names-disagree",
            "another name in the local header",
            "disagree",
            "local_name",
            "tasks/a/MASK.safetensors",
        ),
        ("zip-points-nowhere", "the directory points into data", "no file", "offset", 64),
        ("zip-points-behind", "the directory points behind the file", "no file", "offset", 1 << 30),
        ("zip-overlap", "two entries on the same bytes", "overlaps", "size", 640),
    ):
        _zip(name, about, "FormatError", mentions, lambda e, key=key, value=value: setattr(e[0], key, value))
    for name, about, mentions, added in (
        (
            "zip-name-not-flagged",
            "a name outside ASCII without the flag",
            "disagree",
            ZipEntry("common/ä.txt", b"", flags=0),
        ),
        ("zip-name-twice", "two entries of one name", "twice", ZipEntry(MASK, b"other")),
        ("zip-letter-case", "two names in letter case", "twice", ZipEntry("TALL.json", b"{}")),
        ("zip-folder-entry", "an entry for a folder", "path", ZipEntry("tasks/", b"")),
        ("zip-traversal", "a name that leaves the archive", "path", ZipEntry("../outside.txt", b"")),
        ("zip-absolute", "an absolute name", "path", ZipEntry("/etc/x", b"")),
    ):
        _zip(name, about, "FormatError", mentions, lambda e, added=added: e.insert(0, added))
    _zip("zip-compressed", "a deflated entry: 1 MiB in 1 KiB", "FormatError", "compressed", lambda e: _deflate(e[0]))
    _zip(
        "zip-past-end",
        "an entry larger than the file",
        "DamagedError",
        "cut off",
        lambda e: setattr(e[1], "size", 1 << 20),
    )
    _around()
    _wide()
    stowaway = ZipEntry("common/stowaway.txt", b"boo")
    _zip("zip-extra-file", "a file that the manifest does not list", "FormatError", "does not list",
         lambda e: e.insert(0, stowaway), at="verify")  # fmt: skip


def _entries_of(archive: Archive) -> list[ZipEntry]:
    return [ZipEntry(path, data) for path, data in archive.build().items()]


def _around() -> None:
    """What is no regular file, what lies around the files, and local headers that say other things."""
    for name, about, mentions, key, value in (
        ("zip-link", "an entry that unpacks to a link", "link", "mode", 0o120777),
        ("zip-character-device", "an entry that unpacks to a device", "device", "mode", 0o020666),
        ("zip-pipe", "an entry that unpacks to a pipe", "device", "mode", 0o010644),
        ("zip-gap", "bytes between two entries", "no file", "gap", b"#!/bin/sh\n".ljust(64, b"#")),
    ):
        _zip(name, about, "FormatError", mentions, lambda e, key=key, value=value: setattr(e[0], key, value))
    for name, about, place, value in (
        ("zip-local-method", "deflated, says the local header", 2, 8),
        ("zip-local-flags", "encrypted, says the local header", 1, 1),
        ("zip-local-crc", "another CRC in the local header", 5, 0),
        ("zip-local-size", "another size in the local header", 7, 3),
    ):
        _zip(name, about, "DamagedError", "disagree",
             lambda e, place=place, value=value: setattr(e[0], "local", {place: value}))  # fmt: skip
    for name, about, mentions, how in (
        (
            "zip-before",
            "a program before the first entry",
            "before",
            {"before": b"#!/bin/sh\nexit 1\n".ljust(64, b"#")},
        ),
        ("zip-behind", "bytes behind the zip", "behind", {"behind": b"<script>"}),
        ("zip-comment", "a comment", "behind", {"comment": b"hello"}),
    ):
        CASES[name] = Case(about, "FormatError", "open", mentions, file=tall(_entries_of(bare()), **how))
    _zip("zip-name-zero", "a name that goes on behind a zero byte", "FormatError", "path",
         lambda e: e.insert(0, ZipEntry("common/x\0.txt", b"")))  # fmt: skip
    _zip("zip-name-case-folded", "two names that are one where case does not count, ſ and s", "FormatError", "twice",
         lambda e: [e.insert(0, ZipEntry(f"common/{x}", b"")) for x in "sſ"])  # fmt: skip
    _zip("zip-no-files", "an end, and nothing before it", "NotAnArchiveError", "tall.json", lambda e: e.clear())


def _wide() -> None:
    """ZIP64 fields and records that claim what is not there."""

    def extra(size: int, at: int) -> bytes:
        return struct.pack("<HHQQQ", 1, 24, size, size, at)

    def case(name: str, about: str, error: str, mentions: str, spoil: Callable[[list[ZipEntry]], Any]) -> None:
        def wide(entries: list[ZipEntry]) -> None:
            for entry in entries:
                entry.wide = True
            spoil(entries)

        _zip(name, about, error, mentions, wide)

    case("zip64-size-huge", "a size of 2^63", "DamagedError", "cut off",
         lambda e: setattr(e[0], "extra", extra(1 << 63, 0)))  # fmt: skip
    case("zip64-size-wraps", "a size of 2^64 − 64, which added to its place wraps around", "DamagedError", "cut off",
         lambda e: setattr(e[0], "extra", extra((1 << 64) - 64, 0)))  # fmt: skip
    case("zip64-place-huge", "an entry that begins at 2^63", "FormatError", "no file",
         lambda e: setattr(e[1], "extra", extra(8, 1 << 63)))  # fmt: skip
    case("zip64-extra-short", "a ZIP64 field that ends early", "NotAnArchiveError", "zip64",
         lambda e: setattr(e[0], "extra", struct.pack("<HHQ", 1, 8, 64)))  # fmt: skip
    for name, about, error, mentions, end in (
        ("zip64-directory-huge", "a directory of 2^62 bytes", "NotAnArchiveError", "archive.tall", {"size": 1 << 62}),
        ("zip64-directory-far", "a directory that begins at 2^62", "FormatError", "no file", {"offset": 1 << 62}),
    ):
        file = tall([ZipEntry(path, data, wide=True) for path, data in bare().build().items()], **end)
        CASES[name] = Case(about, error, "open", mentions, file=file)


def make() -> None:
    """Register them all."""
    _zips()
