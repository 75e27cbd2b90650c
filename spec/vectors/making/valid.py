"""Archives that every reader must decode, with what they decode to, computed here without any decoder."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from .build import CHUNK, Archive, Item, Part, dumps, kept, mask, noted, spans, vector, whole
from .numbers import (
    BYTES,
    Array,
    Tensor,
    bits,
    converted,
    floats,
    masked,
    narrow,
    noise,
    noise_bytes,
    shifted,
    symbols,
    wide,
)

MASKABLE = ("F64", "F32", "F16", "BF16")
MASK_CODECS = ("bits", "bits+zstd", "adaptive")


@dataclass
class Case:
    """One valid vector."""

    about: str
    archive: Archive
    decoded: dict[str, dict[str, Tensor]]
    file: bool = False
    """As a `.tall` file; a folder if not."""
    given: dict[str, Tensor] | None = None
    """The referenced base."""
    exact: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unlisted: dict[str, bytes] = field(default_factory=dict)


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Register a vector under its function's name."""
    CASES[make.__name__.replace("_", "-")] = make
    return make


class One:
    """One group, one task: what most vectors are."""

    def __init__(self, *, task: str = "a", whole_codec: str = "raw") -> None:
        self.task, self.whole_codec = task, whole_codec
        self.base: dict[str, Tensor] = {}
        self.vectors: dict[str, Item] = {}
        self.masks: dict[str, Item] = {}
        self.privates: dict[str, Item] = {}
        self.decoded: dict[str, Tensor] = {}

    def start(self, name: str, tensor: Tensor, values: Array | None = None, **how: Any) -> None:
        """Add a base tensor, and a vector for it."""
        self.base[name] = tensor
        if values is not None:
            self.vectors[name] = vector(values, tensor.shape, **how)

    def put(self, name: str, item: Item, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        """Add a task's tensor: its entry and what it decodes to."""
        self.masks[name] = item
        self.decoded[name] = Tensor(dtype, shape, data)

    def private(self, name: str, tensor: Tensor, **how: Any) -> None:
        """Add a tensor stored whole."""
        self.privates[name] = whole(tensor, **{"codec": self.whole_codec} | how)
        self.put(name, noted(tensor), tensor.dtype, tensor.shape, tensor.data)

    def archive(self, **more: Any) -> Archive:
        """The archive."""
        base = {n: whole(t, self.whole_codec) for n, t in self.base.items()}
        parts = {"mask": {f"tasks/{self.task}/mask.safetensors": Part("mask", self.task, self.masks)}}
        if self.privates:
            path = f"tasks/{self.task}/private.safetensors"
            parts["private"] = {path: Part("private", self.task, self.privates)}
        vectors = {"vector/0.safetensors": Part("vector", "0", self.vectors)} if self.vectors else {}
        facts: dict[str, Any] = {
            "base": self.base,
            "base_parts": {"base/base.safetensors": Part("base", "", base)} if base else {},
            "groups": [("0", [self.task], vectors)],
            "tasks": {self.task: parts},
        }
        return Archive(**facts | more)

    def case(self, about: str, **more: Any) -> Case:
        """The vector."""
        known = {k: more.pop(k) for k in ("file", "given", "exact", "unlisted") if k in more}
        return Case(about, self.archive(**more), {self.task: self.decoded}, **known)


def _minimal() -> One:
    one = One()
    base, values = floats("F32", [1.0, -2.0, 0.5]), np.array([0.25, 0.5, -0.125], np.float32)
    marks = np.array([1, 0, 1], np.uint8)
    one.start("w", base, values)
    one.put("w", mask(marks, "binary", "F32", (3,), "w"), "F32", (3,), masked(base, "F32", values, marks))
    return one


@case
def minimal() -> Case:
    """The smallest archive with all of base, vector and mask."""
    return _minimal().case("one tensor of three F32; codecs raw, f32, bits", file=True)


@case
def minimal_folder() -> Case:
    """Files of the model, and files that the manifest does not list."""
    files = {
        "config.json": dumps({"format": "tallstore", "version": "1.0", "tasks": ["a"]}),
        "tasks/a/files/config.json": b"{}\n",
        "common/tokenizer/vocab.txt": b"a\nb\n",
        "common/unused.txt": b"",
    }
    return _minimal().case(
        "the same as a folder, manifest indented, with small files, and with files that the manifest does not list",
        files=files,
        task_files={
            "a": {"config.json": "tasks/a/files/config.json", "tokenizer/vocab.txt": "common/tokenizer/vocab.txt"}
        },
        unlisted={"README.md": b"# a model card\n", "tasks/a/stray.safetensors": b"no part of the archive"},
        indent=1,
    )


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
        base, values = _few(dtype, f"{kind} base {n}", n), np.ones(n, np.float32)
        one.start(f"w{n}", base, values, codec="ones")
        for codec in {1023: ("bits",), 1025: ("bits+zstd", "adaptive")}.get(n, MASK_CODECS):
            share = 0.02 if codec == "adaptive" and n == 1025 else 0.4
            marks = symbols(f"{kind} {codec} {n} {share}", n, kind, share)
            item = mask(marks, kind, dtype, base.shape, f"w{n}", codec, scales=[scale] * -(-n // CHUNK))
            one.put(f"{codec} {n}", item, dtype, base.shape, masked(base, dtype, values, marks, scale))
    return one.case(f"every mask codec with {kind} symbols, at odd sizes", file=file)


def _few(dtype: str, seed: str, n: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """A tensor of sixteen different values: it takes little room when it is coded."""
    levels = noise(seed, 16, 118, 126)
    return floats(dtype, levels[np.frombuffer(noise_bytes(f"{seed} places", n), np.uint8) % 16], shape or (n,))


def _cut(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Values that bfloat16 holds exactly."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@case
def masks_binary() -> Case:
    """Binary symbols."""
    return _masks("binary", "F16", file=True)


@case
def masks_signed() -> Case:
    """Signed symbols."""
    return _masks("signed", "BF16", file=False)


def gaps(n: int, marks: dict[int, int], kind: str) -> bytes:
    """A chunk of `adaptive` in form 1, written out by hand."""
    listed = bytearray()
    before = -1
    for at in sorted(marks):
        listed += b"\xff" * ((at - before - 1) // 255) + bytes([(at - before - 1) % 255])
        before = at
    signs = np.packbits(np.array([marks[at] == 2 for at in sorted(marks)], bool), bitorder="little").tobytes()
    return sparse(len(marks), bytes(listed), signs if kind == "signed" else b"")


def sparse(count: int, listed: bytes, signs: bytes = b"", *, gap_bytes: int | None = None) -> bytes:
    """Form 1 from its members."""
    frame = zstandard.ZstdCompressor().compress(listed)
    size = len(listed) if gap_bytes is None else gap_bytes
    return struct.pack("<B3xIII", 1, count, size, len(frame)) + frame + signs


@case
def adaptive_gaps() -> Case:
    """Form 1 of `adaptive` at its edges."""
    one = One(whole_codec="planes+zstd")
    base, values = _few("BF16", "gaps base", 768), np.full(768, 0.0625, np.float32)
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


def codebook(indices: npt.NDArray[np.uint8], table: Array, index_bits: int, layout: int = 0) -> bytes:
    """A chunk of `q8`, `q5`, `q4`."""
    head = struct.pack("<HBB", len(table), index_bits, layout) + table.astype("<f4").tobytes()
    if layout == 1:
        marks = np.flatnonzero(indices)
        coded = gaps(len(indices), dict.fromkeys(marks.tolist(), 1), "binary")
        return head + struct.pack("<I", len(coded)) + coded + _frame_of_indices(indices[marks] - 1, index_bits)
    return head + _frame_of_indices(indices, index_bits)


def _frame_of_indices(indices: npt.NDArray[np.uint8], index_bits: int) -> bytes:
    if index_bits == 4:
        even = np.append(indices, np.zeros(len(indices) % 2, np.uint8))
        indices = even[0::2] | even[1::2] << 4
    return zstandard.ZstdCompressor().compress(indices.tobytes())


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
        n = 1031 if name == "q8" else 61
        base = _few("BF16", f"vectors base {name}", n)
        codec = name.split(" ", maxsplit=1)[0]
        values = _cut(noise(f"vectors {name}", n, 112, 120))
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
    for codec, n in (("f32", 33), ("bf16", 1030), ("q8", 33), ("ones", 9)):
        base = _few("BF16", f"delta base {codec}", n)
        one.start(codec, base)
        values = noise(f"delta {codec}", n, 100, 118)
        if codec != "f32":
            values = np.ones(n, np.float32) if codec == "ones" else _cut(values)
        facts, coded = vector(values, base.shape, codec)
        if codec == "q8":
            table = np.concatenate([np.zeros(1, np.float32), values[:5]])
            indices = (np.frombuffer(noise_bytes("delta indices", n), np.uint8) % 6).astype(np.uint8)
            values, coded = table[indices], [codebook(indices, table, 8)]
        for dtype in ("BF16",) if codec == "bf16" else ("BF16", "F32"):
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
        ("F16", [0.5, float(np.float32(1.3)), -1]),
        ("BF16", [float(np.float32(1e-42))]),
        ("F32", [float(np.float32(3.0e38))]),
        ("F64", [float(np.float32(0.1))]),
        ("F32", [0]),
        ("F32", [-0.0]),
    ):
        n = 2050 if len(given) == 3 else 10
        name = f"{dtype} {given}"
        base, values = _few("F16", name, n, (5, n // 5)), np.full(n, -0.0625, np.float32)
        one.start(name, base, values, codec="q4")
        marks = symbols(name, n, "signed")
        item = mask(marks, "signed", dtype, base.shape, name, "bits+zstd", scales=given)
        each = np.repeat(np.array(given, np.float32), CHUNK)[:n]
        one.put(name, item, dtype, base.shape, masked(base, dtype, values, marks, each))
    return one.case("three chunks with a scale each: zero, negative, subnormal, huge, written as integers", file=True)


@case
def rows() -> Case:
    """More and fewer rows than the base has."""
    one = One(whole_codec="planes+zstd")
    base, values = _few("BF16", "rows base", 1040, (260, 4)), np.full(1040, 0.0625, np.float32)
    one.start("w", base, values, codec="q4")
    for name, first, common in (("more", 261, 260), ("fewer", 90, 90), ("some", 260, 8), ("none", 3, 0), ("few", 4, 2)):
        n = common * 4
        marks = symbols(f"rows {name}", n, "binary")
        data = masked(base, "BF16", values, marks)
        own = floats("BF16", noise(f"rows own {name}", (first - common) * 4), (first - common, 4))
        if own.numel:
            one.privates[name] = whole(own)
        item = mask(marks, "binary", "BF16", (first, 4), "w", rows=common, scales=[1.0] * -(-n // CHUNK))
        one.put(name, item, "BF16", (first, 4), data + own.data)
    own = floats("F16", noise("rows kept", 8), (2, 4))
    one.privates["kept"] = whole(own)
    one.put("kept", kept("F16", (12, 4), "w", rows=10), "F16", (12, 4), converted(base, "F16", 40) + own.data)
    shift = noise("rows delta", 8, 110, 118)
    facts, coded = vector(shift, (2, 4))
    own = floats("F32", noise("rows delta own", 4), (1, 4))
    one.privates["delta"] = whole(own)
    item = facts | {"kind": "delta", "dtype": "F32", "base": "w", "rows": 2, "shape": [3, 4]}, coded
    one.put("delta", item, "F32", (3, 4), shifted(base, "F32", shift) + own.data)
    line = floats("F32", noise("rows line", 5, 118, 126))
    one.start("line", line, noise("rows line vector", 5, 110, 118))
    marks = np.array([1, 1, 0], np.uint8)
    item = mask(marks, "binary", "F32", (3,), "line", rows=3)
    one.put("line", item, "F32", (3,), masked(line, "F32", noise("rows line vector", 5, 110, 118), marks))
    return one.case(
        "tensors with more, fewer and as many rows as the base, masked, kept and shifted; rows 0", file=True
    )


@case
def tied() -> Case:
    """Tied tensors, in a task and in the base."""
    one = _minimal()
    own = floats("F16", [[1.0, 2.0]])
    one.private("head", own)
    one.put("head.tied", ({"kind": "tied", "to": "head"}, None), "F16", (1, 2), own.data)
    first = {"first": ({"kind": "tied", "to": "w"}, None)}
    one.masks = first | one.masks
    one.decoded = {"first": one.decoded["w"]} | one.decoded
    one.base["w.tied"] = one.base["w"]
    one.put("from a tied base", kept("F32", (3,), "w.tied"), "F32", (3,), one.base["w"].data)
    archive = one.archive()
    archive.base_parts["base/base.safetensors"].items["w.tied"] = ({"kind": "tied", "to": "w"}, None)
    return Case(
        "tensors tied to a masked one that comes later, to a private one, and in the base", archive, {"a": one.decoded}
    )


@case
def private() -> Case:
    """Tensors stored whole, of every type."""
    one = One()
    for dtype, size in BYTES.items():
        data = bytes([0, 1, 1, 0, 1]) if dtype == "BOOL" else noise_bytes(f"private {dtype}", 5 * size)
        one.private(dtype, Tensor(dtype, (5,), data))
    one.private("nan", bits("F32", [0x7FC00000, 0x7F800001, 0xFFC12345, 0x7F800000]))
    one.private("nan16", bits("F16", [0x7E00, 0x7C01, 0xFFFF]))
    one.private("scalar", Tensor("I64", (), (-3).to_bytes(8, "little", signed=True)))
    one.private("empty", Tensor("F32", (0, 3), b""))
    one.private("chunks", Tensor("U8", (41, 25), noise_bytes("private chunks", 1025)))
    return one.case("private tensors of every type; NaN payloads; a scalar, an empty tensor, two chunks", file=True)


@case
def small_shapes() -> Case:
    """Scalars and empty tensors that are masked."""
    one = One()
    for name, shape in (("scalar", ()), ("empty", (0,)), ("empty2", (3, 0)), ("ones", (1, 1, 1))):
        n = int(np.prod(shape))
        base = floats("F32", noise(f"small {name}", n, 118, 126), shape)
        values = noise(f"small v {name}", n, 110, 118)
        one.start(name, base, values)
        marks = np.ones(n, np.uint8)
        item = mask(marks, "binary", "F32", shape, name)
        one.put(name, item, "F32", shape, masked(base, "F32", values, marks))
        one.put(f"{name} kept", kept("BF16", shape, name), "BF16", shape, converted(base, "BF16"))
    return one.case("masked and unmoved tensors of no elements and of one")


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
def base_referenced() -> Case:
    """The base lies elsewhere, and the task has other names."""
    one = One()
    for name, dtype in (("encoder.0", "F32"), ("encoder.1", "BF16")):
        base, values = floats(dtype, noise(name, 33, 118, 126), (11, 3)), noise(f"{name} v", 33, 110, 118)
        one.start(name, base, values)
        marks = symbols(name, 33, "binary")
        data = masked(base, dtype, values, marks)
        one.put(f"bert.{name}", mask(marks, "binary", dtype, (11, 3), name), dtype, (11, 3), data)
    one.start("pooler", floats("F16", [1.5, 2.5]))
    one.put("bert.pooler", kept("F16", (2,), "pooler"), "F16", (2,), one.base["pooler"].data)
    one.base["unused"] = floats("F32", [7.0])
    return one.case(
        "storage reference: the base is in base.safetensors beside the archive; the task's names have a prefix",
        file=True,
        storage="reference",
        base_parts={},
        given={**one.base, "more": floats("F32", [1.0])},
    )


@case
def groups() -> Case:
    """Two groups, each with its vector and its chunks."""
    n = 33
    base = _few("BF16", "groups base", n)
    item = whole(base, "planes+zstd")
    archive = Archive(base={"w": base}, base_parts={"base/base.safetensors": Part("base", "", {"w": item})})
    decoded = {}
    for id_, names, chunk in (("0", ["b", "a"], 1024), ("later", ["c"], 2048)):
        values = np.full(n, 0.5 if id_ == "0" else -0.25, np.float32)
        item = vector(values, base.shape, "q4", chunk)
        archive.groups.append((id_, names, {f"vector/{id_}.safetensors": Part("vector", id_, {"w": item})}))
        for name in names:
            marks = symbols(f"groups {name}", n, "binary")
            coded = mask(marks, "binary", "BF16", base.shape, "w", "bits+zstd", chunk=chunk)
            archive.tasks[name] = {"mask": {f"tasks/{name}/mask.safetensors": Part("mask", name, {"w": coded})}}
            decoded[name] = {"w": Tensor("BF16", base.shape, masked(base, "BF16", values, marks))}
    return Case("two groups with a vector each, three tasks, chunks of two sizes", archive, decoded, file=True)


@case
def newer_minor() -> Case:
    """Version 1.9, with members that no reader of 1.0 knows."""
    one = _minimal()
    one.private("h", floats("F32", [2.0]))
    news = {"news": [{"sha256": 1, "kind": None}], "x.y": True}

    def manifest(facts: dict[str, Any]) -> None:
        facts |= news | {"options": {"recipe": "of 2031"}, "writer": "another writer 9"}
        for place in (facts["base"], facts["base"]["tensors"]["w"], facts["groups"][0], facts["tasks"]["a"]):
            place |= news
        facts["groups"][0]["recipe"] = {"id": "new", "λ": [1, 2.5, None]}
        facts["tasks"]["a"] |= {"measured": {"relative_error": None}, "source": {"repo": "x/y"}}
        for record in facts["parts"].values():
            record |= news
            record["header"] |= news

    def description(facts: dict[str, Any]) -> None:
        facts |= news
        for entry in facts["entries"].values():
            entry |= news | {"axis": 0}
            if entry["kind"] == "private":
                entry |= {"rows": "not a member of this kind", "chunks": 1}

    archive = one.archive(version="1.9", on_manifest=manifest)
    for part in archive.parts().values():
        part.version, part.on_description, part.metadata = "1.9", description, {"added": "later"}
    return Case("version 1.9: unknown members everywhere are ignored", archive, {"a": one.decoded}, file=True)


NAMES = (
    "модель.слой.0",
    "層/重み",
    "a b",
    'quote " and \\ backslash',
    "🙂",
    "e\u0301 is not é",
    "é is not e\u0301",
    "../tensor names are no paths",
    "__metadata__ ",
)


@case
def names() -> Case:
    """Tensor names that are not plain."""
    one = One(task="A-task_1.0")
    for number, name in enumerate(NAMES):
        base, values = floats("F32", [float(number)]), np.array([0.5 + number], np.float32)
        one.start(name, base, values)
        marks = np.array([number % 2], np.uint8)
        item = mask(marks, "binary", "F32", (1,), name)
        one.put(name, item, "F32", (1,), masked(base, "F32", values, marks))
    one.put("x" * 1024, ({"kind": "tied", "to": "🙂"}, None), "F32", (1,), one.decoded["🙂"].data)
    return one.case(
        "tensor names in several scripts, not normalised, with spaces, quotes and slashes, and 1,024 bytes long",
        file=True,
    )


@case
def planes() -> Case:
    """Every type in `planes+zstd`."""
    one = One(whole_codec="planes+zstd")
    for dtype, size in BYTES.items():
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
def several_parts() -> Case:
    """Parts of one kind and owner hold one map together."""
    one = One()
    for name in "wxyz":
        base, values = floats("F32", noise(name, 9, 118, 126)), noise(f"{name} v", 9, 110, 118)
        one.start(name, base, values)
        marks = symbols(name, 9, "binary")
        one.put(name, mask(marks, "binary", "F32", (9,), name), "F32", (9,), masked(base, "F32", values, marks))
    one.private("h", floats("F32", [1.0]))
    one.private("i", floats("F32", [2.0]))
    archive = one.archive()

    def cut(parts: dict[str, Part]) -> dict[str, Part]:
        ((path, part),) = parts.items()
        some = list(part.items.items())
        halves = (dict(some[: len(some) // 2]), dict(some[len(some) // 2 :]))
        stem = path.removesuffix(".safetensors")
        return {
            f"{stem}-{number}-of-2.safetensors": Part(part.part, part.owner, half)
            for number, half in enumerate(halves, 1)
        }

    archive.base_parts = cut(archive.base_parts)
    archive.groups = [(id_, tasks, cut(parts)) for id_, tasks, parts in archive.groups]
    archive.tasks["a"] = {kind: cut(parts) for kind, parts in archive.tasks["a"].items()}
    return Case("base, vector, mask and private in two parts each", archive, {"a": one.decoded})


@case
def unmoved() -> Case:
    """A task that is the base."""
    one = One()
    one.start("w", floats("F32", noise("unmoved", 5)))
    one.start("i", Tensor("I64", (2,), noise_bytes("unmoved", 16)))
    one.put("w", kept("F32", (5,), "w"), "F32", (5,), one.base["w"].data)
    one.put("i", kept("I64", (2,), "i"), "I64", (2,), one.base["i"].data)
    return one.case("nothing moved: no vector part, no coded byte in the mask part", file=True)


@case
def no_base() -> Case:
    """A base without tensors."""
    one = One()
    one.private("h", floats("F32", [1.0, 2.0]))
    return one.case("a base without tensors, a task of private tensors alone")


@case
def chunk_sizes() -> Case:
    """Chunks of base and private parts need not be the mask's."""
    one = One()
    for name, vector_chunk, n in (("wide", 1024, 2100), ("narrow", 2048, 1100)):
        base, values = _few("BF16", f"chunks {name}", n), np.full(n, 0.25, np.float32)
        one.start(name, base, values, codec="q4", chunk=vector_chunk)
        marks = symbols(f"chunks {name}", n, "binary", 0.1)
        item = mask(marks, "binary", "BF16", (n,), name, "adaptive", chunk=vector_chunk)
        one.put(name, item, "BF16", (n,), masked(base, "BF16", values, marks))
    archive = one.archive()
    items = archive.base_parts["base/base.safetensors"].items
    items["wide"] = whole(one.base["wide"], "planes+zstd", 2048)
    items["narrow"] = whole(one.base["narrow"], "planes+zstd", 1024)
    return Case("base chunks larger and smaller than the mask's", archive, {"a": one.decoded}, file=True)


@case
def layout() -> Case:
    """White space, and coded bytes in another order than the entries."""
    one = One()
    for name in "abc":
        base, values = floats("F32", noise(f"layout {name}", 11, 118, 126)), noise(f"layout v {name}", 11, 110, 118)
        one.start(name, base, values)
        marks = symbols(f"layout {name}", 11, "binary")
        one.put(name, mask(marks, "binary", "F32", (11,), name), "F32", (11,), masked(base, "F32", values, marks))
    archive = one.archive(indent=3)
    for part in archive.parts().values():
        part.indent, part.stored = 2, ["c", "a", "b"]
    return Case("indented JSON; coded bytes in another order than the entries", archive, {"a": one.decoded})


@case
def zstd_frames() -> Case:
    """Frames as other writers make them."""
    one = One()
    marks = symbols("frames", 512, "binary", 0.1)
    base = _few("BF16", "frames base", len(marks))
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


@case
def exact() -> Case:
    """A task with an `exact` part."""
    one = One()
    originals: dict[str, Tensor] = {}
    items: dict[str, Item] = {}
    for dtype in MASKABLE:
        base = floats(dtype, noise(f"exact {dtype}", 44, 118, 126), (11, 4))
        values = noise(f"exact v {dtype}", 44, 110, 118)
        one.start(dtype, base, values)
        marks = symbols(f"exact {dtype}", 40, "binary")
        own = floats(dtype, noise(f"exact own {dtype}", 8), (2, 4))
        one.privates[dtype] = whole(own)
        data = masked(base, dtype, values, marks) + own.data
        one.put(dtype, mask(marks, "binary", dtype, (12, 4), dtype, rows=10), dtype, (12, 4), data)
        near = wide(dtype, data, dtype) * (1 + noise(f"exact near {dtype}", 48, 110, 112).astype(np.float64) ** 2)
        true = narrow(dtype, near[:40].astype(np.float64 if dtype == "F64" else np.float32)) + own.data
        true = _far(true, BYTES[dtype])
        originals[dtype] = Tensor(dtype, (12, 4), true)
        lost = _differences(true[: 40 * BYTES[dtype]], data, BYTES[dtype])
        word = Tensor({2: "U16", 4: "U32", 8: "U64"}[BYTES[dtype]], (10, 4), lost)
        items[dtype] = whole(word, "planes+zstd" if dtype != "F16" else "raw", kind="difference")
    one.private("h", floats("F32", [1.0]))
    originals["h"] = one.decoded["h"]
    archive = one.archive()
    archive.tasks["a"]["exact"] = {"tasks/a/exact.safetensors": Part("exact", "a", items)}
    return Case(
        "a task with an exact part: decoded/ is without it, exact/ with it",
        archive,
        {"a": one.decoded},
        exact={"a": originals},
    )


def _far(data: bytes, size: int) -> bytes:
    """The first two elements as far away as they can be: a NaN, and the sign bit changed."""
    return b"\xff" * size + data[size : 2 * size - 1] + bytes([data[2 * size - 1] ^ 0x80]) + data[2 * size :]


def _differences(original: bytes, decoded: bytes, size: int) -> bytes:
    """What is stored for each element, by the page's words."""
    out = b""
    for at in range(0, len(original), size):
        d = int.from_bytes(original[at : at + size], "little") - int.from_bytes(decoded[at : at + size], "little")
        half = 1 << (8 * size - 1)
        d = (d + half) % (2 * half) - half
        out += (2 * d if d >= 0 else -2 * d - 1).to_bytes(size, "little")
    return out
