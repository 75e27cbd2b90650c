"""Coded bytes that every reader must refuse: chunks whose checksum is right and whose content is not."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import zstandard

from .build import Archive, Item, Part, mask, noted, vector, whole
from .invalid import BASE, CASES, MASK, PRIVATE, VECTOR, Case, sound, zipped
from .numbers import Tensor, floats
from .valid import codebook, sparse


def frame(data: bytes, **how: Any) -> bytes:
    """A zstd frame."""
    return zstandard.ZstdCompressor(**how).compress(data)


def claiming(size: int, data: bytes) -> bytes:
    """A frame whose declared content size is a lie."""
    made = frame(data)
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + made[zstandard.frame_header_size(made) :]


SIGNED = {"kind": "signed"}
MASKS = (
    ("bits-short", "bits", b"", {}, "bytes of mask", "a mask of no bytes"),
    ("bits-long", "bits", b"\1\0", {}, "bytes of mask", "a mask with a byte more"),
    ("bits-padding", "bits", b"\x20", {"n": 5}, "behind", "a bit behind the last symbol"),
    ("bits-symbol-3", "bits", b"\x03\0", SIGNED, "symbol", "symbol 3"),
    ("bits-signed-padding", "bits", b"\x10", SIGNED | {"n": 2}, "behind", "a symbol behind the last of a signed mask"),
    ("zstd-not-a-frame", "bits+zstd", b"\1", {}, "zstd", "bytes that are no frame"),
    ("zstd-declares-more", "bits+zstd", frame(bytes(1 << 20)), {}, "declares", "a frame of 1 MiB where a byte is expected"),
    ("zstd-declares-2-to-60", "bits+zstd", claiming(1 << 60, b"\1"), {}, "declares", "a frame that declares 2^60 bytes"),
    ("zstd-bomb", "bits+zstd", claiming(1, bytes(1 << 24)), {}, "*", "a frame that declares a byte and holds 16 MiB"),
    ("zstd-holds-less", "bits+zstd", claiming(64, bytes(8)), {"n": 512}, "*", "a frame that declares 64 bytes and holds 8"),
    ("zstd-undeclared", "bits+zstd", frame(b"\1", write_content_size=False), {}, "declares",
     "a frame that does not declare its size"),
    ("zstd-trailing", "bits+zstd", frame(b"\1") + b"\0", {}, "*", "a byte behind the frame"),
    ("zstd-two-frames", "bits+zstd", frame(b"\1") + frame(b""), {}, "*", "two frames"),
    ("zstd-skippable", "bits+zstd", struct.pack("<II", 0x184D2A50, 1) + b"\1", {}, "zstd", "a skippable frame"),
    ("zstd-dictionary", "bits+zstd", b"\x28\xb5\x2f\xfd\x21\x07\x01" + frame(b"\1")[6:], {}, "declares",
     "a frame that needs a dictionary"),
    ("zstd-truncated", "bits+zstd", frame(bytes(range(64)))[:-9], {"n": 512}, "*", "a frame cut off"),
    ("zstd-checksum", "bits+zstd", frame(b"\1", write_checksum=True)[:-1] + b"\0", {}, "*",
     "a frame whose own checksum is wrong"),
    ("zstd-padding", "bits+zstd", frame(b"\x20"), {"n": 5}, "behind", "a bit behind the last symbol"),
    ("adaptive-empty", "adaptive", b"", {}, "cut off", "a chunk of no bytes"),
    ("adaptive-form", "adaptive", b"\2" + bytes(15), {}, "neither", "an unknown form"),
    ("adaptive-form-padding", "adaptive", b"\1\0\0\1" + sparse(1, b"\0")[4:], {}, "neither", "padding that is not zero"),
    ("adaptive-cut-off", "adaptive", sparse(1, b"\0")[:12], {}, "cut off", "a chunk cut off in its head"),
    ("adaptive-frame-short", "adaptive", sparse(1, b"\0")[:-1], {}, "fit", "a frame shorter than said"),
    ("adaptive-frame-long", "adaptive", sparse(1, b"\0") + b"\0", {}, "fit", "bytes behind the frame"),
    ("adaptive-past-end", "adaptive", sparse(1, b"\x08"), {}, "fit", "a mark behind the end"),
    ("adaptive-past-end-by-sum", "adaptive", sparse(3, b"\3\2\1"), {}, "fit", "gaps that add up past the end"),
    ("adaptive-open-gap", "adaptive", sparse(1, b"\xff\0\xff"), {"n": 600}, "within a gap", "a list that ends within a gap"),
    ("adaptive-too-many-marks", "adaptive", sparse(9, bytes(9)), {}, "fit", "more marks than symbols"),
    ("adaptive-count-more", "adaptive", sparse(3, b"\0\0"), {}, "marks", "fewer marks than said"),
    ("adaptive-count-less", "adaptive", sparse(1, b"\0\0"), {"n": 600}, "marks", "more marks than said"),
    ("adaptive-gap-bytes-many", "adaptive", sparse(1, b"\0", gap_bytes=1 << 31), {}, "fit", "2^31 gap bytes"),
    ("adaptive-gap-bytes-lie", "adaptive", sparse(2, b"\0", gap_bytes=2), {}, "declares",
     "a frame of fewer gap bytes than said"),
    ("adaptive-empty-frame", "adaptive", struct.pack("<B3xIII", 1, 0, 0, 12) + frame(b"") + b"\0\0\0", {}, "followed",
     "bytes behind an empty frame"),
    ("adaptive-sign-padding", "adaptive", sparse(1, b"\0", b"\2"), SIGNED, "sign", "a bit behind the last sign"),
    ("adaptive-signs-missing", "adaptive", sparse(1, b"\0"), SIGNED, "fit", "no signs"),
    ("adaptive-signs-in-binary", "adaptive", sparse(1, b"\0", b"\1"), {}, "fit", "signs in a binary mask"),
    ("adaptive-packed-symbol-3", "adaptive", b"\0" + frame(b"\x03\0"), SIGNED, "symbol", "symbol 3 in form 0"),
)  # fmt: skip


def _error(mentions: str) -> tuple[str, str]:
    """Frames that fail while they are decoded are damaged; all else that is wrong is not of the format."""
    return ("DamagedError", "zstd frame") if mentions == "*" else ("FormatError", mentions)


def _masks() -> None:
    archive = sound()
    base = floats("BF16", np.zeros(600))
    archive.base["w"] = base
    archive.parts()[BASE].items["w"] = whole(base, "planes+zstd")
    archive.parts()[VECTOR].items["w"] = vector(np.ones(600, np.float32), (600,), "ones")
    items, tensors = {}, {}
    for name, codec, data, how, mentions, about in MASKS:
        n = how.get("n", 8)
        facts, _ = mask(np.zeros(0), how.get("kind", "binary"), "BF16", (n,), "w", codec, rows=n)
        items[name], tensors[name] = (facts, [data]), (about, *_error(mentions))
    archive.parts()[MASK].items = items
    about = "masks, zstd frames and gap lists that say what they must not"
    CASES["codes-of-masks"] = Case(about, "ArchiveError", "decode", file=zipped(archive.build()), tensors=tensors)


LEVELS, ZEROS = np.array([0.0, 0.5, -0.25], np.float32), np.zeros(8, np.uint8)
FINE = codebook(ZEROS, LEVELS, 8)
MANY = np.zeros(17, np.float32)
ONE = np.array([0, 0, 1, 0, 0, 0, 0, 0], np.uint8)
SPARSE = codebook(ONE, LEVELS, 8, 1)


def _changed(at: int, new: bytes) -> bytes:
    return FINE[:at] + new + FINE[at + len(new) :]


VECTORS = (
    ("f32-short", "f32", bytes(28), "expected", "a value is missing"),
    ("f32-nan", "f32", bytes(28) + b"\0\0\xc0\x7f", "finite", "NaN in a vector"),
    ("f32-infinity", "f32", bytes(28) + b"\0\0\x80\xff", "finite", "−∞ in a vector"),
    ("bf16-long", "bf16", bytes(18), "expected", "a value too many"),
    ("bf16-infinity", "bf16", bytes(14) + b"\x80\x7f", "finite", "∞ in a vector"),
    ("ones-with-bytes", "ones", b"\0", "expected", "a byte where none is expected"),
    ("codebook-cut-off", "q8", FINE[:3], "cut off", "a codebook cut off in its head"),
    ("codebook-table-cut-off", "q8", FINE[:10], "levels", "a codebook cut off in its table"),
    ("codebook-no-levels", "q8", struct.pack("<HBB", 0, 8, 0) + frame(bytes(8)), "levels", "a table without levels"),
    ("codebook-too-many-levels", "q4", codebook(ZEROS, MANY, 8), "levels", "17 levels in q4"),
    ("codebook-index-bits", "q8", _changed(2, b"\2"), "levels", "2 bits an index"),
    ("codebook-layout", "q8", _changed(3, b"\2"), "layout", "an unknown layout"),
    ("codebook-sparse-cut-off", "q8", _changed(3, b"\1")[:18], "cut off", "a mask cut off in its length"),
    ("codebook-sparse-long", "q8", FINE[:3] + b"\1" + FINE[4:16] + b"\xff\xff\xff\xff\1", "mask", "a mask of 4 GiB"),
    ("codebook-sparse-marks", "q8", SPARSE[:24] + b"\x09" + SPARSE[25:], "fit", "a mask of more marks than values"),
    (
        "codebook-sparse-outside",
        "q8",
        codebook(ONE * np.uint8(3), LEVELS, 8, 1),
        "outside",
        "a level that is not there",
    ),
    ("codebook-sparse-no-levels", "q8", codebook(ONE, LEVELS[:1], 4, 1), "outside", "a mark, and no level but 0"),
    (
        "codebook-sparse-indices",
        "q8",
        SPARSE[: -len(frame(b"\0"))] + frame(b"\0\0"),
        "declares",
        "more indices than marks",
    ),
    ("codebook-4-bits-17-levels", "q5", codebook(ZEROS, MANY, 4), "levels", "17 levels with 4 bits an index"),
    ("codebook-nan", "q8", _changed(8, b"\0\0\xc0\x7f"), "finite", "a level that is NaN"),
    ("codebook-no-zero", "q8", _changed(4, b"\0\0\x80\x3f"), "begin", "a table that does not begin with 0"),
    ("codebook-negative-zero", "q8", _changed(4, b"\0\0\0\x80"), "begin", "a table that begins with −0"),
    ("codebook-outside", "q8", codebook(ZEROS + np.uint8(3), LEVELS, 8), "outside", "index 3 of three levels"),
    ("codebook-outside-4", "q4", codebook(ZEROS + np.uint8(3), LEVELS, 4), "outside", "the same, 4 bits an index"),
    ("codebook-indices-short", "q8", codebook(ZEROS[:7], LEVELS, 8), "declares", "an index is missing"),
    (
        "codebook-padding",
        "q4",
        codebook(ZEROS, LEVELS, 4)[:16] + frame(b"\0\0\0\x10"),
        "behind",
        "an index behind the last",
    ),
)


def _vectors() -> None:
    archive = sound()
    tensors = {}
    for name, codec, data, mentions, about in VECTORS:
        n = 7 if name == "codebook-padding" else 8
        facts = {"kind": "delta", "dtype": "BF16", "shape": [n], "base": "w", "rows": n, "codec": codec, "chunk": 1024}
        archive.parts()[MASK].items[name], tensors[name] = (facts, [data]), (about, *_error(mentions))
    facts, _ = vector(np.zeros(0), (8,))
    archive.parts()[VECTOR].items["w"] = facts, [bytes(28) + b"\0\0\xc0\x7f"]
    tensors["w"] = ("NaN in the group's own vector", "FormatError", "finite")
    about = "vectors that are not finite, of a wrong size, or with a spoiled codebook"
    CASES["codes-of-vectors"] = Case(about, "ArchiveError", "decode", file=zipped(archive.build()), tensors=tensors)


PLAIN = struct.pack("<II", 8, 8) + bytes(16)
WHOLES = (
    ("raw-short", "raw", bytes(15), "raw bytes", "a byte is missing"),
    ("raw-long", "raw", bytes(17), "raw bytes", "a byte too many"),
    ("planes-cut-off", "planes+zstd", PLAIN[:7], "cut off", "planes cut off in their lengths"),
    ("planes-short", "planes+zstd", PLAIN[:-1], "fit", "planes shorter than said"),
    ("planes-long", "planes+zstd", PLAIN + b"\0", "fit", "bytes behind the planes"),
    ("planes-too-long", "planes+zstd", struct.pack("<II", 9, 7) + bytes(16), "fit", "a plane longer than its elements"),
    ("planes-overflow", "planes+zstd", struct.pack("<II", 0xFFFFFFF8, 16) + bytes(8), "fit",
     "lengths whose sum overflows 32 bits"),
    ("planes-not-a-frame", "planes+zstd", struct.pack("<II", 7, 8) + bytes(15), "zstd", "a short plane that is no frame"),
    ("planes-frame-lies", "planes+zstd", struct.pack("<II", 8, 7) + bytes(8) + b"\x28\xb5\x2f\xfd\x20\xff\0", "declares",
     "a plane's frame of 255 bytes where 8 are expected"),
)  # fmt: skip


def _wholes() -> None:
    privates: dict[str, Item] = {}
    tensors = {}
    for name, codec, data, mentions, about in WHOLES:
        facts = {"kind": "whole", "dtype": "BF16", "shape": [8], "codec": codec, "chunk": 1024}
        privates[name], tensors[name] = (facts, [data]), (about, *_error(mentions))
    masks = {name: noted(Tensor("BF16", (8,), b"")) for name in privates}
    parts = {"mask": {MASK: Part("mask", "a", masks)}, "private": {PRIVATE: Part("private", "a", privates)}}
    archive = Archive(groups=[("0", ["a"], {})], tasks={"a": parts})
    about = "whole tensors of a wrong size or with spoiled planes"
    CASES["codes-of-wholes"] = Case(about, "ArchiveError", "decode", file=zipped(archive.build()), tensors=tensors)


def make() -> None:
    """Register them all."""
    for step in (_masks, _vectors, _wholes):
        step()
