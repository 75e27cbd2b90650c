"""Chunks of codec `dare` that ask their tensor's first one for columns which it cannot give."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from .build import CHUNK, Facts
from .invalid import add
from .numbers import Tensor
from .valid_dare import LEVELS, drawing, moved, numbers
from .valid_low_rank import Product, Whole, cut, of_rank, then, whole_numbers
from .valid_relatives import Family

N, WIDTH, GONE, SCALE = 2 * CHUNK, 20, CHUNK % 20, 2.0**-22
BASE = numbers("BF16", "columns base", (N,))
FIRST = of_rank("columns refused", CHUNK, WIDTH, 0, (1, 4, 0), SCALE)
LATER = of_rank("columns refused later", CHUNK, WIDTH, GONE, (0, 1), SCALE)._replace(v=FIRST.v[:2])
SIZES, NUMBERS = 17, 25
"""Where, of three components, these are."""


def over(product: Product, a: int, *, with_columns: bool) -> tuple[bytes, bytes]:
    """A sound chunk, and what comes back of it."""
    start = product.plus(cut(BASE, a, a + CHUNK))
    rest, own = then(moved(start, f"columns refused own {a}"), start, drawing("BF16", LEVELS["some"]), a)
    return product.told(after=rest, with_columns=with_columns), own.data


def alone(a: int) -> tuple[bytes, bytes]:
    """Of the same elements, in mode 2 and in mode 0."""
    here = cut(BASE, a, a + CHUNK)
    own, sampling = moved(here, f"columns refused alone {a}"), drawing("BF16", LEVELS["some"])
    return then(own, here, sampling, a)[0], then(own, here, None, a)[0]


def asking(rank: int = 2, width: int = WIDTH, gone: int = 0, n: int = CHUNK) -> bytes:
    """A chunk of n elements that asks for columns: of numbers that are right."""
    u = whole_numbers(f"columns asking {rank} {width}", (rank, -(-(gone + n) // width)))
    none: Whole = np.zeros((rank, width), np.int64)
    return Product(SCALE, [0] * rank, u, none, gone).told(after=b"\0\0", with_columns=False)


def make() -> None:
    """Register them."""
    (first, head), (later, tail) = over(FIRST, 0, with_columns=True), over(LATER, CHUNK, with_columns=False)
    own, (some, every) = over(LATER, CHUNK, with_columns=True)[0], alone(0)
    size, second = struct.unpack_from("<II", first, SIZES)
    ends = NUMBERS + size, NUMBERS + size + second
    full = of_rank("columns refused full", CHUNK, 64, 0, [0] * 64, SCALE).told(after=b"\0\0")
    wide = of_rank("columns refused wide", CHUNK, 3000, 0, (0, 1, 2), SCALE, 3).told((2, None), b"\0\0")
    words = NUMBERS + struct.unpack_from("<I", wide, SIZES)[0]
    assert wide[words] == 3
    many = Product(1.0, [0, 0], np.zeros((2, 1), np.int64), np.zeros((2, (1 << 21) + 1), np.int64))
    number = FIRST.v.copy()
    number[2, 19] = 128
    unfit, none, cut_off = "does not fit", "no columns", "cut off"
    tensors: tuple[tuple[str, Sequence[bytes], str, str, str], ...] = (
        ("first-asks", [asking(), later], "FormatError", none, "no columns in the first chunk, nor in the second"),
        ("first-of-mode-2", [some, later], "FormatError", none, "no columns behind a first chunk of mode 2"),
        ("first-of-mode-0", [every, later], "FormatError", none, "no columns behind a first chunk of mode 0"),
        ("second-tells", [some, own, later], "FormatError", none, "columns that the second chunk tells, and not the first"),
        ("width-more", [first, asking(width=21)], "FormatError", unfit, "a width of 21 behind one of 20"),
        ("width-less", [first, asking(width=19)], "FormatError", unfit, "a width of 19 behind one of 20"),
        ("width-far", [first, asking(1, 1 << 16)], "FormatError", unfit, "a width of 2^16 behind one of 20"),
        ("width-too-far", [first, asking(1, (1 << 16) + 1)], "FormatError", "64 for each of 1024", "one more of columns"),
        ("rank-more", [first, asking(rank=4)], "FormatError", unfit, "a rank of 4 behind one of 3"),
        ("rank-19", [first, asking(rank=19)], "FormatError", unfit, "a rank of 19 behind one of 3"),
        ("rows-one-more", [full, asking(64, 64, 0, CHUNK - 1)], "FormatError", "of 16 rows than 1023",
         "one number of rows more than there are elements"),
        ("gone", [first, asking(gone=0)[:6] + struct.pack("<I", WIDTH) + asking(gone=0)[10:]], "FormatError",
         "out of range", "a row that is all gone"),
        ("columns-many", [first, many.told((2, 0), b"\0\0")], "FormatError", "than 4194304",
         "columns of its own, one more of each of two components than there may be"),
        ("columns-many-asked", [first, many.told((2, 0), b"\0\0", with_columns=False)], "FormatError", "than 4194304",
         "so many columns asked for"),
        ("first-cut-off", [first[: ends[1] - 1], later], "FormatError", cut_off, "the last byte of the first chunk's columns cut off"),
        ("first-short", [first[:SIZES] + struct.pack("<II", size, second - 1) + first[NUMBERS:], later], "FormatError",
         "fit", "the first chunk's columns said to end a byte early"),
        ("first-128", [FIRST._replace(v=number).told((2, 2), b"\0\0"), later], "FormatError", "beyond 127",
         "among the first chunk's columns, of a component that nothing asks for, 128"),
        ("first-damaged", [wide[:-3] + bytes([wide[-3] ^ 1]) + wide[-2:], asking(2, 3000, CHUNK)], "DamagedError", "end",
         "the first chunk's columns, whose words do not end as they should"),
    )  # fmt: skip
    family = Family()
    facts: Facts = {"kind": "sampled", "dtype": "BF16", "codec": "dare", "chunk": CHUNK}
    tasks: dict[str, tuple[str, str, str]] = {}
    for name, chunks, error, mentions, about in (("a", [first, later], "", "", ""), *tensors):
        n = CHUNK * len(chunks) - (name == "rows-one-more")
        base = family.base[f"of {n}"] = Tensor("BF16", (n,), (BASE.data * 2)[: 2 * n])
        family.put(name, "w", (facts | {"shape": [n], "base": f"of {n}"}, list(chunks)), base)
        tasks |= {name: (about, error, mentions)} if error else {}
    family.decoded["a"]["w"] = Tensor("BF16", (N,), head + tail)
    archive = family.archive()
    archive.since("1.4", "mask")
    about = "chunks of codec dare that ask their tensor's first chunk for columns that it does not tell, or cannot"
    add("codes-of-columns", about, "FormatError", "decode", "", archive.build(), tasks=tasks)
