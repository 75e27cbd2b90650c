"""Chunks of codec `dare`, and entries of kind `sampled`, that every reader must refuse."""

from __future__ import annotations

import struct

from .build import Facts, sampled
from .invalid import add
from .numbers import Tensor
from .valid_dare import LOW, RATES, back, moved, numbers
from .valid_relatives import Family

SHAPE, N = (1024,), 1024
BASE = numbers("BF16", "dare base", SHAPE)
OWN = moved(BASE, "dare own")
FACTS, CODED = sampled(OWN, BASE, "w", LOW["BF16"], RATES["some"])
SOUND = (CODED or [b""])[0]
HEAD, INNER = SOUND[:22], SOUND[22:]
assert (SOUND[0], INNER[0]) == (1, 3), "steps of some are to be coded"


def inner(**changed: int) -> bytes:
    """The sound chunk with members of the head of its chunk of `lattice` changed."""
    names = ("mode", "bits", "lanes", "low", "width", "first", "model", "words", "open")
    fields = dict(zip(names, struct.unpack_from("<BBBBIIIII", INNER), strict=True))
    return HEAD + struct.pack("<BBBBIIIII", *(fields | changed).values()) + INNER[24:]


def make() -> None:
    """Register them."""
    family = Family()
    family.base |= {"w": BASE, "half": Tensor("F16", SHAPE, BASE.data), "count": Tensor("U16", SHAPE, BASE.data)}
    family.put("a", "w", (FACTS, [SOUND]), back(OWN, BASE, LOW["BF16"], RATES["some"]))
    words = struct.unpack_from("<I", INNER, 16)[0]
    other = "rates that keep nothing, with a chunk of lattice of some"
    chunks: tuple[tuple[str, bytes, str, str, str], ...] = (
        ("empty", b"", "FormatError", "mode None", "no byte"),
        ("mode", b"\2" + SOUND[1:], "FormatError", "mode 2", "an unknown mode"),
        ("as-lattice", INNER, "FormatError", "mode 3", "a chunk of lattice alone"),
        ("head", SOUND[:5], "FormatError", "cut off", "a head cut off"),
        ("rates", SOUND[:21], "FormatError", "cut off", "rates cut off"),
        ("low", SOUND, "FormatError", "above 31", "a lowest exponent that F16 does not have"),
        ("no-chunk", HEAD, "FormatError", "cut off", "no chunk of lattice"),
        ("no-chunk-of-all", b"\0", "FormatError", "cut off", "mode 0 without a chunk of lattice"),
        ("cut-off", SOUND[:-1], "FormatError", "fit", "the last byte cut off"),
        ("trailing", SOUND + b"\0", "FormatError", "fit", "a byte behind the chunk of lattice"),
        ("trailing-of-all", b"\0\0\0", "FormatError", "cut off", "a byte behind the one of mode 0"),
        ("drift", HEAD + b"\4" + INNER[1:], "FormatError", "mode 4", "mode 4 of drift within"),
        ("nested", b"\0" + HEAD + b"\0", "FormatError", "fit", "a chunk of dare within mode 0"),
        ("bits", inner(bits=13), "FormatError", "13", "tables of 2^13 places within"),
        ("words", inner(words=words - 1), "FormatError", "fit", "too few words within"),
        ("other-kept", HEAD[:6] + bytes([255] * 16) + INNER, "DamagedError", "end", other),
    )
    tasks: dict[str, tuple[str, str, str]] = {}
    for name, data, error, mentions, about in chunks:
        tasks[name] = about, error, mentions
        more = {"dtype": "F16", "base": "half"} if name == "low" else {}
        family.put(name, "w", (FACTS | more, [data]), OWN)
    entries: tuple[tuple[str, Facts, str, str, str], ...] = (
        ("type", {"dtype": "F32"}, "FormatError", "F32", "an element type that is not sampled"),
        ("words-as-type", {"dtype": "U16", "base": "count"}, "FormatError", "U16", "elements that are no numbers"),
        ("base-type", {"base": "count"}, "FormatError", "U16", "a base of no numbers"),
        ("codec", {"codec": "lattice"}, "CodecError", "lattice", "a codec of the kind lossless"),
        ("kind", {"kind": "lossless"}, "CodecError", "dare", "kind lossless with the codec of sampled"),
    )
    for name, facts, error, mentions, about in entries:
        tasks[f"entry-{name}"] = about, error, mentions
        family.put(f"entry-{name}", "w", (FACTS | facts, [SOUND]), OWN)
    archive = family.archive()
    archive.version = "1.4"
    for part in archive.parts().values():
        part.version = "1.4" if part.part == "mask" else part.version
    about = "chunks of codec dare, and entries of kind sampled, that say what they must not"
    add("codes-of-dare", about, "FormatError", "decode", "", archive.build(), tasks=tasks)
