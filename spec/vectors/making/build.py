"""Parts, manifests, folders and `.tall` files from raw JSON and bytes, each step open to a hand that spoils it."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tallstore.codecs import LOSSLESS, MASK, SAMPLED, VECTOR, WHOLE
from tallstore.kernels.dare import Sampling

from .numbers import Array, Tensor

Facts = dict[str, Any]
Item = tuple[Facts, list[bytes] | None]
"""An entry without `chunks`, and its coded chunks if its kind has any."""
CHUNK = 1024


def nothing(_: Any) -> None:
    """Spoil nothing."""


def dumps(value: Any, indent: int | None = None) -> bytes:
    """JSON, short."""
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(value, ensure_ascii=False, separators=separators, indent=indent).encode()


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def spans(n: int, chunk: int = CHUNK) -> list[tuple[int, int]]:
    """Where chunks begin and end."""
    return [(a, min(a + chunk, n)) for a in range(0, n, chunk)]


def whole(tensor: Tensor, codec: str = "raw", chunk: int = CHUNK, **more: Any) -> Item:
    """A tensor stored whole."""
    coded = [
        WHOLE[codec].encode(np.frombuffer(tensor.cut(a, b), np.uint8), tensor.dtype)
        for a, b in spans(tensor.numel, chunk)
    ]
    facts = {"kind": "whole", "dtype": tensor.dtype, "shape": list(tensor.shape), "codec": codec, "chunk": chunk}
    return facts | more, coded


def vector(values: Array, shape: Sequence[int], codec: str = "f32", chunk: int = CHUNK) -> Item:
    """A vector: float32 values that the codec holds exactly."""
    coded = [VECTOR[codec].encode(values[a:b].astype(np.float32)) for a, b in spans(len(values), chunk)]
    return {"kind": "vector", "shape": list(shape), "codec": codec, "chunk": chunk}, coded


def mask(
    marks: Array, kind: str, dtype: str, shape: Sequence[int], base: str, codec: str = "bits", **more: Any
) -> Item:
    """A mask. `chunk`, `rows` and `scales` are among the further members."""
    facts = {"kind": kind, "dtype": dtype, "shape": list(shape), "base": base, "codec": codec, "chunk": CHUNK} | more
    coded = [MASK[codec].encode(marks[a:b].astype(np.uint8), kind) for a, b in spans(len(marks), facts["chunk"])]
    return facts, coded


def lossless(
    tensor: Tensor,
    before: Tensor,
    base: str,
    codec: str = "lanes",
    chunk: int = CHUNK,
    origin: Tensor | None = None,
    **more: Any,
) -> Item:
    """A tensor coded against the base's, which has its type; with an origin, against what goes on from that."""
    coded = []
    for a, b in spans(tensor.numel, chunk):
        own, start = (np.frombuffer(each.cut(a, b), np.uint8) for each in (tensor, before))
        beneath = None if origin is None else np.frombuffer(origin.cut(a, b), np.uint8)
        coded.append(LOSSLESS[codec].encode(own, start, tensor.dtype, origin=beneath))
    facts = {"kind": "lossless", "dtype": tensor.dtype, "shape": list(tensor.shape), "base": base}
    return facts | {"codec": codec, "chunk": chunk} | more, coded


def sampled(
    tensor: Tensor,
    before: Tensor,
    base: str,
    sampling: Sampling,
    first: int = 0,
    chunk: int = CHUNK,
    **more: Any,
) -> Item:
    """A tensor of whose changes from the base's, which has its type, a share is kept; `first` of the first chunk."""
    coded = []
    for a, b in spans(tensor.numel, chunk):
        own, start = (np.frombuffer(each.cut(a, b), np.uint8) for each in (tensor, before))
        here = (first + a) % (1 << 32)
        coded.append(SAMPLED["dare"].encode(own, start, tensor.dtype, sampling, here))
    facts = {"kind": "sampled", "dtype": tensor.dtype, "shape": list(tensor.shape), "base": base}
    return facts | {"codec": "dare", "chunk": chunk} | more, coded


def kept(dtype: str, shape: Sequence[int], base: str, **more: Any) -> Item:
    """An entry of kind `base`."""
    return {"kind": "base", "dtype": dtype, "shape": list(shape), "base": base} | more, None


def noted(tensor: Tensor) -> Item:
    """An entry of kind `private`."""
    return {"kind": "private", "dtype": tensor.dtype, "shape": list(tensor.shape)}, None


@dataclass
class Part:
    """A part, and three hands: on its description, on its safetensors header, on header and data as bytes."""

    part: str
    owner: str
    items: dict[str, Item]
    version: str = "1.0"
    more: Facts = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    stored: list[str] | None = None
    """Order of the coded bytes, where it is not that of the entries."""
    indent: int | None = None
    align: int = 64
    on_description: Callable[[Facts], None] = nothing
    on_header: Callable[[Facts], None] = nothing
    on_bytes: Callable[[bytes, bytes], tuple[bytes, bytes]] = lambda header, data: (header, data)

    def build(self) -> tuple[bytes, bytes]:
        """Header (with its length) and data."""
        entries: Facts = {}
        blobs: dict[str, bytes] = {}
        for name, (facts, coded) in self.items.items():
            entries[name] = dict(facts)
            if coded is not None:
                entries[name]["chunks"] = [[len(c), xxhash.xxh3_64_hexdigest(c)] for c in coded]
                blob = b"".join(coded)
                blobs[name] = blob + bytes(-len(blob) % 8)
        description = {"version": self.version, "part": self.part, "owner": self.owner, "entries": entries} | self.more
        self.on_description(description)
        text = dumps(description, self.indent).decode()
        header: Facts = {"__metadata__": {"format": "tallstore", "tallstore": text} | self.metadata}
        at = 0
        order = self.stored or list(blobs)
        for name in order:
            stop = at + len(blobs[name])
            header[name] = {"dtype": "U8", "shape": [stop - at], "data_offsets": [at, stop]}
            at = stop
        self.on_header(header)
        raw = dumps(header, self.indent)
        raw += b" " * (-(8 + len(raw)) % self.align)
        return self.on_bytes(struct.pack("<Q", len(raw)) + raw, b"".join(blobs[name] for name in order))


@dataclass
class Archive:
    """An archive, and hands on its manifest (before and after its hash is taken) and on its files."""

    base: dict[str, Tensor] = field(default_factory=dict)
    base_parts: dict[str, Part] = field(default_factory=dict)
    storage: str = "embed"
    groups: list[tuple[str, list[str], dict[str, Part]]] = field(default_factory=list)
    """Id, tasks, parts."""
    tasks: dict[str, dict[str, dict[str, Part]]] = field(default_factory=dict)
    """Task → kind → path → part."""
    task_files: dict[str, dict[str, str]] = field(default_factory=dict)
    task_facts: dict[str, Facts] = field(default_factory=dict)
    """More members of a task's record."""
    files: dict[str, bytes] = field(default_factory=dict)
    version: str = "1.0"
    indent: int | None = None
    on_manifest: Callable[[Facts], None] = nothing
    on_manifest_bytes: Callable[[bytes], bytes] = lambda data: data
    on_files: Callable[[dict[str, bytes]], None] = nothing

    def since(self, version: str, *kinds: str) -> None:
        """Say that the archive needs a version, and so do its parts of these kinds."""
        self.version = version
        for part in self.parts().values():
            part.version = version if part.part in kinds else part.version

    def parts(self) -> dict[str, Part]:
        """Every part by path."""
        found = dict(self.base_parts)
        for _, _, parts in self.groups:
            found |= parts
        for kinds in self.tasks.values():
            for parts in kinds.values():
                found |= parts
        return found

    def build(self) -> dict[str, bytes]:
        """Every file by path, the manifest last."""
        out: dict[str, bytes] = {}
        records: Facts = {}
        for path, part in self.parts().items():
            header, data = part.build()
            out[path] = header + data
            records[path] = {"size": len(header + data), "sha256": sha256(header + data)}
            records[path]["header"] = {"size": len(header), "sha256": sha256(header)}
        for path, data in self.files.items():
            out[path] = data
            records[path] = {"size": len(data), "sha256": sha256(data)}
        manifest = self._manifest(records)
        self.on_manifest(manifest)
        out["tall.json"] = self.on_manifest_bytes(signed(dumps(manifest, self.indent)))
        self.on_files(out)
        return out

    def _manifest(self, records: Facts) -> Facts:
        tensors = {
            n: {"dtype": t.dtype, "shape": list(t.shape), "sha256": sha256(t.data)} for n, t in self.base.items()
        }
        home = {task: id_ for id_, tasks, _ in self.groups for task in tasks}
        return {
            "format": "tallstore",
            "version": self.version,
            "sha256": "0" * 64,
            "base": {
                "storage": self.storage,
                "identity": identity(tensors),
                "tensors": tensors,
                "parts": list(self.base_parts),
            },
            "groups": [{"id": id_, "tasks": tasks, "parts": list(parts)} for id_, tasks, parts in self.groups],
            "tasks": {
                name: {
                    "group": home[name],
                    "parts": {kind: list(parts) for kind, parts in kinds.items()},
                    "files": self.task_files.get(name, {}),
                    **self.task_facts.get(name, {}),
                }
                for name, kinds in self.tasks.items()
            },
            "parts": records,
        }


def identity(tensors: Mapping[str, Facts]) -> str:
    """The base's identity."""
    lines = [
        f"{name}\0{facts['dtype']}\0{','.join(map(str, facts['shape']))}\0{facts['sha256']}\n".encode()
        for name, facts in sorted(tensors.items(), key=lambda item: item[0].encode())
    ]
    return sha256(b"".join(lines))


def signed(data: bytes) -> bytes:
    """Fill the manifest's own hash in."""
    return data.replace(b"0" * 64, sha256(data).encode(), 1)


def write_folder(files: Mapping[str, bytes], root: Path) -> None:
    """As a folder."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


@dataclass
class ZipEntry:
    """One entry of a zip file, as its two headers describe it."""

    name: str
    data: bytes
    raw: bytes | None = None
    """What is written, where it is not `data` as it is."""
    method: int = 0
    flags: int | None = None
    aligned: bool = True
    local_name: str | None = None
    offset: int | None = None
    """Where the directory says that the entry begins."""
    size: int | None = None
    """What the directory says of its size."""
    mode: int = 0o100644
    """What it is on Unix: type and rights."""
    local: Mapping[int, int] = field(default_factory=dict)
    """Numbers of the local header that are others, by their place: 1 flags, 2 method, 5 CRC, 6 and 7 sizes."""
    wide: bool = False
    """Whether sizes and place are in ZIP64 fields."""
    extra: bytes | None = None
    """The directory's extra field, where it is another."""
    gap: bytes = b""
    """What lies behind it, and is no file's."""


def _local(entry: ZipEntry, at: int) -> bytes:
    """Local header and data."""
    name, flags, raw = (entry.local_name or entry.name).encode(), _flags(entry), _raw(entry)
    numbers = [20, flags, entry.method, 0, 0x21, zlib.crc32(entry.data), len(raw), len(entry.data)]
    wide = b""
    if entry.wide:
        wide, numbers[6:] = struct.pack("<HHQQ", 1, 16, len(entry.data), len(raw)), [0xFFFFFFFF] * 2
    for place, number in entry.local.items():
        numbers[place] = number
    fill = -(at + 30 + len(name) + len(wide) + 4) % 64 + (0 if entry.aligned else 1)
    extra = wide + struct.pack("<HH", 0xD935, fill) + bytes(fill)
    return struct.pack("<4s5H3I2H", b"PK\3\4", *numbers, len(name), len(extra)) + name + extra + raw


def _flags(entry: ZipEntry) -> int:
    return (0 if entry.name.isascii() else 0x800) if entry.flags is None else entry.flags


def _raw(entry: ZipEntry) -> bytes:
    return entry.data if entry.raw is None else entry.raw


def _record(entry: ZipEntry, at: int) -> bytes:
    """The entry's record in the directory."""
    name, extra = entry.name.encode(), b""
    packed, size = (len(_raw(entry)), len(entry.data)) if entry.size is None else (entry.size, entry.size)
    at = at if entry.offset is None else entry.offset
    if entry.wide:
        extra = struct.pack("<HHQQQ", 1, 24, size, packed, at)
        packed = size = at = 0xFFFFFFFF
    extra = extra if entry.extra is None else entry.extra
    facts = (_flags(entry), entry.method, 0, 0x21, zlib.crc32(entry.data), packed, size)
    head = (0x314, 45 if entry.wide else 20, *facts, len(name), len(extra), 0, 0, 0, entry.mode << 16, at)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *head) + name + extra


def tall(
    entries: Sequence[ZipEntry], *, comment: bytes = b"", before: bytes = b"", behind: bytes = b"", **end: int
) -> bytes:
    """A zip file. `end`: numbers of a ZIP64 end record (`count`, `size`, `offset`) that are others than they should be."""
    out = bytearray()
    directory = bytearray()
    for entry in entries:
        record = _record(entry, len(out))
        out += _local(entry, len(out)) + entry.gap
        directory += record
    counts = (0, 0, len(entries), len(entries), len(directory), len(out), len(comment))
    tail = b""
    if end or any(entry.wide for entry in entries):
        right = {"count": len(entries), "size": len(directory), "offset": len(out)} | end
        tail = struct.pack("<4sQ2H2I", b"PK\6\6", 44, 45, 45, 0, 0)
        tail += struct.pack("<4Q", right["count"], right["count"], right["size"], right["offset"])
        tail += struct.pack("<4sIQI", b"PK\6\7", 0, len(out) + len(directory), 1)
        counts = (0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, len(comment))
    return before + bytes(out + directory) + tail + struct.pack("<4s4H2IH", b"PK\5\6", *counts) + comment + behind


def write_tall(files: Mapping[str, bytes], path: Path, *, wide: bool = False) -> None:
    """As one `.tall` file; `wide`: with ZIP64 fields and records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tall([ZipEntry(name, data, wide=wide) for name, data in files.items()]))


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Plain tensors: a decoded task, or a base."""
    header: Facts = {}
    at = 0
    for name, tensor in tensors.items():
        stop = at + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, stop]}
        at = stop
    raw = dumps(header)
    raw += b" " * (-len(raw) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(t.data for t in tensors.values()))
