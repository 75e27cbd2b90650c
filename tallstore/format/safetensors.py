"""The safetensors container: its header, read strictly and written deterministically, one beside the other.

The library of that name reads whole files; an archive needs the byte range of each tensor, so that one task can be
read from a mapped file, a zip entry or a remote object alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tallstore.errors import FormatError
from tallstore.format import limits, strict_json
from tallstore.format.dtypes import ITEM_BYTES, check_count, check_dtype, size_of
from tallstore.format.names import check_tensor_name

PREFIX = 8
"""Bytes of the little-endian header length in front of the header."""


@dataclass(frozen=True)
class TensorSlot:
    """Where a tensor lies: type, shape, and byte range counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A parsed header: its tensors in order of offset, its metadata, and how many bytes prefix and header take."""

    slots: Mapping[str, TensorSlot]
    metadata: Mapping[str, str]
    size: int


def header_size(prefix: bytes, file_size: int, where: str) -> int:
    """From the first 8 bytes: how many bytes prefix and header take. Checked against caps and the file's size."""
    if len(prefix) < PREFIX:
        raise FormatError(f"{where}: too short for a safetensors file")
    size = int.from_bytes(prefix[:PREFIX], "little")
    if size > limits.HEADER_BYTES:
        raise FormatError(f"{where}: safetensors header of {size} bytes is over the cap of {limits.HEADER_BYTES}")
    if PREFIX + size > file_size:
        raise FormatError(f"{where}: cut off inside the safetensors header")
    return PREFIX + size


def parse(data: bytes, file_size: int, where: str) -> Header:
    """Parse prefix and header. No gap, no overlap, no byte beyond the last tensor is allowed.

    Args:
        data: the first `header_size(...)` bytes of the file.
        file_size: bytes of the whole file.
        where: the file's name, for messages.
    """
    size = header_size(data, file_size, where)
    parsed = strict_json.loads(bytes(data[PREFIX:size]), where)
    if not isinstance(parsed, dict):
        raise FormatError(f"{where}: the safetensors header is not an object")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{where}: safetensors metadata is not a map of strings")
    if len(parsed) > limits.TENSORS:
        raise FormatError(f"{where}: {len(parsed)} tensors are over the cap of {limits.TENSORS}")
    slots = {check_tensor_name(name): _slot(value, f"{where}: tensor {name!r}") for name, value in parsed.items()}
    slots = dict(sorted(slots.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 0
    for name, slot in slots.items():
        if slot.start != end:
            raise FormatError(f"{where}: tensor {name!r} begins at {slot.start}, expected {end} (gap or overlap)")
        end = slot.stop
    if size + end != file_size:
        raise FormatError(f"{where}: {file_size} bytes long, where its header says {size + end}")
    return Header(slots, metadata, size)


def _slot(value: Any, where: str) -> TensorSlot:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: not a tensor description")
    dtype = check_dtype(value["dtype"], where)
    shape = check_shape(value["shape"], where)
    offsets = value["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise FormatError(f"{where}: data_offsets {offsets!r} are not two offsets")
    start, stop = offsets
    if stop - start != check_count(dtype, shape, where) * ITEM_BYTES[dtype]:
        raise FormatError(f"{where}: {stop - start} bytes do not hold {dtype} of shape {list(shape)}")
    return TensorSlot(dtype, shape, start, stop)


def is_count(value: object) -> bool:
    """Whether a JSON value is a whole number ≥ 0 (true and false are not)."""
    return type(value) is int and value >= 0


def check_shape(value: object, where: str) -> tuple[int, ...]:
    """Return a shape as a tuple, its rank and its number of elements within the caps."""
    if not isinstance(value, list) or len(value) > limits.RANK or not all(map(is_count, value)):
        raise FormatError(f"{where}: shape {value!r} is not a list of at most {limits.RANK} sizes")
    if (math.prod(value) or math.prod(n for n in value if n)) > limits.ELEMENTS:
        raise FormatError(f"{where}: shape {value!r} has more than {limits.ELEMENTS} elements")
    return tuple(value)


def build(
    tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str], *, align: int = limits.ALIGNMENT
) -> bytes:
    """Prefix and header for tensors (name, dtype, shape) laid out in the given order.

    The header is padded with spaces so that the data begins at a multiple of `align`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + size_of(dtype, shape)
        header[check_tensor_name(name)] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = strict_json.dumps(header)
    text += b" " * (-(PREFIX + len(text)) % align)
    if len(text) > limits.HEADER_BYTES:
        raise FormatError(f"a header of {len(text)} bytes is over the cap of {limits.HEADER_BYTES}")
    return len(text).to_bytes(PREFIX, "little") + text
