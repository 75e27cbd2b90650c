"""A valid vector of version 1.4: marks and levels given the dither that drew them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import zstandard

from tallstore.codecs import LOSSLESS, MASK, WHOLE

from .build import CHUNK, Item, mask, spans
from .numbers import masked, noise_bytes, shifted, symbols
from .valid import Case, One, case, few
from .valid_dare import drawn

Numbers = npt.NDArray[np.int64]
TURNS = 0xFFFFFE00
"""A first place from which on 2^32 is passed within a chunk."""
FORMS = {
    "all classes": (20, 16, 0, 0),
    "all, one class": (24, 1, 0, TURNS),
    "all, two classes": (23, 2, 7, 99),
    "the least classes": (12, 16, 0, 5),
    "one place": (0, 1, 0, 77),
    "half, in live blocks": (19, 16, 6, 17),
    "a quarter": (22, 1, 0, TURNS + 11),
    "some": (17, 13, 9, 123456789),
    "blocks larger than a chunk": (16, 7, 24, 3),
    "all, in live blocks": (20, 16, 6, 0xFFFFFFFF),
}
"""shift, classes, block, first."""


def frame(data: bytes) -> bytes:
    """A zstd frame."""
    return zstandard.ZstdCompressor().compress(data)


def rotated(words: npt.NDArray[np.uint16]) -> bytes:
    """A chunk of `planes+zstd` of BF16, its planes as they are."""
    turned = words << 1 | words >> 15
    planes = (turned & 0xFF).astype(np.uint8).tobytes(), (turned >> 8).astype(np.uint8).tobytes()
    return struct.pack("<II", len(words), len(words)) + planes[0] + planes[1]


def steps(before: npt.NDArray[np.uint16], after: npt.NDArray[np.uint16], mode: int | None = None) -> bytes:
    """A chunk of `lattice`: in a mode, or in the one that is the smallest."""
    if mode == 0:
        assert np.array_equal(before, after)
        return b"\0"
    if mode == 1:
        d = after.astype(np.int64) - before
        zigzag = np.where(d < 0, -2 * d - 1, 2 * d).astype(np.uint16)
        return b"\1" + WHOLE["planes+zstd"].encode(zigzag.view(np.uint8), "U16")
    if mode == 2:
        return b"\2" + rotated(after)
    return LOSSLESS["lattice"].encode(after.view(np.uint8), before.view(np.uint8), "BF16")


def packed(
    numbers: Numbers, form: Sequence[int], live: npt.NDArray[np.bool_] | None = None, mode: int | None = None
) -> bytes:
    """Numbers as dither.md has them, by hand but for what `lattice` and `adaptive` code."""
    (shift, classes, block, first), n = form, len(numbers)
    classed = np.array(drawn(first, n)) >> shift
    picked, flags = classed < classes, b""
    if block:
        assert live is not None
        picked &= live[np.arange(n) >> block]
        flags = frame(np.packbits(live, bitorder="little").tobytes())
    before = (128 * (classed[picked] + 1)).astype(np.uint16)
    coded = steps(before, (before + numbers[picked]).astype(np.uint16), mode)
    others = b""
    if classes << shift < 1 << 24:
        left = np.where(picked, 0, numbers)
        others = MASK["adaptive"].encode(np.where(left < 0, 2, left).astype(np.uint8), "signed")
    else:
        assert not numbers[~picked].any()
    return struct.pack("<BBBxIII", shift, classes, block, first, len(flags), len(coded)) + flags + coded + others


def made(seed: str, n: int, form: Sequence[int], most: int, mode: int | None = None) -> tuple[Numbers, list[bytes]]:
    """Numbers up to `most`, of which fewer are not 0 the more is drawn, and their chunks; places count on."""
    shift, classes, block, first = form
    rolls = np.frombuffer(noise_bytes(f"{seed} rolls", 2 * n), "<u2") / 65536
    size = np.frombuffer(noise_bytes(f"{seed} sizes", n), np.uint8) % max(most, 1) + (most > 0)
    signs = np.where(np.frombuffer(noise_bytes(f"{seed} signs", n), np.uint8) & 1, -1, 1)
    u = np.array(drawn(first, n)) / 2**24
    numbers: Numbers = np.where((rolls < 0.6 * np.exp(-4 * u)) & (mode != 0), size * signs, 0).astype(np.int64)
    coded = []
    for a, b in spans(n):
        here = shift, classes, block, (first + a) % 2**32
        live = np.frombuffer(noise_bytes(f"{seed} live {a}", -(-(b - a) >> block) if block else 0), np.uint8) % 3 > 0
        outside = ~live[np.arange(b - a) >> block] if block else np.zeros(b - a, bool)
        if classes << shift == 1 << 24:
            numbers[a:b][outside] = 0
        else:
            classed = np.array(drawn(here[3], b - a)) >> shift
            outside |= classed >= classes
            numbers[a:b][outside] = np.sign(numbers[a:b][outside])
        coded.append(packed(numbers[a:b], here, live, mode))
    return numbers, coded


@case
def dither() -> Case:
    """Codecs `dither` and `dither-levels`."""
    one = One(whole_codec="planes+zstd")
    _marks(one)
    _levels(one)
    archive = one.archive(version="1.4")
    for part in archive.parts().values():
        part.version = "1.4"
    about = "codecs dither and dither-levels: both modes, classes and live blocks of all kinds, places past 2^32, all levels"
    return Case(about, archive, {one.task: one.decoded}, file=True)


def _marks(one: One) -> None:
    for kind, n in (("binary", 9), ("signed", 1300)):
        base, values = few("BF16", f"dither {kind}", n), np.full(n, 0.0625, np.float32)
        one.start(f"w {kind}", base, values, codec="ones" if kind == "signed" else "q4")
        values = np.ones(n, np.float32) if kind == "signed" else values
        marks = symbols(f"dither {kind}", n, kind)
        item = mask(marks, kind, "BF16", base.shape, f"w {kind}", "dither")
        assert item[1] is not None
        assert {coded[0] for coded in item[1]} == {0}
        one.put(f"mode 0 {kind}", item, "BF16", base.shape, masked(base, "BF16", values, marks))
    for n in (1, 63, 64, 65, 1300):
        base, scale = few("BF16", f"dither base {n}", n), float(np.float32(0.0123))
        one.start(f"w{n}", base, np.ones(n, np.float32), codec="ones")
        scales = [scale] * -(-n // CHUNK)
        for name, form in FORMS.items():
            modes = (None, 0, 1, 2) if (n, name) in {(64, "all classes"), (65, "half, in live blocks")} else (None,)
            for mode in modes:
                label = f"{name} {n}" if mode is None else f"{name} {n}, mode {mode} within"
                numbers, coded = made(label, n, form, 1, mode)
                marks = np.where(numbers < 0, 2, numbers).astype(np.uint8)
                facts, _ = mask(marks[:0], "signed", "BF16", base.shape, f"w{n}", "dither", scales=scales)
                item: Item = (facts, [b"\1" + each for each in coded])
                one.put(label, item, "BF16", base.shape, masked(base, "BF16", np.ones(n), marks, scale))


def _levels(one: One) -> None:
    tables = {
        "no level": [],
        "one": [0.015625],
        "some": [0.5, -0.25, 0.0, 1e-40, 0.5, -0.0, 3.0e38],
        "all": [float(np.float32(0.001 * k)) for k in range(1, 128)],
    }
    for n in (5, 1300):
        base = few("F32", f"dither levels {n}", n)
        one.start(f"l{n}", base)
        for name, table in tables.items():
            for at, (form_name, form) in enumerate(FORMS.items()):
                left = form[1] << form[0] < 1 << 24
                if at % 2 == (n == 5) and not (left and not table):
                    label = f"levels: {name}, {form_name} {n}"
                    numbers, coded = made(label, n, form, len(table))
                    levels = np.array(table, np.float32)
                    values = np.concatenate([[np.float32(0)], levels, -levels[::-1]])[numbers]
                    head = bytes([len(table)]) + levels.astype("<f4").tobytes()
                    facts = {"kind": "delta", "dtype": "F32", "shape": [n], "base": f"l{n}", "codec": "dither-levels"}
                    item: Item = (facts | {"chunk": CHUNK}, [head + each for each in coded])
                    one.put(label, item, "F32", base.shape, shifted(base, "F32", values))
    base, n = few("BF16", "dither shared", 70), 70
    values = np.array([0.5, -0.5, 0.0, 0.25, -0.125], np.float32)[np.arange(n) % 5]
    one.start("shared", base, values, codec="dither-levels")
    marks = symbols("dither shared", n, "binary")
    item = mask(marks, "binary", "BF16", base.shape, "shared")
    one.put("a shared vector", item, "BF16", base.shape, masked(base, "BF16", values, marks))
