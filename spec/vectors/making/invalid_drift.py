"""Chunks of codec `drift`, and entries with it, that every reader must refuse."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from tallstore.codecs import LOSSLESS

from .build import Item, lossless
from .invalid import add
from .invalid_lossless import HEAD
from .numbers import Tensor, noise_bytes
from .valid_drift import PARENT, between
from .valid_lossless import stepped
from .valid_relatives import Family

N = 4096
BASE = Tensor("BF16", (N,), noise_bytes("drift base", 2 * N))
START = stepped(BASE, "drift start", 2.0)
OWN = between(BASE, START, "drift own")
SOUND = LOSSLESS["drift"].encode(
    *(np.frombuffer(each.data, np.uint8) for each in (OWN, START)),
    "BF16",
    origin=np.frombuffer(BASE.data, np.uint8),
)
FIELDS = HEAD.unpack_from(SOUND)
TOLD = zstandard.ZstdDecompressor().decompress(SOUND[24 : 24 + FIELDS[6]])
ONE = 2 * TOLD[1] - 1
"""Bytes of a table's weights."""
SHIFT = 19 + TOLD[0] * ONE
"""Where the shift of the only segment is in the model."""
assert SOUND[0] == 4, "drift is to be told"


def model(told: bytes) -> bytes:
    """The sound chunk with another model."""
    frame = zstandard.ZstdCompressor().compress(told)
    return HEAD.pack(*FIELDS[:6], len(frame), *FIELDS[7:]) + frame + SOUND[24 + FIELDS[6] :]


def changed(at: int, byte: int) -> bytes:
    """The sound chunk with another byte in its model."""
    return model(TOLD[:at] + bytes([byte]) + TOLD[at + 1 :])


def excepted(gaps: list[int], symbols: list[int]) -> bytes:
    """The sound chunk with these exceptions alone."""
    end = 24 + FIELDS[6] + (4 << FIELDS[2]) + 2 * FIELDS[7] + FIELDS[8]
    return SOUND[:end] + struct.pack(f"<{len(gaps)}H{len(symbols)}b", *gaps, *symbols)


def make() -> None:
    """Register them."""
    family = Family()
    family.base["w"], family.base["half"] = BASE, Tensor("F16", (N,), BASE.data)
    family.put("a", "w", lossless(START, BASE, "w", "lattice"), START)
    tasks: dict[str, tuple[str, str, str]] = {}

    def spoilt(name: str, about: str, error: str, mentions: str, item: Item, *, alone: bool = False) -> None:
        if not alone:
            family.made_of(name, ["a"], PARENT)
        family.put(name, "w", item, OWN)
        tasks[name] = about, error, mentions

    facts, _ = lossless(OWN, START, "w", "drift", origin=BASE, chunk=N, start=[])
    chunks: tuple[tuple[str, bytes, str, str, str], ...] = (
        ("mode", b"\5" + SOUND[1:], "FormatError", "mode 5", "an unknown mode"),
        ("unit", changed(2, 16), "FormatError", "2^16", "classes of 2^16 steps of 16 bits"),
        ("grade", changed(3 + 7, 8), "FormatError", "grade", "a grade of 8"),
        ("weight", changed(19, 64), "FormatError", "weight", "a weight of 64"),
        ("table", changed(len(TOLD) - 1, TOLD[0]), "FormatError", "table", "a table that there is not"),
        ("short", model(TOLD[:-1]), "FormatError", "fit", "a model without the last table"),
        ("long", model(TOLD + b"\0"), "FormatError", "fit", "a byte behind the model"),
        ("no-model", model(TOLD[:18]), "FormatError", "cut off", "a model without all grades"),
        ("exceptions-odd", SOUND + b"\0", "FormatError", "fit", "a byte that is no exception"),
        ("exception-far", excepted([N], [1]), "FormatError", "exceptions", "an exception behind the last element"),
        ("exceptions-far", excepted([N - 1, 0], [0, 0]), "FormatError", "exceptions", "two, of which one is"),
        ("exception-large", excepted([0], [39]), "FormatError", "exceptions", "an exception of magnitude 39"),
        ("exception-open", excepted([0], [38]), "DamagedError", "open bits", "one without its open bits"),
        ("no-tables", model(b"\0" + TOLD[1:]), "FormatError", "0 tables", "no tables"),
        (
            "many-tables",
            model(b"\x41" + TOLD[1:19] + 65 * TOLD[19 : 19 + ONE] + TOLD[SHIFT:]),
            "FormatError",
            "65 tables",
            "65 tables",
        ),
        (
            "shift",
            model(TOLD[:SHIFT] + b"\x10" + TOLD[SHIFT + 1 :] + bytes(16)),
            "FormatError",
            "fit",
            "a shift of 16, and tables for it",
        ),
        ("frame", model(TOLD + bytes(1 << 13)), "FormatError", "declares", "a model larger than any may be"),
        ("cut-off", SOUND[:20], "FormatError", "cut off", "a head cut off"),
        ("as-lattice", b"\3" + SOUND[1:], "FormatError", "fit", "mode 3 with the model of mode 4"),
    )
    for name, data, error, mentions, about in chunks:
        spoilt(name, about, error, mentions, (facts, [data]))
    bare = {key: value for key, value in facts.items() if key != "start"}
    spoilt("no-start", "no start", "FormatError", "start", (bare, [SOUND]), alone=True)
    baseless = {key: value for key, value in facts.items() if key != "base"}
    spoilt("no-base", "no base", "FormatError", "base", (baseless, [SOUND]))
    spoilt("type", "a base of another type", "FormatError", "F16", (facts | {"base": "half"}, [SOUND]))
    archive = family.archive()
    archive.version = "1.3"
    for part in archive.parts().values():
        part.version = "1.3" if part.part == "relative" or part.owner == "no-start" else part.version
    about = "chunks of codec drift, and entries with it, that say what they must not"
    add("codes-of-drift", about, "FormatError", "decode", "", archive.build(), tasks=tasks)
