"""A checkpoint: named tensors whose elements are read by range, and the small files that travel with them."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import xxhash
from torch import Tensor, nn

from tallstore.adapters.config import AdapterConfig
from tallstore.format.dtypes import count
from tallstore.format.layout import WeightsFile
from tallstore.tensors import as_bytes


def mark_of(status: os.stat_result) -> str:
    """What differs between files, and between one and what it was before, whatever its times were set to."""
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


@dataclass(frozen=True)
class TensorInfo:
    """Type (the format's name) and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @cached_property  # asked for many times of each
    def numel(self) -> int:
        """Number of elements; of bytes where several elements share one."""
        return count(self.dtype, self.shape)


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter's method, by PEFT's name of it, or whose file it is, and its configuration, if there is one."""

    type: str
    config: AdapterConfig | None = None


class Checkpoint(ABC):
    """Tensors by name. Reading never changes the original. Safe to read from several threads."""

    where: str
    """How messages name it."""
    tensors: Mapping[str, TensorInfo]
    """Every tensor, in the checkpoint's own order."""
    ties: Mapping[str, str] = {}
    """Tensors that share all their memory with an earlier one: name → that one's name."""
    ties_are_all: bool = False
    """Whether `ties` names those too that are another one's equal, so that nobody needs to look for them."""
    far = False
    """Whether every read is a request to another machine."""
    resident = False
    """Whether it is in memory and was checked: to read a tensor takes nothing."""
    files: Mapping[str, Path] = {}
    """Files that belong to the model beside its weights: name in the model's folder → where it lies."""
    left_out: Mapping[str, str] = {}
    """What is not taken along: files in the model's folder, sets of weights, contents of a file → why."""
    layout: tuple[WeightsFile, ...] = ()
    """The weights files of the model's folder; none if that is one `model.safetensors`."""
    sets: tuple[str, ...] = ()
    """Names of the sets of weights that are there beside this one."""
    adapter: AdapterFacts | None = None
    """What is known of it as an adapter, if it is one: its tensors are added to a base's."""
    model: nn.Module | None = None
    """The module that it is the state of, if it is one's."""
    chosen: bool = False
    """Whether it is a set, or a variant, that was asked for by name."""
    source: Mapping[str, str] = {}
    """Where others can get it: `repo` and `commit`, if known."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor, row-major: a flat CPU tensor. Not to be written to."""

    def origin_of(self, name: str, start: int, stop: int) -> Tensor | None:  # noqa: ARG002 - most have none
        """Of a tensor that stands in for the base's, and is of its type: what the base has; None elsewhere."""
        return None

    def read_into(self, name: str, start: int, out: Tensor) -> None:
        """Elements from `start` on into memory that is there: a flat CPU tensor of the tensor's type."""
        out.copy_(self.read(name, start, start + len(out)))

    def read_runs(self, name: str, runs: Sequence[tuple[int, int]], out: Tensor) -> None:
        """The elements [start, stop) of each run, one run behind the other, into memory that is there."""
        at = 0
        for start, stop in runs:
            self.read_into(name, start, out[at : at + stop - start])
            at += stop - start

    def place(self, name: str) -> tuple[int, int] | None:  # noqa: ARG002 - most have none
        """The descriptor of an open file that holds a tensor's elements, row-major, and which byte is their first.

        For readers that need no interpreter; None where there is no such file.
        """
        return None

    def map(self) -> None:
        """Give what is mapped from now on, and copy nothing, where that can be."""

    def matches(self, data: Tensor, sha256: str) -> bool:
        """Whether bytes that `read` gave, those of a whole tensor, have this sha256 (hex)."""
        return hashlib.sha256(as_bytes(data).data).hexdigest() == sha256

    def fingerprint(self) -> str:
        """What stays the same as long as the tensors do: here, a hash of all that is said of them and of their bytes.

        Files say it sooner. Workers and resumed runs compare it.
        """
        digest = xxhash.xxh3_128()
        for name, info in self.tensors.items():
            digest.update(repr((name, info.dtype, info.shape, self.ties.get(name))).encode())
            for start in range(0, info.numel if name not in self.ties else 0, _PIECE):
                digest.update(as_bytes(self.read(name, start, min(start + _PIECE, info.numel))).data)
        return digest.hexdigest()

    def close(self) -> None:
        """Release files."""


_PIECE = 1 << 22


Source = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module | Checkpoint
"""Where a checkpoint comes from: a folder or file, a Hub id (`user/model` or `user/model@revision`), a state dict, a
module, or a `Checkpoint` of one's own."""
