"""Chunks of codec `dare` in mode 3 that every reader must refuse."""

from __future__ import annotations

import struct

import numpy as np

from tallstore.codecs import SAMPLED

from .build import Facts
from .invalid import add
from .numbers import Tensor
from .valid_dare import LEVELS, back, drawing, moved, numbers
from .valid_low_rank import Product, Whole, as_array, of_rank
from .valid_relatives import Family

SHAPE, N, WIDTH, GONE = (1024,), 1024, 20, 7
BASE = numbers("BF16", "low rank base", SHAPE)
PRODUCT = of_rank("low rank refused", N, WIDTH, GONE, (1, 4, 0), 2.0**-22)
START = PRODUCT.plus(BASE)
OWN, SAMPLING = moved(START, "low rank own"), drawing("BF16", LEVELS["some"])
REST = SAMPLED["dare"].encode(as_array(OWN), as_array(START), "BF16", SAMPLING, 0)
SOUND = PRODUCT.told(after=REST)
SHIFTS, SIZES, NUMBERS = 14, 17, 25
FIRST, SECOND = struct.unpack_from("<II", SOUND, SIZES)
assert REST[0] == 2
MANY = 130 * 131
"""So many elements may have a product of rank 65, but for its rank."""


def head(rank: int = 3, width: int = WIDTH, gone: int = GONE, scale: float = 2.0**-22) -> bytes:
    """The sound chunk with members of its head changed."""
    return struct.pack("<BBIIf", 3, rank, width, gone, scale) + SOUND[SHIFTS:]


def sized(first: int, second: int) -> bytes:
    """The sound chunk with other sizes of its chunks of `lattice`."""
    return SOUND[:SIZES] + struct.pack("<II", first, second) + SOUND[NUMBERS:]


def parts(first: bytes, second: bytes) -> bytes:
    """The sound chunk with other chunks of `lattice`."""
    return SOUND[:SIZES] + struct.pack("<II", len(first), len(second)) + first + second + REST


def with_number(at: int, place: tuple[int, int], number: int) -> bytes:
    """The sound chunk with another number among those of rows (0) or of columns (1)."""
    both: list[Whole] = [PRODUCT.u.copy(), PRODUCT.v.copy()]
    both[at][place] = number
    return PRODUCT._replace(u=both[0], v=both[1]).told((2, 2), REST)


def make() -> None:
    """Register them."""
    family = Family()
    family.base |= {"w": BASE, "many": Tensor("BF16", (MANY,), bytes(2 * MANY))}
    facts: Facts = {"kind": "sampled", "dtype": "BF16", "shape": list(SHAPE), "base": "w", "codec": "dare", "chunk": N}
    family.put("a", "w", (facts, [SOUND]), back(OWN, START, SAMPLING))
    u, v = SOUND[NUMBERS : NUMBERS + FIRST], SOUND[NUMBERS + FIRST : NUMBERS + FIRST + SECOND]
    before, cut_off, size = "out of range", "cut off", "more numbers"
    zeros = np.zeros((65, 256), np.int64)
    beyond = Product(1.0, [0] * 65, zeros[:, :130], zeros[:, :131]).told(after=b"\0\0")
    one_more = Product(1.0, [0] * 5, zeros[:5, : N // 5 + 1], zeros[:5, :5]).told(after=b"\0\0")
    far = Product(1.0, [0], zeros[:1, :1], np.zeros((1, (1 << 22) + 1), np.int64)).told((2, 0), b"\0\0")
    chunks: tuple[tuple[str, bytes, str, str], ...] = (
        ("rank-0", head(rank=0), before, "a rank of 0"),
        ("rank-65", beyond, "rank 65", "a rank of 65, of elements that are enough for it"),
        ("rank-255", head(rank=255), "rank 255", "a rank of 255"),
        ("gone", head(gone=WIDTH), before, "a row that is all gone"),
        ("gone-far", head(gone=0xFFFFFFFF), before, "2^32 − 1 elements gone of a row of 20"),
        ("width-0", head(width=0, gone=0), before, "rows of no element"),
        ("width-1", head(width=1, gone=0), size, "rows of one element: more numbers of rows than elements"),
        ("width-far", head(width=0xFFFFFFFF), size, "rows of 2^32 − 1 elements"),
        ("one-more", one_more, "of 205 rows than 1024", "one number of rows more than there are elements"),
        ("columns-one-more", far, "than 4194304", "one number of columns more than there may be"),
        ("scale-0", head(scale=0.0), "scale", "a scale of 0"),
        ("scale-minus-0", head(scale=-0.0), "scale", "a scale of −0"),
        ("scale-negative", head(scale=-(2.0**-22)), "scale", "a scale below 0"),
        ("scale-infinite", head(scale=float("inf")), "scale", "a scale that is infinite"),
        ("scale-nan", head(scale=float("nan")), "scale", "a scale that is a NaN"),
        *(
            (
                f"shift-{k}",
                SOUND[: SHIFTS + k] + b"\5" + SOUND[SHIFTS + k + 1 :],
                "shift, 5",
                f"of component {k} a shift of 5",
            )
            for k in range(3)
        ),
        ("shift-255", SOUND[:SHIFTS] + b"\xff" + SOUND[SHIFTS + 1 :], "shift, 255", "a shift of 255"),
        ("row-128", with_number(0, (2, 5), 128), "beyond 127", "among the rows' numbers 128"),
        ("row-minus-128", with_number(0, (0, 0), -128), "beyond 127", "among the rows' numbers −128"),
        ("column-128", with_number(1, (1, 19), 128), "beyond 127", "among the columns' numbers 128"),
        ("column-far", with_number(1, (0, 3), 0x7F00), "beyond 127", "among the columns' numbers one of many units"),
        ("column-minus-128", with_number(1, (2, 19), -128), "beyond 127", "among the columns' numbers −128"),
        ("nested", SOUND[: -len(REST)] + SOUND, "another one", "a chunk of mode 3 behind another"),
        ("then-mode-1", SOUND[: -len(REST)] + b"\1" + REST[1:], "mode 1", "a mode behind it that was never released"),
        ("then-mode-4", SOUND[: -len(REST)] + b"\4" + REST[1:], "mode 4", "an unknown mode behind it"),
        ("then-nothing", SOUND[: -len(REST)], "mode None", "nothing behind it"),
        ("then-no-chunk", SOUND[: -len(REST)] + b"\0", cut_off, "mode 0 behind it, without a chunk of lattice"),
        ("then-levels", SOUND[: -len(REST)] + REST[:85], cut_off, "mode 2 behind it, its levels cut off"),
        ("then-cut-off", SOUND[:-1], "fit", "the last byte cut off"),
        ("trailing", SOUND + b"\0", "fit", "a byte behind all of it"),
        ("trailing-of-all", SOUND[: -len(REST)] + b"\0\0\0", cut_off, "a byte behind mode 0 behind it"),
        ("mode-alone", SOUND[:1], cut_off, "the mode alone"),
        ("head", SOUND[: SHIFTS - 1], cut_off, "a head cut off"),
        ("no-shifts", SOUND[:SHIFTS], cut_off, "no shifts"),
        ("shifts", SOUND[: SIZES - 1], cut_off, "the last shift cut off"),
        ("sizes", SOUND[: NUMBERS - 1], cut_off, "sizes cut off"),
        ("no-numbers", SOUND[:NUMBERS], cut_off, "no numbers"),
        ("numbers", SOUND[: -len(REST) - 1], cut_off, "the last of the numbers cut off"),
        ("rows-far", sized(0xFFFFFFFF, SECOND), cut_off, "4 GiB of rows"),
        ("columns-far", sized(FIRST, 0xFFFFFFFF), cut_off, "4 GiB of columns"),
        ("both-far", sized(0x80000000, 0x80000000), cut_off, "sizes whose sum is 2^32"),
        (
            "past-the-end",
            sized(FIRST, len(SOUND) - NUMBERS - FIRST + 1),
            cut_off,
            "columns that end a byte past the end",
        ),
        ("rows-short", sized(FIRST - 1, SECOND + 1), "fit", "rows that end a byte early"),
        ("rows-long", sized(FIRST + 1, SECOND - 1), "fit", "rows that end a byte late"),
        ("columns-long", sized(FIRST, SECOND + 1), "fit", "columns that end a byte late"),
        ("rows-empty", parts(b"", v), "mode None", "no byte of rows"),
        ("columns-empty", parts(u, b""), "no columns", "no byte of columns, in the first chunk"),
        ("rows-trailing", parts(b"\0\0", v), "mode 0", "a byte behind the rows"),
        ("columns-trailing", parts(u, b"\0\0"), "mode 0", "a byte behind the columns"),
        ("rows-drift", parts(b"\4" + u[1:], v), "mode 4", "rows coded by drift"),
    )
    tasks: dict[str, tuple[str, str, str]] = {}
    for name, data, mentions, about in chunks:
        tasks[name] = about, "FormatError", mentions
        more = {"shape": [MANY], "chunk": 32768, "base": "many"} if data is beyond else {}
        family.put(name, "w", (facts | more, [data]), OWN)
    archive = family.archive()
    archive.since("1.4", "mask")
    about = "chunks of codec dare in mode 3 that say what they must not"
    add("codes-of-low-rank", about, "FormatError", "decode", "", archive.build(), tasks=tasks)
