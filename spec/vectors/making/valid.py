"""What valid vectors are made with: a case, an archive of one task, and coded bytes written out by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from .build import Archive, Item, Part, noted, vector, whole
from .numbers import (
    Array,
    Tensor,
    floats,
    noise,
    noise_bytes,
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
    wide: bool = False
    """With ZIP64 fields and records."""
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
        known = {k: more.pop(k) for k in ("file", "wide", "given", "exact", "unlisted") if k in more}
        return Case(about, self.archive(**more), {self.task: self.decoded}, **known)


def few(dtype: str, seed: str, n: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """A tensor of sixteen different values: it takes little room when it is coded."""
    levels = noise(seed, 16, 118, 126)
    return floats(dtype, levels[np.frombuffer(noise_bytes(f"{seed} places", n), np.uint8) % 16], shape or (n,))


def cut(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Values that bfloat16 holds exactly."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


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
