"""Chunks of codecs `dither` and `dither-levels` that every reader must refuse."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .build import mask, vector, whole
from .invalid import BASE, CASES, MASK, VECTOR, Case, sound, zipped
from .numbers import floats
from .valid import sparse
from .valid_dare import drawn
from .valid_dither import FORMS, frame, packed, steps

N = 900
HALF, ALL = (20, 8, 6, 17), FORMS["all classes"]
DRAWN = np.array(drawn(17, N))
LIVE = np.arange(-(-N // 64)) % 4 > 0
CODED = (DRAWN >> 20 < 8) & np.repeat(LIVE, 64)[:N]
NUMBERS = np.where(DRAWN % 7 == 0, np.where(DRAWN % 2, 1, -1), 0).astype(np.int64)
SOUND = packed(NUMBERS, HALF, LIVE)
WHOLE = packed(NUMBERS, ALL)
HEAD = dict(
    zip(
        ("shift", "classes", "block", "zero", "first", "flags", "coded"),
        struct.unpack_from("<BBBBIII", SOUND),
        strict=True,
    )
)
FLAGS = SOUND[16:][: HEAD["flags"]]
INNER, OTHERS = SOUND[16 + HEAD["flags"] :][: HEAD["coded"]], SOUND[16 + HEAD["flags"] + HEAD["coded"] :]
BEFORE = (128 * ((DRAWN[CODED] >> 20) + 1)).astype(np.uint16)


def numbers(
    flags: bytes = FLAGS, inner: bytes = INNER, others: bytes = OTHERS, head: Mapping[str, int] | None = None
) -> bytes:
    """The sound ones with some of them in the place of others, and with members of the head changed."""
    fields = HEAD | {"flags": len(flags), "coded": len(inner)} | dict(head or {})
    return struct.pack("<BBBBIII", *fields.values()) + flags + inner + others


def head(**changed: int) -> bytes:
    """With members of the head changed."""
    return numbers(head=changed)


def coded(*few: tuple[int, int]) -> bytes:
    """A chunk of `lattice` in mode 2: of some coded elements the bits that they become are others."""
    after = BEFORE.copy()
    for at, word in few:
        after[at] = word
    return steps(BEFORE, after, 2)


def gap(place: int, signs: bytes = b"\0") -> bytes:
    """A chunk of `adaptive` of one mark."""
    return sparse(1, b"\xff" * (place // 255) + bytes([place % 255]), signs)


FIRST = int(np.flatnonzero(CODED)[0])
OTHER = int(np.flatnonzero(~CODED)[0])
CLAIM = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 60) + b"\1\0\0"
SPOILED: tuple[tuple[str, bytes, str, str], ...] = (
    ("head-cut-off", SOUND[:15], "cut off", "a head cut off"),
    ("head-only", SOUND[:16], "cut off", "a head alone"),
    ("head-fourth", head(zero=1), "reserved", "a fourth byte that is not 0"),
    ("classes-0", head(classes=0), "out of range", "no classes"),
    ("classes-17", head(shift=12, classes=17), "out of range", "17 classes"),
    ("shift-25", head(shift=25, classes=1), "out of range", "a class of 2^25 places"),
    ("shift-255", head(shift=255, classes=1), "out of range", "a class of 2^255 places"),
    ("places-many", head(shift=21, classes=9), "out of range", "more places than there are"),
    ("block-5", head(block=5), "blocks", "blocks of 32 elements"),
    ("block-25", head(block=25), "blocks", "blocks of 2^25 elements"),
    ("block-255", head(block=255), "blocks", "blocks of 2^255 elements"),
    ("flags-of-none", head(block=0), "flags", "flags, and no blocks"),
    ("flags-missing", numbers(flags=b""), "zstd", "no flags of blocks"),
    ("flags-more", numbers(flags=frame(b"\xff\xff\0")), "declares", "a byte behind the flags"),
    (
        "flags-padding",
        numbers(flags=frame(np.packbits(np.append(LIVE, True), bitorder="little").tobytes())),
        "behind",
        "a bit behind the last block",
    ),
    ("flags-short", numbers(flags=frame(b"\xff")), "declares", "flags of fewer blocks"),
    ("flags-of-2-to-60", numbers(flags=CLAIM), "declares", "flags that are said to be 2^60 bytes"),
    ("flags-long", head(flags=0xFFFFFFFF), "out of range", "flags of 4 GiB"),
    ("coded-long", head(coded=0xFFFFFFFF), "out of range", "a chunk of lattice of 4 GiB"),
    ("coded-past-end", head(coded=HEAD["coded"] + len(OTHERS) + 1), "out of range", "a chunk of lattice past the end"),
    ("coded-empty", numbers(inner=b""), "mode None", "no chunk of lattice"),
    ("coded-mode", numbers(inner=b"\4" + INNER[1:]), "mode 4", "mode 4 of drift within"),
    ("coded-trailing", numbers(inner=b"\0\0"), "mode 0", "a byte behind the chunk of lattice"),
    ("coded-short", numbers(inner=b"\2" + steps(BEFORE[1:], BEFORE[1:], 2)[1:]), "zstd", "an element is missing"),
    ("others-missing", numbers(others=b""), "cut off", "no chunk of adaptive"),
    ("others-trailing", numbers(others=gap(OTHER) + b"\0"), "fit", "a byte behind the chunk of adaptive"),
    ("others-past-end", numbers(others=gap(N)), "fit", "a mark behind the last element"),
    (
        "others-symbol-3",
        numbers(others=b"\0" + frame(b"\3" + bytes(224))),
        "symbol",
        "symbol 3 in the chunk of adaptive",
    ),
    ("all-trailing", WHOLE + b"\0", "follows", "a byte behind numbers all of which are coded"),
    ("all-with-others", WHOLE + gap(OTHER), "follows", "a chunk of adaptive where all are coded"),
    ("all-cut-off", WHOLE[:-1], "out of range", "the last byte cut off"),
    ("twice", numbers(inner=coded((0, BEFORE[0] + 1)), others=gap(FIRST)), "twice", "a number at a place with a mark"),
    ("twice-0", numbers(inner=b"\0", others=gap(FIRST)), "twice", "a mark at a place that is coded as 0"),
)
"""Numbers of either codec."""
LARGE: tuple[tuple[str, int, int], ...] = (
    ("by-one", 1, 1),
    ("by-one-below", -1, -1),
    ("128", 128, 128),
    ("minus-128", -128, -128),
    ("256", 256, 256),
    ("highest", 0xFFFF, 0),
    ("negative", 0x8080, 0),
)
"""Numbers that are too large: the bits that an element becomes, or what they are above the most that is allowed."""


def _large(name: str, by: int, at: int, most: int) -> bytes:
    word = by if not at else int(BEFORE[0]) + at + (0 if abs(at) > 1 else at * most)
    return numbers(inner=coded((0, word % 65536)))


def make() -> None:
    """Register them."""
    archive = sound()
    base = floats("BF16", np.zeros(N))
    archive.base["w"] = base
    archive.parts()[BASE].items["w"] = whole(base, "planes+zstd")
    archive.parts()[VECTOR].items["w"] = vector(np.ones(N, np.float32), (N,), "ones")
    spoiled: list[tuple[str, str, bytes, str, str]] = [
        ("marks-empty", "signed", b"", "mode None", "a mask of no bytes"),
        ("marks-mode", "signed", b"\2" + SOUND, "mode 2", "an unknown mode"),
        ("marks-binary", "binary", b"\1" + SOUND, "binary", "mode 1 of a binary mask"),
        ("marks-of-no-dither", "signed", b"\0", "cut off", "mode 0 without a chunk of adaptive"),
        ("marks-of-no-dither-form", "binary", b"\0\2" + bytes(20), "neither", "mode 0 of an unknown form"),
    ]
    one, two = struct.pack("<Bf", 1, 0.5), struct.pack("<Bff", 2, 0.5, 0.25)
    spoiled += [
        ("levels-empty", "delta", b"", "cut off", "levels of no bytes"),
        ("levels-128", "delta", b"\x80" + struct.pack("<f", 0.5) * 128 + SOUND, "too many", "128 levels"),
        ("levels-255", "delta", b"\xff" + struct.pack("<f", 0.5) * 255 + SOUND, "too many", "255 levels"),
        ("levels-cut-off", "delta", two[:8], "cut off", "levels cut off"),
        ("levels-alone", "delta", two, "cut off", "no numbers behind the levels"),
        ("levels-nan", "delta", two[:5] + b"\0\0\xc0\x7f" + SOUND, "finite", "a level that is NaN"),
        ("levels-infinite", "delta", two[:5] + b"\0\0\x80\xff" + SOUND, "finite", "a level that is −∞"),
        ("levels-none", "delta", b"\0" + numbers(inner=b"\0", others=gap(OTHER)), "level", "a mark, and no level"),
    ]
    empty = struct.pack("<B3xIII", 1, 0, 0, len(frame(b""))) + frame(b"")
    nothing = numbers(inner=coded((0, BEFORE[0] + 1)), others=empty)
    spoiled.append(("levels-none-of-coded", "delta", b"\0" + nothing, "larger than 0", "a coded number, and no level"))
    for name, data, mentions, about in SPOILED:
        spoiled += [
            (f"marks-{name}", "signed", b"\1" + data, mentions, about),
            (f"levels-{name}", "delta", one + data, mentions, about),
        ]
    for name, by, at in LARGE:
        for kind, most, before in (("signed", 1, b"\1"), ("delta", 2, two)):
            about = f"a number that is too large: {name}"
            data = before + _large(name, by, at, most)
            spoiled.append((f"{'marks' if most == 1 else 'levels'}-large-{name}", kind, data, "larger than", about))
    tensors: dict[str, tuple[str, str, str]] = {}
    for name, kind, data, mentions, about in spoiled:
        facts: dict[str, Any] = {
            "kind": kind,
            "dtype": "BF16",
            "shape": [N],
            "base": "w",
            "codec": "dither",
            "chunk": 1024,
        }
        facts["codec"] = "dither-levels" if kind == "delta" else "dither"
        archive.parts()[MASK].items[name] = facts, [data]
        tensors[name] = about, "FormatError", mentions
    for name, kind, codec in (
        ("mask-of-levels", "signed", "dither-levels"),
        ("delta-of-marks", "delta", "dither"),
    ):
        facts = {"kind": kind, "dtype": "BF16", "shape": [N], "base": "w", "codec": codec, "chunk": 1024}
        archive.parts()[MASK].items[name] = facts, [b"\1" + SOUND]
        tensors[name] = "a codec of another family", "CodecError", codec
    archive.parts()[MASK].items["w"] = mask(np.ones(N, np.uint8), "signed", "BF16", (N,), "w")
    archive.version = archive.parts()[MASK].version = "1.4"
    about = "chunks of codecs dither and dither-levels that say what they must not"
    CASES["codes-of-dither"] = Case(about, "FormatError", "decode", file=zipped(archive.build()), tensors=tensors)
