"""A second reader, written from `spec/` alone: no tallstore, no torch. It decodes; it checks hashes and little else.

    archive = Archive(path)                      # a folder or a .tall file; base=… where the base is referenced
    archive.decode("mnist")                      # {tensor name: (element type, shape, bytes)}, in order
    archive.decode("mnist", exact=True)

Its codecs are in `second_codecs`, its arithmetic in `second_numbers`. Brain floats and eight-bit floats are integers here: numpy has no such types.
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
from safetensors import deserialize

from .second_codecs import (
    LOSSLESS,
    decode_adaptive,
    decode_bits,
    decode_bits_zstd,
    decode_dither,
    decode_drift,
    decode_planes,
    decode_raw,
    decode_vector,
)
from .second_dare import decode_dare
from .second_numbers import BITS, BYTES, ROTATED, chosen, kept, must, restored, rounded, summed, to_work

Decoded = tuple[str, tuple[int, ...], bytes]

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
        decode = {
            "bits": decode_bits,
            "bits+zstd": decode_bits_zstd,
            "adaptive": decode_adaptive,
            "dither": decode_dither,
        }[entry["codec"]]
        decoded = [decode(piece, stop - start, entry["kind"]) for start, stop, piece in self.chunks(name)]
        return np.concatenate([np.empty(0, np.uint8), *decoded])


def covered(entry: dict[str, Any]) -> int:
    """Elements that are coded: all, or those of the leading rows. `rows` is a member of some kinds alone."""
    shape = entry["shape"]
    if entry.get("rows") is not None and entry["kind"] in {"base", "binary", "signed", "delta", "lossless", "sampled"}:
        return int(entry["rows"]) * math.prod(shape[1:])
    return counted(entry.get("dtype", ""), shape)


def counted(dtype: str, shape: Sequence[int]) -> int:
    """Elements; bytes of packed types."""
    must(math.prod(shape) * BITS.get(dtype, 8) % 8 == 0, "elements of a packed type that do not fill bytes")
    return math.prod(shape) * BITS.get(dtype, 8) // 8


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
            if lost is not None and entry["kind"] in {"binary", "signed", "delta", "sampled"}:
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
            must(entry["codec"] in {*LOSSLESS, "drift"}, f"{name}: codec")
            size = BYTES[dtype]
            if entry["codec"] == "drift":
                must("start" in entry and "base" in entry, f"{name}: drift from nothing")
                origin_dtype, origin = self._from_base(name, entry)
                must(origin_dtype == dtype, f"{name}: drift of another type")
                return b"".join(
                    decode_drift(data, same[a * size : b * size], dtype, origin[a * size : b * size])
                    for a, b, data in masks.chunks(name)
                )
            return b"".join(
                LOSSLESS[entry["codec"]](data, same[a * size : b * size], dtype) for a, b, data in masks.chunks(name)
            )
        if entry["kind"] == "sampled":
            must(entry["codec"] == "dare" and base_dtype in ROTATED, f"{name}: codec, or the base's type")
            chunks, size = masks.chunks(name), BYTES[dtype]
            return b"".join(
                decode_dare(data, same[size * a : size * b], dtype, chunks[0][2] if a else None)
                for a, b, data in chunks
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
