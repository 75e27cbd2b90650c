"""Parts, and archives as a whole, that every reader must refuse."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from .build import Archive, Facts, Part, dumps, kept, mask, noted, vector, whole
from .invalid import BASE, CASES, MASK, PRIVATE, VECTOR, Case, add, bare, small, sound, tied, zipped
from .numbers import Tensor, bits, floats


class Many:
    """One archive with many spoiled tasks: each has one part, with a mask for the one base tensor."""

    def __init__(self) -> None:
        self.archive = sound()
        self.tasks: dict[str, tuple[str, str, str]] = {}
        self._manifests: list[Callable[[Facts], Any]] = []
        self._files: list[Callable[[dict[str, bytes]], Any]] = []
        self.archive.on_manifest = lambda facts: [spoil(facts) for spoil in self._manifests] and None
        self.archive.on_files = lambda files: [spoil(files) for spoil in self._files] and None

    def put(self, name: str, about: str, error: str, mentions: str, **hands: Any) -> str:
        """A task whose part is built by other hands; the manifest's hashes are of what came out. Returns its path."""
        part = Part("mask", name, {"w": mask(np.ones(8, np.uint8), "binary", "BF16", (8,), "w")})
        for key, value in hands.items():
            setattr(part, key, value)
        path = f"tasks/{name}/m"
        self.archive.groups[0][1].append(name)
        self.archive.tasks[name] = {"mask": {path: part}}
        self.tasks[name] = about, error, mentions
        return path

    def slot(self, name: str, about: str, mentions: str, spoil: Callable[[Facts], Any]) -> None:
        """A safetensors header changed."""
        self.put(name, about, "FormatError", mentions, on_header=lambda h: spoil(h) and None)

    def entry(
        self, name: str, about: str, mentions: str, spoil: Callable[[Facts], Any], error: str = "FormatError"
    ) -> None:
        """An entry changed."""
        self.put(name, about, error, mentions, on_description=lambda d: spoil(d["entries"]["w"]) and None)

    def later(self, name: str, about: str, mentions: str, change: Callable[[bytes], bytes]) -> None:
        """A file changed after its hashes were taken."""
        path = self.put(name, about, "DamagedError", mentions)
        self._files.append(lambda files: files.update({path: change(files[path])}))

    def manifest(self, spoil: Callable[[Facts], Any]) -> None:
        """Change the manifest."""
        self._manifests.append(spoil)

    def files(self, spoil: Callable[[dict[str, bytes]], Any]) -> None:
        """Change the files."""
        self._files.append(spoil)

    def end(self, name: str, about: str) -> None:
        """Register the archive."""
        CASES[name] = Case(about, "ArchiveError", "decode", file=zipped(self.archive.build()), tasks=self.tasks)


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _reshaped(header: Facts, start: int, stop: int) -> None:
    header["w"] = {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}


def _doubled_slot(header: bytes, data: bytes) -> tuple[bytes, bytes]:
    raw = header[8:].rstrip()
    raw = raw[:-1] + b"," + raw[raw.index(b'"w":{"dtype"') : -1] + b"}"
    raw += b" " * (-(8 + len(raw)) % 64)
    return struct.pack("<Q", len(raw)) + raw, data


def _doubled_entry(header: Facts) -> None:
    words = header["__metadata__"]["tallstore"]
    header["__metadata__"]["tallstore"] = words.replace('"w":{', '"w":{"kind":"tied","to":"w"},"w":{', 1)


def _deep() -> Any:
    value: Any = []
    for _ in range(32):
        value = [value]
    return value


def _swap(values: dict[str, Any], first: str, second: str) -> None:
    values[first], values[second] = values[second], values[first]


def _parts() -> None:
    """Files and headers."""
    many = Many()
    path = many.put("part-missing", "a part is not there", "DamagedError", "missing")
    many.files(lambda files, path=path: files.pop(path))
    many.later("part-truncated", "a part lacks its last byte", "bytes", lambda d: d[:-1])
    many.later("part-grown", "a part has a byte more", "bytes", lambda d: d + b"\0")
    many.later("part-header-damaged", "a bit of a header is flipped", "sha256", lambda d: _flip(d, 100))
    many.later("part-data-damaged", "a bit of coded bytes is flipped", "checksum", lambda d: _flip(d, len(d) - 8))
    pair = [
        many.put(
            f"part-swapped-{n}", "two tasks' parts have changed places, with their hashes", "FormatError", "swapped"
        )
        for n in (1, 2)
    ]
    many.manifest(lambda m: _swap(m["parts"], *pair))
    many.files(lambda files: _swap(files, *pair))
    many.put("part-other-owner", "a part of another task", "FormatError", "'b'", owner="b")
    many.put(
        "part-other-kind", "a mask part that says it is private", "FormatError", "private", part="private", items={}
    )
    many.put("part-kind-array", "an array as the kind of a part", "FormatError", "unknown", part=["mask"])
    many.put("part-newer-major", "a part of version 2.0", "VersionError", "2.0", version="2.0")
    for name, about, mentions, hand in (
        ("header-huge", "a header that claims 2^40 bytes", "cap", lambda h, d: (struct.pack("<Q", 1 << 40) + h[8:], d)),
        ("header-past-end", "a header that claims more than the file has", "cut off",
         lambda h, d: (struct.pack("<Q", 1 << 20) + h[8:], d)),
        ("header-shorter", "a header that claims less than the manifest says", "long", lambda h, d: (h + b" " * 64, d)),
        ("header-of-no-bytes", "a part of eight bytes and no header", "JSON", lambda _h, _d: (bytes(8), b"")),
        ("header-unaligned", "data begins at a multiple of 8, not of 64", "multiple",
         lambda h, d: (struct.pack("<Q", len(h)) + h[8:] + b" " * 8, d)),
        ("header-trailing", "bytes behind the last tensor", "long", lambda h, d: (h, d + bytes(8))),
        ("header-doubled", "a tensor twice", "twice", _doubled_slot),
    ):  # fmt: skip
        many.put(name, about, "FormatError", mentions, on_bytes=hand)
    path = many.put("header-over-cap", "a header of 25,000,009 bytes", "FormatError", "cap")
    record = {"size": 1 << 30, "header": {"size": 25000009, "sha256": "0" * 64}}
    many.manifest(lambda m, path=path: m["parts"][path].update(record))
    for name, about, mentions, spoil in (
        ("header-gap", "a gap before the first tensor", "gap", lambda h: _reshaped(h, 8, 16)),
        ("header-overlap", "two tensors on the same bytes", "overlap",
         lambda h: h.update(x={"dtype": "U8", "shape": [8], "data_offsets": [4, 12]})),
        ("header-shape-lies", "a shape that does not fill its bytes", "hold", lambda h: h["w"].update(shape=[9])),
        ("header-offset-negative", "a negative offset", "offsets", lambda h: h["w"].update(data_offsets=[-8, 0])),
        ("header-extra-member", "an unknown member in a tensor's description", "description",
         lambda h: h["w"].update(offset=0)),
        ("header-dtype", "coded bytes of another type than U8", "stored", lambda h: h["w"].update(dtype="I8")),
        ("header-metadata", "metadata that is not text", "metadata", lambda h: h["__metadata__"].update(x=1)),
        ("header-no-description", "a safetensors file that is no part", "not a part",
         lambda h: h["__metadata__"].pop("tallstore")),
        ("description-broken", "a description that is no JSON", "JSON", lambda h: h["__metadata__"].update(tallstore="{")),
        ("description-doubled-entry", "an entry twice", "twice", _doubled_entry),
    ):  # fmt: skip
        many.slot(name, about, mentions, spoil)
    many.slot("header-deep", "a header nested 33 deep", "nested", lambda h: h.update(x=_deep()))
    many.slot("description-deep", "a description nested 33 deep", "nested",
              lambda h: h["__metadata__"].update(tallstore=dumps(_deep()).decode()))  # fmt: skip
    many.slot("description-huge-integer", "2^53 in a description", "range",
              lambda h: h["__metadata__"].update(tallstore='{"x":9007199254740992}'))  # fmt: skip
    many.slot(
        "header-offsets-swapped", "offsets that run backwards", "hold", lambda h: h["w"].update(data_offsets=[8, 0])
    )
    many.slot("header-offset-huge", "offsets of 2^53 − 1", "gap",
              lambda h: h["w"].update(data_offsets=[(1 << 53) - 9, (1 << 53) - 1]))  # fmt: skip
    many.slot("header-offset-fraction", "an offset with a fraction", "offsets",
              lambda h: h["w"].update(data_offsets=[0, 8.0]))  # fmt: skip
    path = many.put("part-size-huge", "a part of 2^53 − 1 bytes, says the manifest", "DamagedError", "bytes")
    many.manifest(lambda m, path=path: m["parts"][path].update(size=(1 << 53) - 1))
    for name, about, mentions, spoil in (
        (
            "described-not-stored",
            "an entry without its bytes",
            "stored",
            lambda d: d["entries"].update(x=d["entries"]["w"]),
        ),
        ("stored-not-described", "bytes without an entry", "described", lambda d: d.update(entries={})),
        ("description-array", "entries as an array", "entries", lambda d: d.update(entries=[])),
        ("entry-not-an-object", "an entry that is a string", "entry", lambda d: d["entries"].update(w="w")),
    ):
        many.put(name, about, "FormatError", mentions, on_description=lambda d, spoil=spoil: spoil(d) and None)
    many.put("tensor-in-two-parts", "a tensor in two parts of one kind", "FormatError", "also in")
    second = Part("mask", "tensor-in-two-parts", {"w": kept("BF16", (8,), "w")})
    many.archive.tasks["tensor-in-two-parts"]["mask"]["tasks/tensor-in-two-parts/n"] = second
    many.end("parts", "parts and headers, one spoiled in each task")


def _entries() -> None:
    """Entries that are refused with their part."""
    many = Many()
    many.entry("kind-unknown", "an unknown kind of entry", "ternary", lambda e: e.update(kind="ternary"), "CodecError")
    item = whole(floats("F32", [1.0]))
    many.put(
        "kind-in-wrong-part",
        "a kind of the private part in a mask part",
        "FormatError",
        "cannot hold",
        items={"w": item},
    )
    for name, about, mentions, spoil in (
        ("entry-lacks-member", "an entry without its base", "lacks base", lambda e: e.pop("base")),
        ("dtype-unknown", "an unknown element type", "F5", lambda e: e.update(dtype="F5")),
        ("dtype-array", "an array as element type", "type", lambda e: e.update(dtype=["BF16"])),
        ("dtype-not-maskable", "a masked integer tensor", "I16", lambda e: e.update(dtype="I16")),
        ("codec-number", "a number as codec", "codec", lambda e: e.update(codec=1)),
        ("chunk-not-a-power", "1,000 elements a chunk", "power", lambda e: e.update(chunk=1000)),
        ("chunk-small", "512 elements a chunk", "power", lambda e: e.update(chunk=512)),
        ("chunk-large", "2^25 elements a chunk", "power", lambda e: e.update(chunk=1 << 25)),
        ("chunk-zero", "no element a chunk", "power", lambda e: e.update(chunk=0)),
        ("chunks-too-few", "no chunk for eight elements", "cover", lambda e: e.update(chunks=[])),
        ("chunks-too-many", "a chunk too many", "cover", lambda e: e["chunks"].append(e["chunks"][0])),
        ("chunks-of-2-to-48", "2^48 elements in one chunk of a byte", "cover", lambda e: e.update(shape=[1 << 48])),
        ("chunk-negative", "a chunk of −1 bytes", "chunk's length", lambda e: e["chunks"][0].__setitem__(0, -1)),
        ("chunk-longer", "a chunk longer than what is stored", "described", lambda e: e["chunks"][0].__setitem__(0, 9)),
        (
            "checksum-malformed",
            "a checksum of 15 digits",
            "checksum",
            lambda e: e["chunks"][0].__setitem__(1, "0" * 15),
        ),
        ("scales-count", "two scales for one chunk", "scales", lambda e: e.update(scales=[1, 1])),
        ("scale-not-float32", "a scale of 0.1", "float32", lambda e: e.update(scales=[0.1])),
        ("scale-too-large", "a scale of 1e39", "float32", lambda e: e.update(scales=[1e39])),
        ("scale-true", "true as a scale", "scales", lambda e: e.update(scales=[True])),
        ("rows-too-many", "more rows than the tensor has", "rows", lambda e: e.update(rows=9)),
        ("rows-of-scalar", "rows of a scalar", "rows", lambda e: e.update(shape=[], rows=0)),
    ):
        many.entry(name, about, mentions, spoil)
    many.entry("checksum-wrong", "a chunk's checksum is another's", "checksum",
               lambda e: e["chunks"][0].__setitem__(1, "0" * 16), "DamagedError")  # fmt: skip
    many.end("entries", "entries, one spoiled in each task")


def _whole_archives() -> None:
    """What only a check of the whole archive finds."""
    archive = small()
    archive.tasks["a"]["mask"][MASK].items["w"] = noted(Tensor("U8", (1 << 48,), b""))
    add(
        "private-of-2-to-48",
        "2^48 elements where eight are stored",
        "FormatError",
        "verify",
        "private",
        archive.build(),
    )
    archive = small()
    seven = Tensor("U8", (7,), bytes(7))
    archive.parts()[PRIVATE].items["w"], archive.parts()[MASK].items["w"] = whole(seven), noted(seven)
    files = archive.build()
    files[PRIVATE] = _flip(files[PRIVATE], len(files[PRIVATE]) - 1)
    add("padding-damaged", "a bit of the padding is flipped", "DamagedError", "verify", "sha256", files)
    archive = sound()
    archive.base["w"] = floats("BF16", np.zeros(8))
    add(
        "base-not-its-hash",
        "a base that is sound but not the manifest's",
        "DamagedError",
        "verify",
        "'w'",
        archive.build(),
    )


def _nothing_behind() -> None:
    """A referenced base says of itself what it likes: nobody takes memory, or time, for it before it is there."""
    archive = bare()
    archive.storage, archive.base = "reference", {"w": Tensor("F32", (1 << 46,), b"")}
    archive.parts()[MASK].items["w"] = kept("F32", (1 << 46,), "w")
    files = archive.build()
    add(
        "reference-of-2-to-46",
        "a referenced base of 2^46 elements, not given",
        "BaseNeededError",
        "decode",
        "base",
        files,
    )
    add("reference-of-2-to-46-given", "the same, and the base that is given has three", "WrongBaseError", "decode", "'w'",
        files, given={"w": floats("F32", [1.0, 2.0, 3.0])})  # fmt: skip


def _referenced() -> Archive:
    archive = bare()
    archive.storage, archive.base = "reference", {"w": floats("BF16", [1.0, 2.0])}
    archive.parts()[MASK].items["w"] = kept("BF16", (2,), "w")
    return archive


def _references() -> None:
    right = _referenced().base["w"]
    files = _referenced().build()
    add("reference-not-given", "a referenced base that was not given", "BaseNeededError", "decode", "base", files)
    for name, about, given in (
        ("reference-other-bytes", "a base with other values", {"w": bits("BF16", [0, 0])}),
        ("reference-other-dtype", "a base of another type", {"w": Tensor("F16", (2,), right.data)}),
        ("reference-other-shape", "a base of another shape", {"w": Tensor("BF16", (2, 1), right.data)}),
        ("reference-lacks-tensor", "a base without the tensor", {"v": right}),
    ):
        add(name, about, "WrongBaseError", "decode", "'w'", files, given=given)


def _links() -> None:
    """Entries that do not fit what they point at, one archive for all: each is refused when it is asked for."""
    archive = sound()
    base, marks = archive.base["w"], np.ones(8, np.uint8)
    masks, privates = archive.parts()[MASK].items, {}
    vectors, bases = archive.parts()[VECTOR].items, archive.parts()[BASE].items
    tensors: dict[str, tuple[str, str, str]] = {}

    def put(name: str, about: str, mentions: str, item: Any, error: str = "FormatError") -> None:
        masks[name], tensors[name] = item, (about, error, mentions)

    def masked(**more: Any) -> Any:
        facts, coded = mask(marks, "binary", "BF16", (8,), "w")
        return facts | more, coded

    put("shape-mismatch", "another shape than the base's", "come from", masked(shape=[2, 4]))
    put("rows-beyond-base", "more rows than the base has", "come from", masked(shape=[9], rows=9))
    put("rows-of-other-width", "rows of another width than the base's", "come from", masked(shape=[4, 2], rows=4))
    put("rows-not-stored", "rows beyond the base's that are nowhere", "private", masked(shape=[10], rows=8))
    put("base-missing", "a base tensor that is not there", "no tensor", masked(base="v"))
    put("tied-to-missing", "tied to a tensor that is not there", "tied", tied("nobody"))
    put("tied-to-itself", "tied to itself", "tied", tied("tied-to-itself"))
    put("tied-to-tied", "tied to a tied tensor", "tied", tied("tied-to-itself"))
    three = floats("F32", [1.0, 2.0, 3.0])
    put("private-missing", "a private tensor that is nowhere", "private", noted(three))
    put("private-dtype", "a private tensor of another type", "private", noted(three))
    privates["private-dtype"] = whole(Tensor("I32", (3,), bytes(12)))
    put("private-size", "a private tensor with fewer elements", "private", noted(three))
    privates["private-size"] = whole(floats("F32", [1.0]))
    archive.tasks["a"]["private"] = {PRIVATE: Part("private", "a", privates)}

    def based(name: str, about: str, mentions: str, in_base: Any, in_vector: Any) -> None:
        archive.base[name] = base
        if in_base is not None:
            bases[name] = in_base
        if in_vector is not None:
            vectors[name] = in_vector
        put(name, about, mentions, masked(base=name))

    fine, ones = whole(base), np.ones(8, np.float32)
    based("vector-missing", "a masked tensor without a vector", "vector", fine, None)
    based("vector-shape", "a vector of another shape than the base", "shape", fine, vector(ones, (4, 2)))
    based("vector-chunk", "a vector cut into other chunks", "chunks", fine, vector(ones, (8,), chunk=2048))
    based("base-not-stored", "a base tensor that no base part has", "base part", None, vector(ones, (8,)))
    based("base-dtype", "a base part with another type than the manifest", "base part",
          whole(Tensor("F16", (8,), bytes(16))), vector(ones, (8,)))  # fmt: skip
    based(
        "base-shape",
        "a base part with another shape",
        "base part",
        whole(Tensor("BF16", (2, 4), bytes(16))),
        vector(ones, (8,)),
    )
    based(
        "base-tied-in-a-ring",
        "a base tensor tied to itself",
        "base part",
        tied("base-tied-in-a-ring"),
        vector(ones, (8,)),
    )
    integers = Tensor("I64", (8,), bytes(64))
    archive.base["integers"], bases["integers"] = integers, whole(integers)
    vectors["integers"] = vector(ones, (8,))
    put("integers-masked", "a mask on a base tensor of integers", "I64", masked(base="integers"))
    put("integers-converted", "a base tensor of integers as floats", "I64", kept("F32", (8,), "integers"))
    put("codec-unknown", "an unknown codec", "lzma", masked(codec="lzma"), "CodecError")
    put("codec-of-another-family", "a whole codec for a mask", "raw", masked(codec="raw"), "CodecError")
    put("codec-a-module", "a codec named as a module", "os:system", masked(codec="os:system"), "CodecError")
    archive.base["codec-of-base"] = base
    facts, coded = whole(base)
    bases["codec-of-base"] = facts | {"codec": "zip"}, coded
    put("codec-of-base", "an unknown codec of the base", "zip", kept("BF16", (8,), "codec-of-base"), "CodecError")
    facts, coded = vector(ones, (8,))
    based("codec-of-vector", "an unknown codec of the vector", "q3", fine, (facts | {"codec": "q3"}, coded))
    tensors["codec-of-vector"] = (tensors["codec-of-vector"][0], "CodecError", "q3")
    about = "entries that do not fit what they point at, and unknown codecs"
    CASES["links"] = Case(about, "ArchiveError", "decode", file=zipped(archive.build()), tensors=tensors)


def make() -> None:
    """Register them all."""
    for step in (_parts, _entries, _whole_archives, _references, _nothing_behind, _links):
        step()
