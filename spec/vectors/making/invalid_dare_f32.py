"""Chunks of codec `dare` of float32 that every reader must refuse."""

from __future__ import annotations

import struct

import numpy as np

from tallstore.codecs import LOSSLESS, SAMPLED

from .build import CHUNK, Facts
from .invalid import add
from .invalid_columns import asking
from .numbers import Tensor
from .valid_dare import numbers
from .valid_dare_f32 import ONE, tuned
from .valid_low_rank import Product, as_array, cut, of_rank
from .valid_relatives import Family

N = CHUNK
BASE = numbers("F32", "dare F32 base", (N,))
OWN = tuned(BASE, "dare F32 own")
SOUND = SAMPLED["dare"].encode(as_array(OWN), as_array(BASE), "F32", ONE, 0)
HEAD, INNER = SOUND[:86], SOUND[86:]
assert (SOUND[0], INNER[0]) == (2, 3)


def make() -> None:
    """Register them."""
    family = Family()
    family.base |= {"w": BASE, "two": Tensor("F32", (2 * N,), BASE.data * 2), "few": cut(BASE, 0, 512)}
    facts: Facts = {"kind": "sampled", "dtype": "F32", "shape": [N], "base": "w", "codec": "dare", "chunk": N}
    family.put("a", "w", (facts | {"base": "w"}, [b"\0\0"]), BASE)
    product = of_rank("dare F32 refused", N, 20, 0, (1, 4, 0), 2.0**-22)
    told = product.told(after=SOUND)
    zeros = np.zeros((5, N), np.int64)
    one_more = Product(1.0, [0] * 5, zeros[:, : N // 5 + 1], zeros[:, :5]).told(after=b"\0\0")
    columns = Product(1.0, [0] * 64, np.zeros((64, 1), np.int64), np.zeros((64, 513), np.int64))
    whole = b"\0" + LOSSLESS["lattice"].encode(as_array(OWN), as_array(BASE), "F32")
    planes = b"\2" + LOSSLESS["lattice"].encode(as_array(OWN), np.full(4 * N, 255, np.uint8), "F32")[1:]
    sizes = 14 + len(product.shifts)
    rows, _ = struct.unpack_from("<II", told, sizes)
    chunks: tuple[tuple[str, bytes, str, str], ...] = (
        ("mode", b"\4" + SOUND[1:], "mode 4", "an unknown mode"),
        ("width-nan", SOUND[:38] + b"\xc0\x7f" + SOUND[40:], "7FC0", "a width that is a NaN"),
        ("context-beyond", SOUND[:70] + b"\x01" + SOUND[71:], "contexts", "a context of 16"),
        ("no-chunk", HEAD, "cut off", "no chunk of lattice"),
        ("cut-off", SOUND[:-1], "fit", "the last byte cut off"),
        ("trailing", SOUND + b"\0", "fit", "a byte behind the chunk of lattice"),
        ("elements-as-steps", HEAD + planes, "", "elements of float32 where steps of bfloat16 are coded"),
        ("all-cut-off", whole[:-1], "", "mode 0, the last byte cut off"),
        ("all-trailing", b"\0\0\0", "cut off", "a byte behind the one of mode 0"),
        ("one-more", one_more, "of 205 rows than 1024", "one number of rows more than there are elements"),
        ("columns-one-more", columns.told(after=b"\0\0"), "64 for each of 512", "one number of columns more than 64 an element"),
        ("scale-0", told[:10] + bytes(4) + told[14:], "scale", "a scale of 0"),
        ("rows-short", told[:sizes] + struct.pack("<I", rows - 1) + told[sizes + 4 :], "", "rows that end a byte early"),
        ("nested", told[: -len(SOUND)] + told, "another one", "a chunk of mode 3 behind another"),
        ("then-nothing", told[: -len(SOUND)], "mode None", "nothing behind a product"),
    )  # fmt: skip
    tasks: dict[str, tuple[str, str, str]] = {}
    for name, data, mentions, about in chunks:
        tasks[name] = about, "FormatError", mentions
        more = {"shape": [512], "base": "few"} if name == "columns-one-more" else {}
        family.put(name, "w", (facts | more, [data]), OWN)
    pairs: tuple[tuple[str, list[bytes], str, str], ...] = (
        ("second-asks", [SOUND, asking()], "no columns", "no columns behind a first chunk of mode 2"),
        ("rank-more", [told, asking(rank=4)], "does not fit", "a rank of 4 behind one of 3"),
        ("width-more", [told, asking(width=21)], "does not fit", "a width of 21 behind one of 20"),
    )
    for name, both, mentions, about in pairs:
        tasks[name] = about, "FormatError", mentions
        family.put(name, "w", (facts | {"shape": [2 * N], "base": "two"}, both), family.base["two"])
    types: tuple[tuple[str, Facts, str, str], ...] = (
        ("as-f64", {"dtype": "F64"}, "F64", "the same chunk of an element type that is not sampled"),
        ("as-few-bits", {"dtype": "F8_E4M3"}, "F8_E4M3", "and of one of eight bits"),
        ("as-whole-numbers", {"dtype": "U32"}, "U32", "and of whole numbers of as many bits"),
    )
    for name, other, mentions, about in types:
        tasks[name] = about, "FormatError", mentions
        family.put(name, "w", (facts | other, [SOUND]), OWN)
    archive = family.archive()
    archive.since("1.4", "mask")
    about = "chunks of codec dare of float32 that say what they must not, and other types"
    add("codes-of-dare-f32", about, "FormatError", "decode", "", archive.build(), tasks=tasks)
