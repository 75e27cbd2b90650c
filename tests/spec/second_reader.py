"""A second reader, written from `spec/` alone: no tallstore, no torch. It decodes; it checks hashes and little else.

    archive = Archive(path)                      # a folder or a .tall file; base=… where the base is referenced
    archive.decode("mnist")                      # {tensor name: (element type, shape, bytes)}, in order
    archive.decode("mnist", exact=True)

Brain floats and eight-bit floats are integers here: numpy has no such types.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from safetensors import deserialize

Decoded = tuple[str, tuple[int, ...], bytes]

BYTES = {
    "F4": 1, "F6_E2M3": 1, "F6_E3M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Of packed types, whose elements are counted by their bytes."""
ROTATED = {"F64", "F32", "F16", "BF16"}
LEVELS = {"q8": 256, "q5": 32, "q4": 16}
SYMBOL_BITS = {"binary": 1, "signed": 2}


class Refused(Exception):
    """What was read is not what the specification allows."""


def must(holds: object, text: str) -> None:
    if not holds:
        raise Refused(text)


# --- container.md, manifest.md ----------------------------------------------------------------------------------------


def open_container(path: Path) -> Callable[[str], bytes]:
    if path.is_dir():
        return lambda name: (path / name).read_bytes()
    files = {}
    with zipfile.ZipFile(path) as found:
        for info in found.infolist():
            must(info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & ~0x800, "an entry is not stored")
            files[info.filename] = found.read(info)
    return files.__getitem__


def read_manifest(data: bytes) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(data)
    must(manifest["format"] == "tallstore", "not a manifest")
    must(manifest["version"].split(".")[0] == "1", "another major version")
    found = re.search(rb'"sha256": ?"([0-9a-f]{64})"', data)
    must(found and found[1].decode() == manifest["sha256"], "the manifest's hash is not the first")
    zeroed = data[: found.start(1)] + b"0" * 64 + data[found.end(1) :]
    must(hashlib.sha256(zeroed).hexdigest() == manifest["sha256"], "the manifest is damaged")
    tensors = manifest["base"]["tensors"]
    lines = b""
    for name in sorted(tensors, key=str.encode):
        facts = tensors[name]
        lines += f"{name}\0{facts['dtype']}\0{','.join(map(str, facts['shape']))}\0{facts['sha256']}\n".encode()
    must(hashlib.sha256(lines).hexdigest() == manifest["base"]["identity"], "the base's identity is another's")
    return manifest


# --- parts.md ---------------------------------------------------------------------------------------------------------


class Parts:
    """All parts of one kind and owner: one map of entries, and each entry's coded bytes."""

    def __init__(self, read: Callable[[str], bytes], manifest: dict[str, Any], paths: list[str], part: str, owner: str):
        self.entries: dict[str, dict[str, Any]] = {}
        self._data: dict[str, bytes] = {}
        for path in paths:
            record, data = manifest["parts"][path], read(path)
            must(len(data) == record["size"], f"{path}: another size")
            head = data[: record["header"]["size"]]
            must(hashlib.sha256(head).hexdigest() == record["header"]["sha256"], f"{path}: the header is damaged")
            must(hashlib.sha256(data).hexdigest() == record["sha256"], f"{path}: damaged")
            must(
                8 + struct.unpack_from("<Q", data)[0] == len(head) and len(head) % 64 == 0, f"{path}: the header's size"
            )
            facts = json.loads(json.loads(head[8:])["__metadata__"]["tallstore"])
            must(facts["version"].split(".")[0] == "1", "another major version")
            must((facts["part"], facts["owner"]) == (part, owner), f"{path}: of another kind or owner")
            must(not self.entries.keys() & facts["entries"].keys(), f"{path}: a tensor in two parts")
            self.entries |= facts["entries"]
            self._data |= {name: bytes(tensor["data"]) for name, tensor in deserialize(data)}

    def chunks(self, name: str) -> list[tuple[int, int, bytes]]:
        """For each chunk the elements that it stands for, and its bytes."""
        entry, data, found, at = self.entries[name], self._data[name], [], 0
        total = covered(entry)
        must(len(entry["chunks"]) == -(-total // entry["chunk"]), f"{name}: number of chunks")
        for number, (length, digest) in enumerate(entry["chunks"]):
            piece = data[at : at + length]
            must(xxhash.xxh3_64_hexdigest(piece) == digest, f"{name}: chunk {number} is damaged")
            start = number * entry["chunk"]
            found.append((start, min(start + entry["chunk"], total), piece))
            at += length
        must(len(data) == at + -at % 8 and not any(data[at:]), f"{name}: padding")
        return found

    def whole(self, name: str, dtype: str | None = None) -> bytes:
        """A tensor that is coded with a whole codec."""
        entry = self.entries[name]
        decode = {"raw": decode_raw, "planes+zstd": decode_planes}[entry["codec"]]
        dtype = dtype or entry["dtype"]
        return b"".join(decode(piece, stop - start, dtype) for start, stop, piece in self.chunks(name))

    def values(self, name: str) -> np.ndarray:
        """A tensor that is coded with a vector codec."""
        codec = self.entries[name]["codec"]
        decoded = [decode_vector(piece, stop - start, codec) for start, stop, piece in self.chunks(name)]
        return np.concatenate([np.empty(0, np.float32), *decoded])

    def symbols(self, name: str) -> np.ndarray:
        """A tensor that is coded with a mask codec."""
        entry = self.entries[name]
        decode = {"bits": decode_bits, "bits+zstd": decode_bits_zstd, "adaptive": decode_adaptive}[entry["codec"]]
        decoded = [decode(piece, stop - start, entry["kind"]) for start, stop, piece in self.chunks(name)]
        return np.concatenate([np.empty(0, np.uint8), *decoded])


def covered(entry: dict[str, Any]) -> int:
    """Elements that are coded: all, or those of the leading rows. `rows` is a member of some kinds alone."""
    shape = entry["shape"]
    if entry.get("rows") is not None and entry["kind"] in {"base", "binary", "signed", "delta", "lossless"}:
        return int(entry["rows"]) * math.prod(shape[1:])
    return counted(entry.get("dtype", ""), shape)


def counted(dtype: str, shape: Sequence[int]) -> int:
    """Elements; bytes of packed types."""
    must(math.prod(shape) * BITS.get(dtype, 8) % 8 == 0, "elements of a packed type that do not fill bytes")
    return math.prod(shape) * BITS.get(dtype, 8) // 8


# --- codecs/ ----------------------------------------------------------------------------------------------------------


def unframe(frame: bytes, size: int) -> bytes:
    """zstd.md"""
    must(frame[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame")
    declared = zstandard.get_frame_parameters(frame)
    must(declared.content_size == size and not declared.dict_id, "a frame of another size")
    if size == 0:
        return b""
    data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    must(len(data) == size, "a frame holds less")
    return data


def decode_bits(data: bytes, n: int, kind: str) -> np.ndarray:
    b = SYMBOL_BITS[kind]
    must(len(data) == -(-b * n // 8), "bytes of a mask")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    must(not bits[b * n :].any(), "bits behind the last symbol")
    symbols = (bits[: b * n].reshape(n, b) << np.arange(b, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    must(not (symbols == 3).any(), "symbol 3")
    return symbols


def decode_bits_zstd(data: bytes, n: int, kind: str) -> np.ndarray:
    return decode_bits(unframe(data, -(-SYMBOL_BITS[kind] * n // 8)), n, kind)


def decode_adaptive(data: bytes, n: int, kind: str) -> np.ndarray:
    if data[0] == 0:
        return decode_bits_zstd(data[1:], n, kind)
    form, marks, gap_bytes, frame_bytes = struct.unpack_from("<IIII", data)
    must(form == 1 and marks <= n and gap_bytes <= marks + n // 255, "marks and gap bytes")
    gaps = unframe(data[16 : 16 + frame_bytes], gap_bytes)
    signs = data[16 + frame_bytes :]
    must(len(signs) == (-(-marks // 8) if kind == "signed" else 0), "sign bytes")
    negative = np.unpackbits(np.frombuffer(signs, np.uint8), bitorder="little")
    must(not negative[marks:].any(), "bits behind the last sign")
    symbols = np.zeros(n, np.uint8)
    at = seen = 0
    for byte in gaps:
        at += byte
        if byte < 255:
            must(at < n, "a mark behind the end")
            symbols[at] = 1 + (int(negative[seen]) if kind == "signed" else 0)
            at, seen = at + 1, seen + 1
    must(seen == marks and not gaps.endswith(b"\xff"), "number of marks")
    return symbols


def decode_vector(data: bytes, n: int, codec: str) -> np.ndarray:
    if codec == "ones":
        must(not data, "ones have no bytes")
        return np.ones(n, np.float32)
    if codec == "f32":
        values = np.frombuffer(data, "<f4").astype(np.float32)
    elif codec == "bf16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = decode_codebook(data, n, LEVELS[codec])
    must(len(values) == n and np.isfinite(values).all(), "not so many finite values")
    return values


def decode_codebook(data: bytes, n: int, most: int) -> np.ndarray:
    levels, bits, layout = struct.unpack_from("<HBB", data)
    must(1 <= levels <= most and bits in {4, 8} and (bits == 8 or levels <= 16), "a codebook's head")
    table, rest = np.frombuffer(data[4 : 4 + 4 * levels], "<f4"), data[4 + 4 * levels :]
    must(data[4:8] == bytes(4), "level 0 is not +0")
    if layout == 0:
        return table[unpack_indices(rest, n, bits, levels)]
    must(layout == 1, "a codebook's layout")
    mask_bytes = struct.unpack_from("<I", rest)[0]
    marks = decode_adaptive(rest[4 : 4 + mask_bytes], n, "binary") == 1
    values = np.zeros(n, np.float32)
    values[marks] = table[1:][unpack_indices(rest[4 + mask_bytes :], int(marks.sum()), bits, levels - 1)]
    return values


def unpack_indices(frame: bytes, m: int, bits: int, below: int) -> np.ndarray:
    packed = np.frombuffer(unframe(frame, -(-bits * m // 8)), np.uint8)
    indices = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    must(not indices[m:].any() and (indices[:m] < below).all(), "an index")
    return indices[:m]


def decode_raw(data: bytes, n: int, dtype: str) -> bytes:
    must(len(data) == n * BYTES[dtype], "raw bytes")
    return data


def decode_planes(data: bytes, n: int, dtype: str) -> bytes:
    w = BYTES[dtype]
    at, planes = 4 * w, []
    for length in struct.unpack_from(f"<{w}I", data):
        piece = data[at : at + length]
        planes.append(np.frombuffer(piece if length == n else unframe(piece, n), np.uint8))
        must(length <= n, "a plane's length")
        at += length
    must(at == len(data), "bytes behind the planes")
    words = np.stack(planes, axis=1).reshape(-1).view(f"<u{w}")
    if dtype in ROTATED:
        words = words >> 1 | words << (8 * w - 1)
    return words.tobytes()


LATTICE = {"F32": (23, 255, 71), "BF16": (7, 255, 39), "F16": (10, 31, 39), "F8_E4M3": (3, 15, 23),
           "F8_E5M2": (2, 31, 23), "F8_E4M3FNUZ": (3, 15, 23), "F8_E5M2FNUZ": (2, 31, 23)}  # fmt: skip


def decode_lattice(data: bytes, base: bytes, dtype: str) -> bytes:
    """lattice.md"""
    size = BYTES[dtype]
    if data[0] == 0:
        must(len(data) == 1, "bytes behind mode 0")
        return base
    if data[0] in {1, 2}:
        coded = decode_planes(data[1:], len(base) // size, dtype if data[0] == 2 else f"U{8 * size}")
        return coded if data[0] == 2 else restored(base, coded, size)
    must(data[0] == 3 and dtype in LATTICE, "an unknown mode")
    s, m, most = LATTICE[dtype]
    w, words = 8 * size, np.frombuffer(base, f"<u{size}").tolist()
    _, B, log, low, width, first, model_bytes, count, open_bytes = struct.unpack_from("<BBBBIIIII", data)
    must(8 <= B <= 12 and 3 <= log <= 8 and low <= m, "a head")
    must(0 < first <= width or first == width == 0, "segments")
    lanes, n = 1 << log, len(words)
    must(24 + model_bytes + 4 * lanes + 2 * count + open_bytes == len(data), "a chunk's size")
    segments = 1 + -(-max(n - first, 0) // width) if width else 1
    frame = data[24 : 24 + model_bytes]
    size_of_model = zstandard.get_frame_parameters(frame).content_size
    directions = 8 * (segments + width) if width <= n else 0
    must(size_of_model <= 133 + 64 * (2 * most - 1) + segments + directions, "a model's size")
    model = unframe(frame, size_of_model)
    tables, a, k = model[0], model[1], model[2]
    must(1 <= tables <= 64 and 1 <= a <= most and k <= 8 and (k == 0 or 0 < width <= n), "a model")
    v, g = (2 * a - 1, 4) if k else (a, 1)
    weights, rest = model[3 : 3 + tables * v], model[3 + tables * v :]
    shifts, rest = rest[:segments], rest[segments:]
    must(len(shifts) == segments and max(shifts) <= 15, "a model's shifts")
    x = max(shifts)
    table_of, rest = rest[: g * (16 + x)], rest[g * (16 + x) :]
    must(len(table_of) == g * (16 + x) and len(rest) == (6 + k * (segments + width) if k else 0), "a model's parts")
    must(max(table_of) < tables and max(weights) < 64, "a table or a weight")
    marks = struct.unpack_from("<3H", rest) if k else ()
    numbers = [byte - 256 if byte > 127 else byte for byte in rest[6:]]
    must(all(-7 <= number <= 7 for number in numbers), "directions")
    must(not k or 0 < marks[0] <= marks[1] <= marks[2] < 1 << 15, "marks")
    across, along = numbers[: segments * k], numbers[segments * k :]
    places = [_places(weights[t * v : (t + 1) * v], B, signed=k > 0) for t in range(tables)]
    at = 24 + model_bytes
    states = list(struct.unpack_from(f"<{lanes}I", data, at))
    stream = list(struct.unpack_from(f"<{count}H", data, at + 4 * lanes))[::-1]
    bits, used = int.from_bytes(data[len(data) - open_bytes :], "little"), 0
    out = []
    for i, word in enumerate(words):
        level = min(max((word >> s & m) - low, 0), 15)
        segment = (i + width - first) // width if width else 0
        z = (i + width - first) % width if width else 0
        prediction = sum(across[segment * k + j] * along[j * width + z] for j in range(k))
        grade = sum(mark <= abs(prediction) for mark in marks)
        state = states[i % lanes]
        symbol, f, c = places[table_of[grade * (16 + x) + level + shifts[segment]]][state % (1 << B)]
        state = f * (state >> B) + state % (1 << B) - c
        if state < 1 << 16:
            must(stream, "words end")
            state = state << 16 | stream.pop()
        states[i % lanes] = state
        d = abs(symbol)
        if d >= 16:
            h = (d - 16) // 2 + 3
            d = (2 + d % 2 << h) + (bits >> used & (1 << h) - 1)
            used += h
        d = d if (symbol > 0) == (prediction >= 0) else -d
        out.append(_turn((_turn(word, w) + d) % (1 << w), w))
    must(not stream and all(state == 1 << 16 for state in states), "words are left")
    must(open_bytes == -(-used // 8) and bits >> used == 0, "open bits")
    return np.array(out, f"<u{size}").tobytes()


def _places(weights: bytes, B: int, *, signed: bool) -> list[tuple[int, int, int]]:
    """Of each place of a table its signed symbol, f and c."""
    if not signed:
        weights = weights[:1] + bytes(q for q in weights[1:] for _ in "+-")
    scaled = [(4 + p % 4) << p // 4 if p else 0 for p in weights]
    must(sum(scaled), "a table without symbols")
    f = [(each << B) // sum(scaled) for each in scaled]
    f[0] = (1 << B) - sum(f[1:])
    found: list[tuple[int, int, int]] = []
    for j, each in enumerate(f):
        found += [((j + 1) // 2 if j % 2 else -(j // 2), each, len(found))] * each
    return found


def _turn(bits: int, w: int) -> int:
    return bits ^ ((1 << w - 1) - 1) if bits >> w - 1 else bits


def decode_lanes(data: bytes, base: bytes, dtype: str) -> bytes:
    """codecs/lanes.md"""
    must(data, "an empty chunk")
    bits, at, n = data[0], 1, len(base)
    if bits == 0:
        must(len(data) == 1, "bytes behind the base's")
        return base
    if bits == 1:
        return decode_planes(data[1:], n // BYTES[dtype], dtype)
    must(bits in {4, 8, 16, 32, 64} and bits <= 8 * BYTES[dtype], "lanes")
    item = max(1, bits // 8)
    planes = []
    for _ in range(item):
        a, b = struct.unpack_from("<II", data, at)
        mask, frame, at = data[at + 8 : at + 8 + a], data[at + 8 + a : at + 8 + a + b], at + 8 + a + b
        marks = decode_adaptive(mask, n // item, "binary") if a else np.ones(n // item, np.uint8)
        plane = np.zeros(n // item, np.uint8)
        plane[marks == 1] = np.frombuffer(unframe(frame, int(marks.sum())), np.uint8)
        must(not a or plane[marks == 1].all(), "a marked difference of 0")
        planes.append(plane)
    must(at == len(data), "bytes behind the planes")
    coded = np.stack(planes, axis=1).tobytes()
    if bits >= 8:
        return restored(base, coded, item)
    return bytes((((b >> 4) + (z >> 4)) % 16) << 4 | (b + z) % 16 for b, z in zip(base, coded, strict=True))


LOSSLESS = {"lanes": decode_lanes, "lattice": decode_lattice}


# --- arithmetic.md ----------------------------------------------------------------------------------------------------


def to_work(data: bytes, dtype: str, work: type) -> np.ndarray:
    """W(x)"""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).astype(work)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(work)


def rounded(values: np.ndarray, dtype: str) -> bytes:
    """round_D(x)"""
    if dtype == "BF16":
        words = values.view(np.uint32)
        upper, lower = words >> np.uint32(16), words & np.uint32(0xFFFF)
        up = (lower > 0x8000) | ((lower == 0x8000) & (upper & np.uint32(1) == 1))
        return (upper + up).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def kept(data: bytes, base_dtype: str, dtype: str) -> bytes:
    """The base's element: bit for bit, or in another type."""
    if dtype == base_dtype:
        return data
    return rounded(to_work(data, base_dtype, np.float64 if dtype == "F64" else np.float32), dtype)


def chosen(symbols: np.ndarray, zero: bytes, other: bytes, dtype: str) -> bytes:
    """Elements of `zero` where the symbol is 0, else of `other`."""
    left, right = (np.frombuffer(data, np.uint8).reshape(-1, BYTES[dtype]) for data in (zero, other))
    return np.where(symbols[:, None] == 0, left, right).tobytes()


def restored(decoded: bytes, coded: bytes, size: int) -> bytes:
    """codecs/difference.md"""
    out = bytearray()
    for at in range(0, len(coded), size):
        z = int.from_bytes(coded[at : at + size], "little")
        d = z // 2 if z % 2 == 0 else -(z // 2) - 1
        out += ((int.from_bytes(decoded[at : at + size], "little") + d) % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(out) + decoded[len(coded) :]


def summed(rows: list[np.ndarray]) -> np.ndarray:
    """From left to right, beginning with the first."""
    total = rows[0].copy()
    for row in rows[1:]:
        total = total + row
    return total


class Archive:
    """An archive: README.md, "How to read one task"."""

    def __init__(self, path: Path, base: dict[str, Decoded] | None = None) -> None:
        self._read = open_container(path)
        self.manifest = read_manifest(self._read("tall.json"))
        self._given = base
        self._base = self._parts(self.manifest["base"]["parts"], "base", "")

    @property
    def tasks(self) -> list[str]:
        return list(self.manifest["tasks"])

    def decode(self, task: str, *, exact: bool = False) -> dict[str, Decoded]:
        with np.errstate(all="ignore"):
            return self._decode(task, exact)

    def weights_files(self, task: str) -> dict[str, tuple[dict[str, str], dict[str, Decoded]]]:
        """A task as a model's folder has it: manifest.md, "Weights files". Path → the header's metadata, and tensors."""
        files = self.manifest["tasks"][task].get("weights", [{"path": "model.safetensors"}])
        by_prefix = {file.get("prefix", ""): file for file in files}
        must(len(by_prefix) == len(files), "two files of one prefix")
        out = {file["path"]: (file.get("metadata", {"format": "pt"}), {}) for file in files}
        for name, tensor in self.decode(task).items():
            prefix = max((prefix for prefix in by_prefix if name.startswith(prefix)), key=len, default=None)
            must(prefix is not None, f"{name}: no weights file")
            out[by_prefix[prefix]["path"]][1][name[len(prefix) :]] = tensor
        return out

    def _decode(self, task: str, exact: bool) -> dict[str, Decoded]:
        facts = self.manifest["tasks"][task]
        masks, entries = self._entries(task)
        private = self._parts(facts["parts"].get("private", []), "private", task)
        group = next(g for g in self.manifest["groups"] if g["id"] == facts["group"])
        vectors = self._parts(group["parts"], "vector", group["id"])
        lost = self._parts(facts["parts"]["exact"], "exact", task) if exact else None
        out: dict[str, Decoded | None] = {}
        for name, entry in entries.items():
            if entry["kind"] == "tied":
                out[name] = None
                continue
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            if entry["kind"] == "private":
                data = private.whole(name)
            else:
                start = self._start(task, name, entry) if "start" in entry else self._from_base(name, entry)
                data = self._moved(name, entry, start, masks, vectors)
            if entry["kind"] != "private" and covered(entry) < counted(dtype, shape):
                data += private.whole(name)
            if lost is not None and entry["kind"] in {"binary", "signed", "delta"}:
                data = restored(data, lost.whole(name), BYTES[dtype])
            must(len(data) == counted(dtype, shape) * BYTES[dtype], f"{name}: bytes")
            out[name] = dtype, shape, data
        found = {name: out[entries[name]["to"]] if value is None else value for name, value in out.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _from_base(self, name: str, entry: dict[str, Any]) -> tuple[str, bytes]:
        """The elements that an entry builds on, and their type."""
        dtype, shape, data = self._base_tensor(entry["base"])
        must(list(shape) == entry["shape"] or "rows" in entry, f"{name}: shape")
        return dtype, data[: covered(entry) * BYTES[dtype]]

    def _moved(self, name: str, entry: dict[str, Any], start: tuple[str, bytes], masks: Parts, vectors: Parts) -> bytes:
        """The elements that come from the base, or from other tasks."""
        dtype, n = entry["dtype"], covered(entry)
        base_dtype, base = start
        same = kept(base, base_dtype, dtype)
        if entry["kind"] == "base":
            return same
        if entry["kind"] == "lossless":
            must(entry["codec"] in LOSSLESS, f"{name}: codec")
            size = BYTES[dtype]
            return b"".join(
                LOSSLESS[entry["codec"]](data, same[a * size : b * size], dtype) for a, b, data in masks.chunks(name)
            )
        work = np.float64 if dtype == "F64" else np.float32
        before = to_work(base, base_dtype, work)
        if entry["kind"] == "delta":
            return rounded(before + masks.values(name).astype(work), dtype)
        symbols = masks.symbols(name)
        must(vectors.entries[entry["base"]]["chunk"] == entry["chunk"], f"{name}: chunk")
        scales = np.repeat(np.array(entry.get("scales", [1] * len(entry["chunks"])), work), entry["chunk"])[:n]
        step = scales * vectors.values(entry["base"])[:n].astype(work)
        moved = np.where(symbols == 2, before - step, before + step)
        return chosen(symbols, same, rounded(moved, dtype), dtype)

    # relatives.md

    def _entries(self, task: str) -> tuple[Parts, dict[str, dict[str, Any]]]:
        """A task's own parts, and the entries that it has."""
        facts = self.manifest["tasks"][task]
        relatives = facts.get("relatives")
        own = self._parts(facts["parts"]["mask"], "mask" if relatives is None else "relative", task)
        if relatives is None or "head" not in relatives:
            return own, own.entries
        head = self._entries(relatives["head"])[1]
        others = [self._entries(other)[1] for other in relatives["tasks"]]
        taken = {entry.get("base") for entry in head.values()}
        found = {}
        for name, entry in head.items():
            found[name] = own.entries.get(name, entry)
            if name in own.entries or entry["kind"] == "tied":
                continue
            base = entry.get("base") if "rows" not in entry else None
            facts = self.manifest["base"]["tensors"].get(name)
            if base is None and facts is not None and name not in taken:
                base = name if facts["shape"] == entry["shape"] and facts["dtype"] in ROTATED else None
            alike = entry["dtype"] in ROTATED
            for other in others:
                there = other.get(name, {})
                there = other[there["to"]] if there.get("kind") == "tied" else there
                alike = alike and there.get("shape") == entry["shape"] and there.get("dtype") in ROTATED
            start = [float(other == relatives["head"]) for other in relatives["tasks"]]
            if alike and (base is not None or relatives["merge"]["method"] == "linear"):
                start = []
            found[name] = {"kind": "base", "dtype": entry["dtype"], "shape": entry["shape"], "base": base}
            found[name]["start"] = start
        return own, found | {name: entry for name, entry in own.entries.items() if name not in head}

    def _start(self, task: str, name: str, entry: dict[str, Any]) -> tuple[str, bytes]:
        """The elements that tasks merge to, in the entry's type."""
        relatives = self.manifest["tasks"][task]["relatives"]
        dtype, merge = entry["dtype"], relatives["merge"]
        if entry["start"]:
            merge = {"method": "linear", "weights": entry["start"]}
        must(len(merge["weights"]) == len(relatives["tasks"]), f"{name}: weights")
        pairs = [
            (at, other)
            for at, other in enumerate(relatives["tasks"])
            if merge["method"] != "linear" or merge["weights"][at]
        ]
        must(pairs, f"{name}: nothing counts")
        decoded = [self._decode(other, False)[name] for _, other in pairs]
        n = covered(entry)
        for other_dtype, shape, data in decoded:
            must(list(shape) == entry["shape"] or entry["shape"][1:] == list(shape[1:]), f"{name}: shape")
            must(len(data) >= n * BYTES[other_dtype], f"{name}: elements")
        cut = [(other, data[: n * BYTES[other]]) for other, _, data in decoded]
        if merge["method"] == "linear" and [merge["weights"][at] for at, _ in pairs] == [1]:
            return dtype, kept(cut[0][1], cut[0][0], dtype)
        work = np.float64 if dtype == "F64" else np.float32
        x = [to_work(data, other, work) for other, data in cut]
        c = [work(merge["weights"][at]) for at, _ in pairs]
        if merge["method"] == "linear":
            return dtype, rounded(summed([a * b for a, b in zip(c, x, strict=True)]), dtype)
        base_dtype, base = self._from_base(name, entry)
        zero = to_work(base, base_dtype, work)
        d = [each - zero for each in x]
        if merge["method"] == "ties":
            limits = [work(merge["thresholds"][at]) for at, _ in pairs]
            d = [np.where(np.abs(each) >= limit, each, work(0)) for each, limit in zip(d, limits, strict=True)]
            total = summed(d)
            plus = (total > 0) | ((total == 0) & (merge["sign"] == 1))
            on = [np.where(plus, each > 0, each < 0) for each in d]
            moved = summed([np.where(a, each * b, work(0)) for a, each, b in zip(on, d, c, strict=True)])
            if merge["average"]:
                moved = moved / np.maximum(sum(each.astype(int) for each in on), 1).astype(work)
            return dtype, rounded(zero + moved, dtype)
        moved = zero + summed([each * b for each, b in zip(d, c, strict=True)])
        if merge["method"] == "consensus":
            users = sum((each != 0).astype(int) for each in d)
            moved = np.where(users >= merge["k"], moved, zero)
        else:
            must(merge["method"] == "arithmetic", "an unknown method")
        return dtype, rounded(moved, dtype)

    def _base_tensor(self, name: str) -> Decoded:
        facts = self.manifest["base"]["tensors"][name]
        if self.manifest["base"]["storage"] == "reference":
            must(self._given is not None, "the base is needed")
            dtype, shape, data = self._given[name]
        else:
            at = self._base.entries[name].get("to", name)
            entry = self._base.entries[at]
            dtype, shape, data = entry["dtype"], tuple(entry["shape"]), self._base.whole(at)
        must((dtype, list(shape)) == (facts["dtype"], facts["shape"]), f"{name}: not the base's type and shape")
        must(hashlib.sha256(data).hexdigest() == facts["sha256"], f"{name}: not the base's bytes")
        return dtype, shape, data

    def _parts(self, paths: list[str], part: str, owner: str) -> Parts:
        return Parts(self._read, self.manifest, paths, part, owner)
