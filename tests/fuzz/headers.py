"""Texts that say what is where: JSON, the manifest, safetensors headers, the header of a part."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator

from tallstore.format import safetensors, strict_json
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.manifest import MANIFEST, Manifest
from tallstore.format.part import PartHeader

from . import texts
from .base import INVALID, VALID, Plain, Target
from .signed import Loose, sign_text, unzip


def archives() -> Iterator[dict[str, bytes]]:
    """Every conformance vector, valid or not, that can be taken apart."""
    for folder in sorted([*VALID.iterdir(), *INVALID.iterdir()]):
        for path in sorted(folder.glob("archive*")):
            if path.is_dir():
                yield {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
            elif (files := unzip(path.read_bytes())) is not None:
                yield files


# JSON


def run_json(data: bytes) -> None:
    found = strict_json.loads(data, "x")
    assert json.loads(data) == found, "it reads what any other reader reads"
    assert strict_json.loads(strict_json.dumps(found), "x") == found


def json_seeds() -> Iterator[bytes]:
    yield from (b"{}", b"[]", b"0", b'{"a":[1,2.5,-0.0,1e300,"\\u00e9\\ud83d\\ude00"],"b":{"c":null,"d":true}}')
    for files in archives():
        if len(files.get(MANIFEST, b"")) < 1 << 12:
            yield files.get(MANIFEST, b"")


# The manifest


def run_manifest(data: bytes) -> None:
    found = Manifest.from_bytes(data)
    again = Manifest.from_bytes(found.to_bytes())
    assert again == found, "what was read, written and read again, is the same"
    found.bytes_by_kind(len(data))
    found.bits_per_parameter(len(data))
    assert found.base.bytes >= 0


def mutate_manifest(data: bytes, most: int, chance: random.Random, plain: Plain) -> bytes:
    document = texts.loads(data)
    if not isinstance(document, dict) or chance.random() < 0.1:
        return plain(data, most)
    for _ in range(chance.choice((1, 1, 2, 4))):
        texts.change(document, chance)
    return sign_text(document) if chance.random() < 0.95 else texts.dumps(document)


def manifest_seeds() -> Iterator[bytes]:
    for files in archives():
        if len(files.get(MANIFEST, b"")) < 1 << 14:
            yield files.get(MANIFEST, b"")


# A safetensors header, and a part's


def run_safetensors(data: bytes) -> None:
    found = safetensors.parse(data, len(data), "x")
    assert found.size + sum(slot.stop - slot.start for slot in found.slots.values()) == len(data)
    for slot in found.slots.values():
        assert slot.stop - slot.start == math.prod(slot.shape) * ITEM_BYTES[slot.dtype]


def run_part(data: bytes) -> None:
    size = safetensors.header_size(data, len(data), "x")
    found = PartHeader.from_bytes(data[:size], len(data), "x")
    end = size
    for name, at in sorted(found.offsets.items(), key=lambda item: (item[1], found.entries[item[0]].coded.padded)):  # type: ignore[union-attr]
        coded = found.entries[name].coded
        assert coded is not None
        assert at == end, "no gap, no overlap"
        assert len(coded.chunks) == -(-found.entries[name].covered // coded.chunk)
        end += coded.padded
    assert end == len(data)
    again = found.to_bytes(sorted(found.offsets, key=lambda n: (found.offsets[n], found.entries[n].coded.padded)))  # type: ignore[union-attr]
    assert PartHeader.from_bytes(again, len(again) + len(data) - size, "x").entries == found.entries


def mutate_part(data: bytes, most: int, chance: random.Random, plain: Plain) -> bytes:
    loose = Loose.of(data)
    if loose is None or chance.random() < 0.1:
        return mutate_safetensors(data, most, chance, plain)
    for _ in range(chance.choice((1, 1, 2, 4))):
        loose.change(chance, plain)
    try:
        return loose.build()
    except UnicodeError:
        return plain(data, most)


def mutate_safetensors(data: bytes, most: int, chance: random.Random, plain: Plain) -> bytes:
    size = 8 + int.from_bytes(data[:8], "little")
    header = texts.loads(data[8:size])
    if not isinstance(header, dict) or chance.random() < 0.1:
        return plain(data, most)
    texts.change(header, chance)
    raw = texts.dumps(header)
    raw += b" " * (-(8 + len(raw)) % 64)
    return len(raw).to_bytes(8, "little") + raw + data[size:]


def part_seeds() -> Iterator[bytes]:
    for files in archives():
        for path, data in files.items():
            if path.endswith(".safetensors") and len(data) < 1 << 13:
                yield data


def safetensors_seeds() -> Iterator[bytes]:
    yield from part_seeds()
    for path in sorted(VALID.glob("*/decoded/*.safetensors")):
        if path.stat().st_size < 1 << 13:
            yield path.read_bytes()


TARGETS = {
    "json": Target(run=run_json, seeds=json_seeds, mutate=texts.mutate, max_len=1 << 12),
    "manifest": Target(run=run_manifest, seeds=manifest_seeds, mutate=mutate_manifest),
    "safetensors": Target(run=run_safetensors, seeds=safetensors_seeds, mutate=mutate_safetensors, max_len=1 << 13),
    "part": Target(run=run_part, seeds=part_seeds, mutate=mutate_part, max_len=1 << 13),
}
