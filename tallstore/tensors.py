"""Between torch and the format: element types under both names, and tensors as bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallstore.format.dtypes import ITEM_BITS, PACKED, count
from tallstore.memory import blocks

_BYTES = torch.uint8
"""Stands for a type that torch, or this torch, lacks: its tensors are their bytes."""

TORCH = {
    "F4": getattr(torch, "float4_e2m1fn_x2", _BYTES), "F6_E2M3": _BYTES, "F6_E3M2": _BYTES,
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": getattr(torch, "float8_e8m0fnu", _BYTES),
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16,
    "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
"""The format's element types as torch's: `uint8`, each element a byte of the tensor's, for those that it lacks."""

NAME = {dtype: name for name, dtype in TORCH.items() if dtype is not _BYTES or name == "U8"}
"""torch's element types under the format's names."""


@contextmanager
def usual_device() -> Iterator[None]:
    """New tensors that say nothing else are on the CPU, in this thread, whatever device the caller works under.

    Loaders of models set it while they work (the device `meta`), and so do users. They set a type as well, but that is
    the whole process's: it is not touched, as other threads may be making layers, and what is decoded says its own.
    """
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield


def shape_of(dtype: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape that a tensor of the format's type and shape has in torch.

    It is the same, but for packed types, whose elements torch counts by bytes (as `float4_e2m1fn_x2` does): then the
    last size is that of a row's bytes, or, where rows do not end with a byte, there is but that of all bytes.
    """
    if dtype not in PACKED:
        return tuple(shape)
    if shape and shape[-1] * ITEM_BITS[dtype] % 8 == 0:
        return (*shape[:-1], shape[-1] * ITEM_BITS[dtype] // 8)
    return (count(dtype, shape),)


def named_shape(dtype: str, tensor: Tensor) -> tuple[int, ...]:
    """The shape that the format gives a tensor of torch's, where its type in the format is `dtype`."""
    if dtype not in PACKED:
        return tuple(tensor.shape)
    return (*tensor.shape[:-1], tensor.shape[-1] * 8 // ITEM_BITS[dtype])


def as_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """A contiguous CPU tensor's bytes, shape (bytes,): a view, nothing is copied."""
    flat = tensor.detach().reshape(-1)
    if not (n := flat.numel()):
        return np.empty(0, np.uint8)
    if n == 1:  # whose stride may be anything
        flat = flat.as_strided((1,), (1,))
    raw: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return raw


def convert_bytes(raw: npt.NDArray[np.uint8], dtype: str, out: npt.NDArray[np.uint8], to: str) -> None:
    """Convert elements of `dtype`, as bytes, to those of another type, as torch does."""
    torch.from_numpy(out).view(TORCH[to]).copy_(torch.from_numpy(raw).view(TORCH[dtype]))


def empty(dtype: str, n: int) -> Tensor:
    """An uninitialised flat CPU tensor of `n` elements.

    Large ones are numpy's, which asks the system for huge pages: touching them first takes a third of the time.
    """
    kind = TORCH[dtype]
    if n * kind.itemsize < _LARGE:
        return torch.empty(n, dtype=kind)
    return torch.from_numpy(np.empty(n * kind.itemsize, np.uint8)).view(kind)


def empties(wanted: Mapping[str, tuple[str, int]]) -> dict[str, Tensor]:
    """Uninitialised flat CPU tensors by name, of types and elements as given, each with a storage of its own.

    Neighbours share a block of memory that is large enough for huge pages: a block is given up with the last of them.
    So tensors of 2 MiB, of which a model has many, are had as quickly as large ones.
    """
    cuts: list[dict[str, int]] = []
    sizes: list[int] = []
    for name, (dtype, n) in wanted.items():
        size = n * TORCH[dtype].itemsize
        if not cuts or (cuts[-1] and sizes[-1] + size > _BLOCK):
            cuts.append({})
            sizes.append(_ALIGNED)
        cuts[-1][name] = sizes[-1] - _ALIGNED
        sizes[-1] += -(-size // _ALIGNED) * _ALIGNED
    out: dict[str, Tensor] = {}
    for cut, memory in zip(cuts, blocks(sizes), strict=True):
        first = -memory.ctypes.data % _ALIGNED
        for name, start in cut.items():
            dtype, n = wanted[name]
            kind = TORCH[dtype]
            own = memory[first + start : first + start + n * kind.itemsize]
            out[name] = torch.from_numpy(own).view(kind)
    return out


_LARGE = 1 << 22
"""Bytes from which on numpy asks."""
_BLOCK = 1 << 26
"""Bytes of a block; a larger tensor has one to itself."""
_ALIGNED = 64
"""Where tensors begin, in bytes: a line of the cache."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch from sharing this thread's operations out: helpers of short ones wait for the next at full speed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
