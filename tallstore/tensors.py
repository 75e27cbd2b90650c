"""Between torch and the format: element types under both names, and tensors as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TORCH = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16,
    "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
"""The format's element types as torch's."""

NAME = {dtype: name for name, dtype in TORCH.items()}
"""torch's element types under the format's names."""


def as_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """A contiguous CPU tensor's bytes, shape (bytes,): a view, nothing is copied."""
    flat = tensor.detach().reshape(-1)
    if not flat.numel():
        return np.empty(0, np.uint8)
    found: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return found


def empty(dtype: str, n: int) -> Tensor:
    """An uninitialised flat CPU tensor of `n` elements.

    Large ones are numpy's, which asks the system for huge pages: touching them first takes a third of the time.
    """
    kind = TORCH[dtype]
    if n * kind.itemsize < _LARGE:
        return torch.empty(n, dtype=kind)
    return torch.from_numpy(np.empty(n * kind.itemsize, np.uint8)).view(kind)


_LARGE = 1 << 22
"""Bytes from which on numpy asks."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch from sharing this thread's operations out: helpers of short ones wait for the next at full speed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
