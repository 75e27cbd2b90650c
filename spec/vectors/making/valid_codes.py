"""Valid vectors of codecs and arithmetic, with what they decode to, computed here without any decoder."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from .build import CHUNK, kept, mask, spans, vector
from .numbers import (
    BYTES,
    NEWER,
    Tensor,
    bits,
    converted,
    floats,
    masked,
    noise,
    noise_bytes,
    shifted,
    symbols,
)
from .valid import MASK_CODECS, MASKABLE, Case, One, case, codebook, cut, few, gaps

WORKED = (
    ("3DCCCCCD", "3C4985F0", 0),
    ("3DCCCCCD", "3C4985F0", 1),
    ("3DCCCCCD", "3C4985F0", 2),
    ("BCBB7C08", "3B104E9D", 1),
    ("80000000", "00000000", 0),
    ("80000000", "00000000", 1),
    ("3F808000", "3009705F", 1),
    ("3F818000", "3009705F", 1),
    ("00000003", "80000002", 1),
    ("7F7FFFFF", "7149F2CA", 0),
    ("7F7F0000", "7E967699", 1),
)


@case
def worked_example() -> Case:
    """The example of arithmetic.md."""
    one = One()
    base = bits("F32", [int(row[0], 16) for row in WORKED])
    values = np.array([int(row[1], 16) for row in WORKED], np.uint32).view(np.float32)
    marks = np.array([row[2] for row in WORKED], np.uint8)
    scale = float(np.float32(0.7))
    one.start("w", base, values)
    for dtype in ("F32", "BF16"):
        item = mask(marks, "signed", dtype, base.shape, "w", scales=[scale])
        one.put(dtype, item, dtype, base.shape, masked(base, dtype, values, marks, scale))
    return one.case("the worked example of arithmetic.md")


def _masks(kind: str, dtype: str, *, file: bool) -> Case:
    one = One(whole_codec="planes+zstd")
    scale = float(np.float32(0.0123))
    for n in (1, 7, 8, 9, 1023, 1025) if kind == "binary" else (1, 3, 4, 5, 1025):
        base, values = few(dtype, f"{kind} base {n}", n), np.ones(n, np.float32)
        one.start(f"w{n}", base, values, codec="ones")
        for codec in {1023: ("bits",), 1025: ("adaptive",)}.get(n, MASK_CODECS):
            share = 0.02 if codec == "adaptive" and n == 1025 else 0.4
            marks = symbols(f"{kind} {codec} {n} {share}", n, kind, share)
            item = mask(marks, kind, dtype, base.shape, f"w{n}", codec, scales=[scale] * -(-n // CHUNK))
            one.put(f"{codec} {n}", item, dtype, base.shape, masked(base, dtype, values, marks, scale))
    return one.case(f"every mask codec with {kind} symbols, at odd sizes", file=file)


@case
def masks_binary() -> Case:
    """Binary symbols."""
    return _masks("binary", "F16", file=True)


@case
def masks_signed() -> Case:
    """Signed symbols."""
    return _masks("signed", "BF16", file=False)


@case
def adaptive_gaps() -> Case:
    """Form 1 of `adaptive` at its edges."""
    one = One(whole_codec="planes+zstd")
    base, values = few("BF16", "gaps base", 768), np.full(768, 0.0625, np.float32)
    one.start("w", base, values, codec="q4")
    for name, places in {
        "none": (),
        "first": (0,),
        "last": (767,),
        "gaps of 254, 255, 256": (254, 510, 767),
        "a gap of 510": (3, 514),
        "nine": tuple(range(9)),
    }.items():
        for kind in ("binary",) if name in {"none", "gaps of 254, 255, 256"} else ("signed",):
            chosen = {at: 1 + (at % 2 if kind == "signed" else 0) for at in places}
            marks = np.zeros(768, np.uint8)
            marks[list(chosen)] = list(chosen.values())
            facts, _ = mask(marks, kind, "BF16", base.shape, "w", "adaptive")
            one.put(
                f"{name}, {kind}",
                (facts, [gaps(768, chosen, kind)]),
                "BF16",
                base.shape,
                masked(base, "BF16", values, marks),
            )
    return one.case("form 1 of adaptive: no marks, first and last place, gaps around multiples of 255", file=True)


@case
def vectors() -> Case:
    """Every vector codec."""
    one = One(whole_codec="planes+zstd")
    settings = {"f32": (0, 0), "bf16": (0, 0), "ones": (0, 0)}
    settings |= {
        "q8": (256, 8),
        "q5": (32, 8),
        "q4": (16, 4),
        "q8 of 16": (16, 4),
        "q4 of 5": (5, 8),
        "q5 of 1": (1, 4),
    }
    sparse_ones = {"q8 sparse": (200, 8), "q4 sparse": (16, 4), "q5 all zero": (7, 4), "q8 of 3": (3, 4)}
    settings |= sparse_ones
    for name, (levels, index_bits) in settings.items():
        n = 1031 if name == "q8" else 33
        base = few("BF16", f"vectors base {name}", n)
        codec = name.split(" ", maxsplit=1)[0]
        values = cut(noise(f"vectors {name}", n, 112, 120))
        facts, coded = vector(values, base.shape, codec)
        if codec == "ones":
            values = np.ones(n, np.float32)
        if codec == "f32":
            values = noise("vectors f32", n, 112, 120)
            facts, coded = vector(values, base.shape, codec)
        if levels:
            table = np.concatenate([np.zeros(1, np.float32), noise(f"table {name}", levels - 1, 112, 120)])
            indices = (np.frombuffer(noise_bytes(f"indices {name}", 2 * n), "<u2") % levels).astype(np.uint8)
            if name in sparse_ones:
                indices[symbols(f"zeros {name}", n, "binary", 0.7) == 1] = 0
            if name == "q5 all zero":
                indices[:] = 0
            values = table[indices]
            coded = [codebook(indices[a:b], table, index_bits, int(name in sparse_ones)) for a, b in spans(n)]
        marks = symbols(f"vectors {name}", n, "signed")
        one.base[name], one.vectors[name] = base, (facts, coded)
        two = [0.5, 0.0123291015625][: -(-n // CHUNK)]
        item = mask(marks, "signed", "BF16", base.shape, name, "bits+zstd", scales=two)
        scales = np.where(np.arange(n) < CHUNK, np.float32(0.5), np.float32(0.0123291015625))
        one.put(name, item, "BF16", base.shape, masked(base, "BF16", values, marks, scales))
    return one.case(
        "every vector codec, with one chunk and two; codebooks of both layouts, of fewer levels than allowed, with 4 and 8 bits an index",
        file=True,
    )


@case
def delta() -> Case:
    """Entries of kind `delta`."""
    one = One(whole_codec="planes+zstd")
    for codec, n in (("f32", 33), ("bf16", 33), ("q8", 33), ("ones", 1030)):
        base = few("BF16", f"delta base {codec}", n)
        one.start(codec, base)
        values = noise(f"delta {codec}", n, 100, 118)
        if codec != "f32":
            values = np.ones(n, np.float32) if codec == "ones" else cut(values)
        facts, coded = vector(values, base.shape, codec)
        if codec == "q8":
            table = np.concatenate([np.zeros(1, np.float32), values[:5]])
            indices = (np.frombuffer(noise_bytes("delta indices", n), np.uint8) % 6).astype(np.uint8)
            values, coded = table[indices], [codebook(indices, table, 8)]
        for dtype in ("BF16",) if codec == "ones" else ("BF16", "F32"):
            item = facts | {"kind": "delta", "dtype": dtype, "base": codec}, coded
            one.put(f"{codec} {dtype}", item, dtype, base.shape, shifted(base, dtype, values))
    return one.case("kind delta with every family of vector codec; no vector part at all")


HARD = {
    "F32": [
        0,
        1,
        0x80000000,
        0x007FFFFF,
        0x00800000,
        0x33000000,
        0x33000001,
        0x38800000,
        0x387FC000,
        0x477FEFFF,
        0x477FF000,
    ]
    + [0x3F808000, 0x3F818000, 0x3F808001, 0x3F801000, 0x3F803000, 0x7F7FFFFF, 0x7F7F8000, 0xFF800000, 0x7F800000],
    "F16": [0, 1, 0x8000, 0x03FF, 0x0400, 0x3C01, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x3555],
    "BF16": [0, 1, 0x8000, 0x007F, 0x0080, 0x3F81, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x477F, 0x4780, 0x3380],
    "F64": [0, 1, 1 << 63, 0x3FF0000010000000, 0x3FF0000030000000, 0x3FF0100000000001, 0x3FF0200000000001]
    + [0x3FF0020000000001, 0x3FF0010000000000, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x36A0000000000000]
    + [0x36A0000000000001, 0x3E60000000000000, 0x47EFFFFFF0000000, 0xC1E0000000200000],
}
"""Bits around which rounding goes wrong: ties, subnormal numbers, overflow, infinities."""


@case
def dtypes() -> Case:
    """Every pair of maskable types."""
    one = One()
    for start in MASKABLE:
        words = HARD[start]
        plain = floats(start, noise(f"dtypes {start}", 8, 100, 140))
        base = Tensor(start, (len(words) + 8,), bits(start, words).data + plain.data)
        values = noise(f"dtypes vector {start}", base.numel, 90, 130)
        one.start(start, base, values)
        for dtype in MASKABLE:
            marks = symbols(f"dtypes {start} {dtype}", base.numel, "signed", 0.7)
            marks[: len(words)] = np.arange(len(words)) % 3
            item = mask(marks, "signed", dtype, base.shape, start, scales=[float(np.float32(1.1))])
            one.put(f"{start} to {dtype}", item, dtype, base.shape, masked(base, dtype, values, marks, 1.1))
            item = kept(dtype, base.shape, start)
            one.put(f"{start} kept as {dtype}", item, dtype, base.shape, converted(base, dtype))
    return one.case("every pair of maskable types, masked and unmoved, with ties, subnormals, overflow and infinities")


@case
def scales() -> Case:
    """A scale for each chunk."""
    one = One(whole_codec="planes+zstd")
    for dtype, given in (
        ("F16", [float(np.float32(1.3)), -1]),
        ("BF16", [float(np.float32(1e-42))]),
        ("F32", [float(np.float32(3.0e38))]),
        ("F64", [float(np.float32(0.1))]),
        ("F32", [0]),
        ("F32", [-0.0]),
    ):
        n = 1030 if len(given) == 2 else 10
        name = f"{dtype} {given}"
        base, values = few("F16", name, n, (5, n // 5)), np.full(n, -0.0625, np.float32)
        one.start(name, base, values, codec="q4")
        marks = symbols(name, n, "signed")
        item = mask(marks, "signed", dtype, base.shape, name, "bits+zstd", scales=given)
        each = np.repeat(np.array(given, np.float32), CHUNK)[:n]
        one.put(name, item, dtype, base.shape, masked(base, dtype, values, marks, each))
    return one.case(
        "two chunks with a scale each; scales that are zero, negative, subnormal, huge, written as integers", file=True
    )


@case
def negative_zero() -> Case:
    """The sign of zero."""
    one = One()
    words = [0x80000000, 0x00000000] * 6
    base = bits("F32", words)
    values = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.0, -0.0, -0.0, -0.0, -0.0, -0.0], np.float32)
    marks = np.array([0, 0, 1, 1, 2, 2] * 2, np.uint8)
    one.start("w", base, values)
    for dtype in MASKABLE:
        item = mask(marks, "signed", dtype, (12,), "w")
        one.put(dtype, item, dtype, (12,), masked(base, dtype, values, marks))
        item = mask(marks, "signed", dtype, (12,), "w", scales=[-1])
        one.put(f"{dtype} scaled", item, dtype, (12,), masked(base, dtype, values, marks, -1))
    facts, coded = vector(values, (12,))
    item = facts | {"kind": "delta", "dtype": "F32", "base": "w"}, coded
    one.put("delta", item, "F32", (12,), shifted(base, "F32", values))
    one.put("kept", kept("F32", (12,), "w"), "F32", (12,), base.data)
    return one.case("−0 in base, vector and delta, under every symbol")


@case
def planes() -> Case:
    """Every type in `planes+zstd`."""
    one = One(whole_codec="planes+zstd")
    for dtype, size in ((each, BYTES[each]) for each in BYTES if each not in NEWER):
        n = 200 if dtype == "BF16" else 60
        if dtype in MASKABLE:
            data = floats(dtype, noise(f"planes {dtype}", n, 120, 123)).data
        else:
            low = np.frombuffer(noise_bytes(f"planes {dtype}", n), np.uint8) % (2 if dtype == "BOOL" else 7)
            words = np.zeros((n, size), np.uint8)
            words[:, 0] = low
            words[:, -1] |= low
            data = words.tobytes()
        one.private(dtype, Tensor(dtype, (n,), data))
    one.private("noise", Tensor("U32", (33,), noise_bytes("planes noise", 4 * 33)))
    one.private("one", floats("F32", [-1.0]))
    one.start("w", floats("F32", noise("planes base", 40, 120, 123)))
    one.put("w", kept("F32", (40,), "w"), "F32", (40,), one.base["w"].data)
    return one.case("planes+zstd for every element type: planes coded and planes as they are", file=True)


@case
def zstd_frames() -> Case:
    """Frames as other writers make them."""
    one = One()
    marks = symbols("frames", 512, "binary", 0.1)
    base = few("BF16", "frames base", len(marks))
    one.start("w", base, np.ones(len(marks), np.float32), codec="ones")
    packed = np.packbits(marks, bitorder="little").tobytes()
    facts, _ = mask(marks, "binary", "BF16", base.shape, "w", "bits+zstd", scales=[0.125])
    data = masked(base, "BF16", np.ones(len(marks), np.float32), marks, 0.125)
    makers = {
        "level 19": zstandard.ZstdCompressor(level=19),
        "checksum": zstandard.ZstdCompressor(level=1, write_checksum=True),
        "stored": None,
    }
    for name, maker in makers.items():
        frame = _stored_frame(packed) if maker is None else maker.compress(packed)
        one.put(name, (facts, [frame]), "BF16", base.shape, data)
    return one.case("zstd frames of other levels, with a checksum, and in several raw blocks", file=True)


def _stored_frame(data: bytes) -> bytes:
    """A frame of raw blocks of at most 100 bytes, its size in 8 bytes, with a window descriptor."""
    out = b"\x28\xb5\x2f\xfd" + bytes([0xC0, 0x00]) + struct.pack("<Q", len(data))
    for start in range(0, len(data), 100):
        piece = data[start : start + 100]
        last = start + 100 >= len(data)
        out += struct.pack("<I", last | len(piece) << 3)[:3] + piece
    return out
