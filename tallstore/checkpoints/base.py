"""A checkpoint: named tensors whose elements are read by range, and the small files that travel with them."""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tallstore.tensors import as_bytes


@dataclass(frozen=True)
class TensorInfo:
    """Type (the format's name) and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Checkpoint(ABC):
    """Tensors by name. Reading never changes the original. Safe to read from several threads."""

    where: str
    """How messages name it."""
    tensors: Mapping[str, TensorInfo]
    """Every tensor, in the checkpoint's own order."""
    ties: Mapping[str, str] = {}
    """Tensors that share all their memory with an earlier one: name → that one's name."""
    files: Mapping[str, Path] = {}
    """Files that belong to the model beside its weights: name in the model's folder → where it lies."""
    left_out: tuple[str, ...] = ()
    """Files in the model's folder that are neither weights nor taken along."""
    source: Mapping[str, str] = {}
    """Where others can get it: `repo` and `commit`, if known."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor, row-major: a flat CPU tensor. Not to be written to."""

    def read_into(self, name: str, start: int, out: Tensor) -> None:
        """Elements from `start` on into memory that is there: a flat CPU tensor of the tensor's type."""
        out.copy_(self.read(name, start, start + len(out)))

    def matches(self, data: Tensor, sha256: str) -> bool:
        """Whether bytes that `read` gave, those of a whole tensor, have this sha256 (hex)."""
        return hashlib.sha256(as_bytes(data).data).hexdigest() == sha256

    def close(self) -> None:
        """Release files."""


Source = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module | Checkpoint
"""Where a checkpoint comes from: a folder or file, a Hub id (`user/model` or `user/model@revision`), a state dict, a
module, or one that is open."""
