"""Archives as files by path: taken apart, changed at one place, and signed again.

What a mutation changes, a checksum would find at once, and nothing behind it would ever be reached. So lengths of
chunks, checksums, offsets, hashes of headers and files, the base's identity and the manifest's own hash are all made
right again, as somebody who means harm would do.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import xxhash

from tallstore.format.manifest import MANIFEST
from tallstore.format.part import METADATA_KEY

from . import frames, texts
from .base import ROOT, Plain

sys.path.append(str(ROOT / "spec" / "vectors"))  # the builder of the conformance vectors
from making.build import ZipEntry, identity, sha256, signed, tall

Files = dict[str, bytes]
ZEROS = "0" * 64
NO_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    EOFError,
    RuntimeError,
    OSError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What zipfile raises for bytes that are no zip: `UnicodeError` is a `ValueError`."""


def unzip(data: bytes) -> Files | None:
    """The files of a `.tall` file; None where it is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()[:64] if info.file_size < 1 << 20}
    except NO_ZIP:
        return None


def zipped(files: Files) -> bytes:
    """The `.tall` file of some files."""
    return tall([ZipEntry(name, data) for name, data in files.items()])


@dataclass
class Loose:
    """A part taken apart: what it says of itself, and its chunks by tensor."""

    facts: Any
    chunks: dict[str, list[bytes]]

    @classmethod
    def of(cls, data: bytes) -> Loose | None:
        """Take a part apart; None where it is not whole."""
        size = 8 + int.from_bytes(data[:8], "little")
        header = texts.loads(data[8:size])
        try:
            facts = json.loads(header["__metadata__"][METADATA_KEY])
            chunks = {}
            for name, slot in header.items():
                if name != "__metadata__":
                    at = size + slot["data_offsets"][0]
                    chunks[name] = []
                    for length, _ in facts["entries"][name]["chunks"]:
                        chunks[name].append(data[at : at + length])
                        at += length
        except (TypeError, LookupError, ValueError, AttributeError, RecursionError):
            return None
        return cls(facts, chunks)

    def change(self, chance: random.Random, plain: Plain) -> None:
        """One change: of the description, or of a chunk."""
        held = [(name, n) for name, pieces in self.chunks.items() for n in range(len(pieces))]
        if not held or chance.random() < 0.5:
            texts.change(self.facts, chance)
            return
        name, n = chance.choice(held)
        if chance.random() < 0.1:
            other = chance.choice(held)
            self.chunks[name][n] = self.chunks[other[0]][other[1]]
            return
        piece = self.chunks[name][n]
        self.chunks[name][n] = frames.mutate(piece, 2 * len(piece) + 16, chance, plain)

    def build(self) -> bytes:
        """The part, signed."""
        entries = self.facts.get("entries") if isinstance(self.facts, dict) else None
        header: dict[str, Any] = {}
        data = b""
        for name, pieces in self.chunks.items():
            entry = entries.get(name) if isinstance(entries, dict) else None
            listed = entry.get("chunks") if isinstance(entry, dict) else None
            if not isinstance(listed, list):
                continue
            pieces = (pieces + [b""] * len(listed))[: len(listed)]
            for item, piece in zip(listed, pieces, strict=True):
                if isinstance(item, list) and len(item) == 2:
                    item[:] = [len(piece), xxhash.xxh3_64_hexdigest(piece)]
            blob = b"".join(pieces)
            blob += bytes(-len(blob) % 8)
            header[name] = {"dtype": "U8", "shape": [len(blob)], "data_offsets": [len(data), len(data) + len(blob)]}
            data += blob
        text = texts.dumps(self.facts).decode()
        raw = texts.dumps({"__metadata__": {"format": "tallstore", METADATA_KEY: text}, **header})
        raw += b" " * (-(8 + len(raw)) % 64)
        return len(raw).to_bytes(8, "little") + raw + data


def sign(files: Files) -> None:
    """Make the manifest say of the files what they are, and of itself."""
    manifest = texts.loads(files.get(MANIFEST, b""))
    if not isinstance(manifest, dict):
        return
    parts = manifest.get("parts")
    for path, record in parts.items() if isinstance(parts, dict) else ():
        if path in files and isinstance(record, dict):
            record |= {"size": len(files[path]), "sha256": sha256(files[path])}
            if isinstance(record.get("header"), dict):
                size = min(8 + int.from_bytes(files[path][:8], "little"), len(files[path]))
                record["header"] |= {"size": size, "sha256": sha256(files[path][:size])}
    base = manifest.get("base")
    with contextlib.suppress(TypeError, LookupError, ValueError, AttributeError):
        base["identity"] = identity(base["tensors"])  # type: ignore[index]
    files[MANIFEST] = sign_text(manifest)


def sign_text(manifest: dict[str, Any]) -> bytes:
    """A manifest's text with its own hash."""
    if "sha256" in manifest:
        manifest["sha256"] = ZEROS
    return signed(texts.dumps(manifest))


def mutate(data: bytes, most: int, chance: random.Random, plain: Plain) -> bytes:
    """One file of the archive changed, and all signed again; now and then the zip as it lies, or nothing signed."""
    files = unzip(data)
    if not files or MANIFEST not in files or chance.random() < 0.05:
        return plain(data, most)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _change(files, chance, plain)
    if chance.random() < 0.95:
        sign(files)
    try:
        return zipped(files)
    except (ValueError, UnicodeError):  # a name that no zip can hold
        return data


def _change(files: Files, chance: random.Random, plain: Plain) -> None:
    path = chance.choice(list(files))
    if path == MANIFEST:
        manifest = texts.loads(files[path])
        if isinstance(manifest, dict):
            texts.change(manifest, chance)
            files[path] = texts.dumps(manifest)
        return
    if chance.random() < 0.03:
        files[path] = files[chance.choice(list(files))]
        return
    loose = Loose.of(files[path]) if path.endswith(".safetensors") else None
    if loose is None or chance.random() < 0.05:
        files[path] = plain(files[path], len(files[path]) + 64)
        return
    loose.change(chance, plain)
    try:
        files[path] = loose.build()
    except UnicodeError:  # half a surrogate pair, within a text within a text
        files[path] = plain(files[path], len(files[path]) + 64)
