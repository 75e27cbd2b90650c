"""A part: a safetensors file whose tensors are opaque coded bytes, and whose metadata says how to read them.

Every part describes itself: what it is, whose it is, and per tensor an `Entry`. Coded bytes are stored as one U8
tensor under the tensor's own name, so that a stock loader that is given a part fails on types and shapes instead of
loading noise; the metadata's `format` is not one that transformers accepts, for the same reason.

Headers of many tasks are in memory at once, and say much the same: their words are interned.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from tallstore.errors import CodecError, FormatError
from tallstore.format import limits, safetensors, strict_json
from tallstore.format.dtypes import MASKABLE, PACKED, check_count, check_dtype, count
from tallstore.format.names import check_tensor_name
from tallstore.format.relatives import check_weights
from tallstore.format.version import VERSION, check_version, needed, newest

METADATA_KEY = "tallstore"
CHECKSUM_DIGITS = 16
_HEX = re.compile("[0-9a-f]*")

KINDS_IN_PART: Mapping[str, frozenset[str]] = {
    "base": frozenset({"whole", "tied"}),
    "vector": frozenset({"vector"}),
    "mask": frozenset({"base", "binary", "signed", "delta", "lossless", "sampled", "private", "tied"}),
    "relative": frozenset({"base", "binary", "signed", "delta", "lossless", "sampled", "private", "tied"}),
    "private": frozenset({"whole"}),
    "exact": frozenset({"difference"}),
}
"""Which kinds of entry each kind of part may hold."""

WHY = frozenset({"unmatched", "small", "type", "numbers", "budget"})
"""Why a tensor is stored whole, as its packer says: the specification tells what each word means."""

_WORDS = ("U8", "U16", "U32", "U64")
"""What differences are coded as, by the size of an element."""
CONDITIONAL_KINDS = frozenset({"lossless", "sampled"})
"""Kinds whose codec turns the elements that a tensor builds on into its own."""
_SAMPLED = ("F32", "BF16", "F16")
_STARTING = frozenset({"base", "binary", "signed", "delta"}) | CONDITIONAL_KINDS
"""Kinds that build on elements that are there: the base's, or in a relative part those of other tasks."""
_CODED = frozenset({"codec", "chunk", "chunks"})
_FIELDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    # kind: (members that must be there, members that may be)
    "whole": (frozenset({"dtype", "shape"}) | _CODED, frozenset()),
    "vector": (frozenset({"shape"}) | _CODED, frozenset()),
    "base": (frozenset({"dtype", "shape", "base"}), frozenset({"rows"})),
    "binary": (frozenset({"dtype", "shape", "base"}) | _CODED, frozenset({"rows", "scales"})),
    "signed": (frozenset({"dtype", "shape", "base"}) | _CODED, frozenset({"rows", "scales"})),
    "delta": (frozenset({"dtype", "shape", "base"}) | _CODED, frozenset({"rows"})),
    "lossless": (frozenset({"dtype", "shape", "base"}) | _CODED, frozenset({"rows"})),
    "sampled": (frozenset({"dtype", "shape", "base"}) | _CODED, frozenset({"rows"})),
    "private": (frozenset({"dtype", "shape"}), frozenset({"why"})),
    "tied": (frozenset({"to"}), frozenset()),
    "difference": (frozenset({"dtype", "shape"}) | _CODED, frozenset()),
}


class ChunkIndex(Sequence[tuple[int, str]]):
    """Of each chunk its bytes and its xxh3-64 in hex, held in 16 bytes: large models have millions."""

    __slots__ = ("_digests", "_lengths")

    def __init__(self, chunks: Iterable[tuple[int, str]]) -> None:
        self._lengths, digests = array("Q"), bytearray()
        for length, digest in chunks:
            self._lengths.append(length)
            digests += bytes.fromhex(digest)
        self._digests = bytes(digests)

    def __len__(self) -> int:
        return len(self._lengths)

    @overload
    def __getitem__(self, at: int) -> tuple[int, str]: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[tuple[int, str], ...]: ...
    def __getitem__(self, at: int | slice) -> tuple[int, str] | tuple[tuple[int, str], ...]:
        if isinstance(at, slice):
            return tuple(self[n] for n in range(*at.indices(len(self))))
        at = range(len(self))[at]
        return self._lengths[at], self._digests[8 * at : 8 * at + 8].hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def size(self) -> int:
        """Bytes of all."""
        return sum(self._lengths)

    def before(self, index: int) -> int:
        """Bytes of those in front of one."""
        return sum(self._lengths[:index]) if index else 0

    def length(self, index: int) -> int:
        """Bytes of one."""
        return self._lengths[index]

    def digest(self, index: int) -> bytes:
        """The xxh3-64 of one, most significant byte first."""
        return self._digests[8 * index : 8 * index + 8]


@dataclass(frozen=True, slots=True)
class CodedRanges:
    """How a tensor's coded bytes are cut: `chunk` elements each, per chunk its bytes and its xxh3-64 in hex."""

    codec: str
    chunk: int
    chunks: ChunkIndex

    @property
    def size(self) -> int:
        """Coded bytes, before padding."""
        return self.chunks.size()

    @property
    def padded(self) -> int:
        """Coded bytes with the zeros that follow them."""
        size = self.size
        return size + -size % limits.BLOB_ALIGNMENT


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What a part says of one tensor. Which members are there depends on the kind: see `_FIELDS`."""

    kind: str
    dtype: str | None = None
    """Element type of the decoded tensor."""
    shape: tuple[int, ...] | None = None
    """Shape of the decoded tensor."""
    base: str | None = None
    """Name of the base tensor that the decoder starts from."""
    rows: int | None = None
    """Leading rows that the base covers, where the tensor's first dimension is not the base's."""
    scales: tuple[float, ...] | None = None
    """The scale s of each chunk; all 1 where absent. Each is exactly a float32."""
    to: str | None = None
    """For `tied`: the name of the tensor of the same task that this one shares its memory with."""
    why: str | None = None
    """For `private`: one of WHY, where the packer said it. For people alone: nothing is decoded by it."""
    start: tuple[float, ...] | None = None
    """In a relative part: it builds not on the base's elements but on those that the task's relatives merge to: by
    these weights, one a relative, or where there are none by the task's own recipe."""
    coded: CodedRanges | None = None

    @property
    def numel(self) -> int:
        """Elements of the decoded tensor; bytes where its type is packed."""
        return count(self.dtype, self.shape or ())

    @property
    def covered(self) -> int:
        """Elements that the entry's coded bytes or its base stand for: all, or `rows` leading rows."""
        return _covered(self.dtype, self.shape or (), self.rows)

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON, absent members left out."""
        out: dict[str, Any] = {"kind": self.kind}
        for key in ("dtype", "base", "rows", "to", "why"):
            if (value := getattr(self, key)) is not None:
                out[key] = value
        if self.shape is not None:
            out["shape"] = list(self.shape)
        if self.scales is not None:
            out["scales"] = list(self.scales)
        if self.start is not None:
            out["start"] = list(self.start)
        if self.coded is not None:
            out |= {
                "codec": self.coded.codec,
                "chunk": self.coded.chunk,
                "chunks": [list(c) for c in self.coded.chunks],
            }
        return out

    @classmethod
    def from_json(cls, value: Any, where: str, *, relative: bool = False) -> Entry:
        """Parse and validate. Members that the kind does not know are ignored: a newer minor version may add them.

        `relative`: of a part of that kind, whose entries may have a `start`, and need no base then.
        """
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise FormatError(f"{where}: not a tensor entry")
        kind = value["kind"]
        if kind not in _FIELDS:
            raise CodecError(f"{where}: entry kind {kind!r} is unknown; a newer tallstore may read it")
        needed, optional = _FIELDS[kind]
        if relative and kind in _STARTING and "start" in value:
            needed, optional = (needed - {"base"}) | {"start"}, optional | {"base"}
        if not needed <= value.keys():
            raise FormatError(f"{where}: {kind} entry lacks {', '.join(sorted(needed - value.keys()))}")
        fields = {
            key: parse(value[key], where)
            for key, parse in _PARSE.items()
            if key in needed or (key in optional and key in value)
        }
        if "codec" in needed:
            fields["coded"] = _coded(value, _covered(fields.get("dtype"), fields["shape"], fields.get("rows")), where)
        entry = cls(kind=sys.intern(kind), **fields)
        entry._check(where)
        return entry

    def _check(self, where: str) -> None:
        if self.dtype in PACKED and self.rows is not None:
            raise FormatError(f"{where}: rows of {self.dtype}, whose elements share bytes")
        if self.dtype is not None and self.shape is not None:
            check_count(self.dtype, self.shape, where)
        if self.rows is not None and (not self.shape or self.rows > self.shape[0]):
            raise FormatError(f"{where}: rows {self.rows} do not fit shape {self.shape}")
        if self.start is not None and self.kind in {"binary", "signed"} and self.base is None:
            raise FormatError(f"{where}: a {self.kind} entry names no base whose vector it is over")
        if self.kind in {"binary", "signed", "delta"} and self.dtype not in MASKABLE:
            raise FormatError(f"{where}: a {self.kind} entry cannot have element type {self.dtype}")
        if self.kind == "sampled" and self.dtype not in _SAMPLED:
            raise FormatError(f"{where}: a sampled entry has element type {' or '.join(_SAMPLED)}, not {self.dtype}")
        if self.kind == "difference" and self.dtype not in _WORDS:
            raise FormatError(f"{where}: differences are of {', '.join(_WORDS)}, not {self.dtype}")
        if self.scales is not None and self.coded and len(self.scales) != len(self.coded.chunks):
            raise FormatError(f"{where}: {len(self.scales)} scales for {len(self.coded.chunks)} chunks")


def _covered(dtype: str | None, shape: tuple[int, ...], rows: int | None) -> int:
    """Elements of the leading `rows` rows; of all where there are no rows, or none are named."""
    return count(dtype, shape if rows is None or not shape else (rows, *shape[1:]))


def _text(value: Any, where: str) -> str:
    try:
        return sys.intern(check_tensor_name(value))
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def _count(value: Any, where: str) -> int:
    if not safetensors.is_count(value):
        raise FormatError(f"{where}: {value!r} is not a whole number ≥ 0")
    return int(value)


def _scales(value: Any, where: str) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(type(s) in {int, float} for s in value):
        raise FormatError(f"{where}: scales are not a list of numbers")
    try:
        exact = all(struct.unpack("<f", struct.pack("<f", s))[0] == s for s in value)
    except OverflowError:
        exact = False
    if not exact:
        raise FormatError(f"{where}: a scale is not exactly a float32")
    return tuple(float(s) for s in value)


def _start(value: Any, where: str) -> tuple[float, ...]:
    count = len(value) if isinstance(value, list) else 0
    if count > limits.RELATIVES:
        raise FormatError(f"{where}: a start of {count} weights is over the cap of {limits.RELATIVES}")
    return check_weights(value, count, where)


def _why(value: Any, where: str) -> str | None:  # noqa: ARG001 - nothing is refused for it
    """Any other word is a newer version's, and says nothing to this one."""
    return value if isinstance(value, str) and value in WHY else None


_PARSE: Mapping[str, Callable[[Any, str], Any]] = {
    "dtype": lambda value, where: sys.intern(check_dtype(value, where)),
    "shape": safetensors.check_shape,
    "base": _text,
    "rows": _count,
    "scales": _scales,
    "to": _text,
    "why": _why,
    "start": _start,
}


def _coded(value: Mapping[str, Any], covered: int, where: str) -> CodedRanges:
    codec, chunk, chunks = value["codec"], value["chunk"], value["chunks"]
    if not isinstance(codec, str):
        raise FormatError(f"{where}: codec {codec!r} is not a name")
    if not safetensors.is_count(chunk) or chunk & (chunk - 1) or not limits.CHUNK_MIN <= chunk <= limits.CHUNK_MAX:
        raise FormatError(f"{where}: chunk {chunk!r} is not a power of two in {limits.CHUNK_MIN}…{limits.CHUNK_MAX}")
    if not isinstance(chunks, list) or len(chunks) != -(-covered // chunk):
        raise FormatError(f"{where}: the chunks do not cover {covered} elements")
    for item in chunks:
        if (
            not isinstance(item, list)
            or len(item) != 2
            or not safetensors.is_count(item[0])
            or not is_hex(item[1], CHECKSUM_DIGITS)
        ):
            raise FormatError(f"{where}: {item!r} is not a chunk's length and checksum")
    return CodedRanges(sys.intern(codec), chunk, ChunkIndex((length, digest) for length, digest in chunks))


def is_hex(value: object, digits: int) -> bool:
    """Whether a JSON value is a string of exactly so many lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == digits and _HEX.fullmatch(value) is not None


@dataclass(frozen=True, kw_only=True)
class PartHeader:
    """A part's header: kind of part, owner (task name, group id, or empty for the base), and the entries in order."""

    part: str
    owner: str
    entries: Mapping[str, Entry]
    offsets: Mapping[str, int] = field(default_factory=dict)
    """Where each tensor's coded bytes begin, counted from the first byte of the part."""
    version: str = VERSION
    """At least what its kind, and its entries' kinds, codecs and element types need."""

    def __post_init__(self) -> None:
        words = {self.part}
        for entry in self.entries.values():
            words.add(entry.kind)
            if entry.dtype is not None:
                words.add(entry.dtype)
            if entry.coded is not None:
                words.add(entry.coded.codec)
        object.__setattr__(self, "version", newest((self.version, needed(words))))

    def to_bytes(self, stored: Sequence[str]) -> bytes:
        """The part's first bytes: everything in front of the coded bytes, which follow in the order of `stored`."""
        facts = {
            "version": self.version,
            "part": self.part,
            "owner": self.owner,
            "entries": {name: entry.to_json() for name, entry in self.entries.items()},
        }
        metadata = {"format": "tallstore", METADATA_KEY: strict_json.dumps(facts).decode()}
        coded = {name: entry.coded for name, entry in self.entries.items() if entry.coded is not None}
        assert set(coded) == set(stored)
        return safetensors.build([(name, "U8", (coded[name].padded,)) for name in stored], metadata)

    @classmethod
    def from_bytes(cls, data: bytes, file_size: int, where: str) -> PartHeader:
        """Parse and validate; the safetensors header and the entries must agree on every byte."""
        header = safetensors.parse(data, file_size, where)
        if header.size != len(data):
            raise FormatError(f"{where}: a header of {header.size} bytes, expected {len(data)}")
        if header.size % limits.ALIGNMENT:
            raise FormatError(f"{where}: data begins at {header.size}, not at a multiple of {limits.ALIGNMENT}")
        if METADATA_KEY not in header.metadata:
            raise FormatError(f"{where}: a safetensors file, but not a part of an archive")
        facts = strict_json.loads(header.metadata[METADATA_KEY].encode("utf-8", "surrogatepass"), where)
        if not isinstance(facts, dict) or not isinstance(facts.get("entries"), dict):
            raise FormatError(f"{where}: the part's description is not an object with entries")
        version = check_version(facts.get("version"), where)
        part, owner = facts.get("part"), facts.get("owner")
        if not isinstance(part, str) or part not in KINDS_IN_PART or not isinstance(owner, str):
            raise FormatError(f"{where}: part {part!r} of {owner!r} is unknown")
        if len(facts["entries"]) > limits.TENSORS:
            raise FormatError(f"{where}: more than {limits.TENSORS} tensors")
        entries = {
            sys.intern(check_tensor_name(name)): Entry.from_json(
                value, f"{where}: tensor {name!r}", relative=part == "relative"
            )
            for name, value in facts["entries"].items()
        }
        header_of_part = cls(
            part=part, owner=owner, entries=entries, version=version, offsets=_offsets(header, entries, where)
        )
        header_of_part._check(where)
        return header_of_part

    def _check(self, where: str) -> None:
        for name, entry in self.entries.items():
            if entry.kind not in KINDS_IN_PART[self.part]:
                raise FormatError(f"{where}: tensor {name!r}: a {self.part} part cannot hold a {entry.kind} entry")


def _offsets(header: safetensors.Header, entries: Mapping[str, Entry], where: str) -> dict[str, int]:
    coded = {name: entry.coded for name, entry in entries.items() if entry.coded is not None}
    if set(coded) != set(header.slots):
        odd = next(iter(set(coded) ^ set(header.slots)))
        raise FormatError(f"{where}: tensor {odd!r} is described but not stored, or stored but not described")
    for name, slot in header.slots.items():
        if slot.dtype != "U8" or slot.shape != (coded[name].padded,):
            raise FormatError(
                f"{where}: tensor {name!r}: {slot.stop - slot.start} bytes stored, {coded[name].padded} described"
            )
    return {sys.intern(name): header.size + slot.start for name, slot in header.slots.items()}
