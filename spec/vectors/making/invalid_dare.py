"""Chunks of codec `dare`, and entries of kind `sampled`, that every reader must refuse."""

from __future__ import annotations

import struct

from .build import Facts, sampled
from .invalid import add
from .numbers import Tensor
from .valid_dare import LEVELS, back, drawing, moved, numbers
from .valid_relatives import Family

SHAPE, N = (1024,), 1024
BASE = numbers("BF16", "dare base", SHAPE)
OWN = moved(BASE, "dare own")
SAMPLING = drawing("BF16", LEVELS["some"])
FACTS, CODED = sampled(OWN, BASE, "w", SAMPLING)
SOUND = (CODED or [b""])[0]
HEAD, INNER = SOUND[:86], SOUND[86:]
WIDTHS, CONTEXTS = 6 + 32, 6 + 64
assert (SOUND[0], INNER[0]) == (2, 3), "steps of some are to be coded"


def spoilt(at: int, *more: int) -> bytes:
    """The sound chunk with these bytes there."""
    return SOUND[:at] + bytes(more) + SOUND[at + len(more) :]


def inner(**changed: int) -> bytes:
    """The sound chunk with members of the head of its chunk of `lattice` changed."""
    names = ("mode", "bits", "lanes", "low", "width", "first", "model", "words", "open")
    fields = dict(zip(names, struct.unpack_from("<BBBBIIIII", INNER), strict=True))
    return HEAD + struct.pack("<BBBBIIIII", *(fields | changed).values()) + INNER[24:]


def make() -> None:
    """Register them."""
    family = Family()
    family.base |= {"w": BASE, "half": Tensor("F16", SHAPE, BASE.data), "count": Tensor("U16", SHAPE, BASE.data)}
    family.put("a", "w", (FACTS, [SOUND]), back(OWN, BASE, SAMPLING))
    words = struct.unpack_from("<I", INNER, 16)[0]
    other = "shares that keep next to nothing, with a chunk of lattice of some"
    chunks: tuple[tuple[str, bytes, str, str, str], ...] = (
        ("empty", b"", "FormatError", "mode None", "no byte"),
        ("mode", spoilt(0, 4), "FormatError", "mode 4", "an unknown mode"),
        ("mode-1", spoilt(0, 1), "FormatError", "mode 1", "a mode that was never released"),
        ("as-lattice", INNER, "FormatError", "shift", "a chunk of lattice alone"),
        ("head", SOUND[:5], "FormatError", "cut off", "a head cut off"),
        ("levels", SOUND[:85], "FormatError", "cut off", "levels cut off"),
        ("low", SOUND, "FormatError", "above 31", "a lowest exponent that F16 does not have"),
        ("width-signed", spoilt(WIDTHS, 0, 0x80), "FormatError", "8000", "a width of −0"),
        ("width-infinite", spoilt(WIDTHS + 30, 0x80, 0x7F), "FormatError", "7F80", "a width that is infinite"),
        ("width-nan", spoilt(WIDTHS + 6, 0x81, 0x7F), "FormatError", "7F81", "a width that is a NaN"),
        ("context-shift", spoilt(CONTEXTS, 0x50), "FormatError", "contexts, 50", "classes shifted by five"),
        ("context-beyond", spoilt(CONTEXTS + 15, 1), "FormatError", "contexts", "a context of 16"),
        (
            "context-beyond-few",
            spoilt(CONTEXTS, 0x3F),
            "FormatError",
            "contexts, 3f",
            "a context of 16 for some classes",
        ),
        ("no-chunk", HEAD, "FormatError", "cut off", "no chunk of lattice"),
        ("no-chunk-of-all", b"\0", "FormatError", "cut off", "mode 0 without a chunk of lattice"),
        ("cut-off", SOUND[:-1], "FormatError", "fit", "the last byte cut off"),
        ("trailing", SOUND + b"\0", "FormatError", "fit", "a byte behind the chunk of lattice"),
        ("trailing-of-all", b"\0\0\0", "FormatError", "cut off", "a byte behind the one of mode 0"),
        ("drift", HEAD + b"\4" + INNER[1:], "FormatError", "mode 4", "mode 4 of drift within"),
        ("nested", b"\0" + HEAD + b"\0", "FormatError", "fit", "a chunk of dare within mode 0"),
        ("bits", inner(bits=13), "FormatError", "13", "tables of 2^13 places within"),
        ("words", inner(words=words - 1), "FormatError", "fit", "too few words within"),
        ("other-kept", HEAD[:6] + bytes(32) + HEAD[38:] + INNER, "DamagedError", "end", other),
    )
    tasks: dict[str, tuple[str, str, str]] = {}
    for name, data, error, mentions, about in chunks:
        tasks[name] = about, error, mentions
        more = {"dtype": "F16", "base": "half"} if name == "low" else {}
        family.put(name, "w", (FACTS | more, [data]), OWN)
    entries: tuple[tuple[str, Facts, str, str, str], ...] = (
        ("type", {"dtype": "F64"}, "FormatError", "F64", "an element type that is not sampled"),
        ("words-as-type", {"dtype": "U16", "base": "count"}, "FormatError", "U16", "elements that are no numbers"),
        ("base-type", {"base": "count"}, "FormatError", "U16", "a base of no numbers"),
        ("codec", {"codec": "lattice"}, "CodecError", "lattice", "a codec of the kind lossless"),
        ("kind", {"kind": "lossless"}, "CodecError", "dare", "kind lossless with the codec of sampled"),
    )
    for name, facts, error, mentions, about in entries:
        tasks[f"entry-{name}"] = about, error, mentions
        family.put(f"entry-{name}", "w", (FACTS | facts, [SOUND]), OWN)
    archive = family.archive()
    archive.since("1.4", "mask")
    about = "chunks of codec dare, and entries of kind sampled, that say what they must not"
    add("codes-of-dare", about, "FormatError", "decode", "", archive.build(), tasks=tasks)
