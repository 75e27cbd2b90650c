"""Chunks of codec `lattice` that every reader must refuse."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from tallstore.codecs import LOSSLESS

from .build import whole
from .invalid import BASE, CASES, MASK, Case, sound, zipped
from .numbers import Tensor, noise_bytes

N = 512
BEFORE = noise_bytes("before", 2 * N)
AFTER = bytes(byte ^ (at % 6 == 0) for at, byte in enumerate(BEFORE[:80])) + BEFORE[80:]
SOUND = LOSSLESS["lattice"].encode(np.frombuffer(AFTER, np.uint8), np.frombuffer(BEFORE, np.uint8), "BF16")
HEAD = struct.Struct("<BBBBIIIII")
FIELDS = HEAD.unpack_from(SOUND)
LANES = 1 << FIELDS[2]
TOLD = zstandard.ZstdDecompressor().decompress(SOUND[24 : 24 + FIELDS[6]])
REST = SOUND[24 + FIELDS[6] :]
assert SOUND[0] == 3, "steps are to be coded"


def head(**changed: int) -> bytes:
    """The sound chunk with members of its head changed."""
    names = ("mode", "bits", "lanes", "low", "width", "first", "model", "words", "open")
    return HEAD.pack(*(dict(zip(names, FIELDS, strict=True)) | changed).values()) + SOUND[24:]


def model(told: bytes) -> bytes:
    """The sound chunk with another model."""
    frame = zstandard.ZstdCompressor().compress(told)
    return HEAD.pack(*FIELDS[:6], len(frame), *FIELDS[7:]) + frame + REST


def _states(change: int) -> bytes:
    at = 24 + FIELDS[6]
    return SOUND[:at] + bytes([SOUND[at] ^ change]) + SOUND[at + 1 :]


def directions(
    k: int,
    *,
    width: int = 64,
    marks: tuple[int, int, int] = (1, 2, 3),
    number: int = 7,
    cut: int = 0,
    more: bytes = b"",
) -> bytes:
    """A chunk whose model has one table and k directions. Its symbols do not matter: the model is refused."""
    segments = 1 + -(-(N - min(width, N)) // width)
    integers = struct.pack("b", number) * (k * (segments + width) - cut)
    told = bytes([1, 1, k, 9]) + bytes(segments) + bytes(64) + struct.pack("<3H", *marks) + integers + more
    frame = zstandard.ZstdCompressor().compress(told)
    return HEAD.pack(*FIELDS[:4], width, width, len(frame), *FIELDS[7:]) + frame + REST


def _cases() -> tuple[tuple[str, bytes, str, str, str], ...]:
    tables, symbols = TOLD[:2]
    body = TOLD[3:]
    past = 3 + tables * symbols
    return (
        ("empty", b"", "FormatError", "cut off", "a chunk of no bytes"),
        ("mode", b"\4", "FormatError", "mode 4", "an unknown mode"),
        ("same-long", b"\0\0", "FormatError", "mode 0", "a byte behind mode 0"),
        ("whole-short", b"\2" + bytes(7), "FormatError", "cut off", "planes cut off"),
        ("head-cut-off", SOUND[:20], "FormatError", "cut off", "a head cut off"),
        ("bits-7", head(bits=7), "FormatError", "out of range", "frequencies of 7 bits"),
        ("bits-13", head(bits=13), "FormatError", "out of range", "frequencies of 13 bits"),
        ("lanes-4", head(lanes=2), "FormatError", "out of range", "four lanes"),
        ("lanes-512", head(lanes=9), "FormatError", "out of range", "512 lanes"),
        ("first-0", head(width=8, first=0), "FormatError", "segments", "a first segment of no elements"),
        ("first-more", head(width=8, first=9), "FormatError", "segments", "a first segment longer than the others"),
        ("width-0", head(width=0, first=1), "FormatError", "segments", "a first segment where there is but one"),
        ("segments", head(width=1, first=1), "FormatError", "fit", "shifts of one segment for 512"),
        ("words-more", head(words=1 << 31), "FormatError", "fit", "2^31 words"),
        ("size", SOUND + b"\0", "FormatError", "fit", "a byte behind the open bits"),
        ("model-no-frame", head(model=0, open=FIELDS[8] + FIELDS[6]), "FormatError", "zstd", "a model that is no frame"),
        ("model-large", model(TOLD + bytes(1 << 16)), "FormatError", "declares", "a model of 64 KiB"),
        ("model-cut-off", model(TOLD[:1]), "FormatError", "cut off", "a model of one byte"),
        ("model-no-tables", model(bytes([0]) + TOLD[1:]), "FormatError", "out of range", "no tables"),
        ("model-symbols", model(bytes([1, 40, 0]) + bytes([9]) * 40 + bytes(17)), "FormatError", "out of range", "40 symbols"),
        ("model-weight", model(TOLD[:3] + bytes([64]) + body[1:]), "FormatError", "weight", "weight 64"),
        ("model-no-weights", model(TOLD[:3] + bytes(past - 3) + TOLD[past:]), "FormatError", "no symbols",
         "a table of nothing but 0"),
        ("model-shift", model(TOLD[:past] + bytes([16]) + TOLD[past + 1 :] + bytes(16)), "FormatError", "fit", "shift 16"),
        ("model-table", model(TOLD[:-1] + bytes([tables])), "FormatError", "table", "a table that there is not"),
        ("model-long", model(TOLD + b"\0"), "FormatError", "fit", "a table for a context that there is not"),
        ("directions-9", directions(9), "FormatError", "directions", "nine directions"),
        ("directions-no-width", model(TOLD[:2] + b"\1" + body), "FormatError", "directions", "a direction of no places"),
        ("directions-wide", directions(1, width=N + 1), "FormatError", "directions", "a direction longer than the chunk"),
        ("directions-short", directions(2, cut=1), "FormatError", "fit", "directions cut off"),
        ("directions-long", directions(2, more=b"\0"), "FormatError", "fit", "a byte behind the directions"),
        ("directions-8", directions(2, number=8), "FormatError", "directions", "an integer of 8"),
        ("directions-less", directions(2, number=-8), "FormatError", "directions", "an integer of −8"),
        ("marks-0", directions(2, marks=(0, 1, 2)), "FormatError", "directions", "a mark of 0"),
        ("marks-order", directions(2, marks=(3, 2, 4)), "FormatError", "directions", "marks that do not ascend"),
        ("marks-large", directions(2, marks=(1, 2, 1 << 15)), "FormatError", "directions", "a mark of 2^15"),
        ("states", _states(1), "DamagedError", "end", "a lane that does not end at 2^16"),
        ("words-left", _more_words(), "DamagedError", "end", "a word that nobody takes"),
        ("open-more", HEAD.pack(*FIELDS[:8], FIELDS[8] + 1) + SOUND[24:] + b"\0", "DamagedError", "open bits",
         "a byte of open bits that nobody takes"),
    )  # fmt: skip


def _more_words() -> bytes:
    at = len(SOUND) - FIELDS[8]
    return HEAD.pack(*FIELDS[:7], FIELDS[7] + 1, FIELDS[8]) + SOUND[24:at] + b"\0\0" + SOUND[at:]


def make() -> None:
    """Register them."""
    archive = sound()
    archive.base["steps"] = Tensor("BF16", (N,), BEFORE)
    archive.parts()[BASE].items["steps"] = whole(archive.base["steps"])
    archive.base["numbers"] = Tensor("U8", (8,), noise_bytes("numbers", 8))
    archive.parts()[BASE].items["numbers"] = whole(archive.base["numbers"])
    items, tensors = {}, {}
    for name, data, error, mentions, about in _cases():
        facts = {"kind": "lossless", "dtype": "BF16", "shape": [N], "base": "steps", "codec": "lattice", "chunk": 1024}
        items[name], tensors[name] = (facts, [data]), (about, error, mentions)
    facts = {"kind": "lossless", "dtype": "U8", "shape": [8], "base": "numbers", "codec": "lattice", "chunk": 1024}
    items["steps-of-integers"] = facts, [SOUND]
    tensors["steps-of-integers"] = ("mode 3 of a type without exponents", "FormatError", "mode 3")
    part = archive.parts()[MASK]
    part.items, part.version, archive.version = items, "1.1", "1.1"
    about = "chunks of codec lattice that say what they must not, or do not end with their elements"
    CASES["codes-of-lattice"] = Case(about, "ArchiveError", "decode", file=zipped(archive.build()), tensors=tensors)
