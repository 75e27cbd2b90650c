"""Checkpoints in safetensors files, read by position: memory stays as small as what is asked for.

(The library's own reader maps whole files, whose pages then count as this process's memory, and slices by rows only.)
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from tallstore.checkpoints.base import Checkpoint, TensorInfo, mark_of
from tallstore.errors import CheckpointError, FormatError
from tallstore.format import safetensors
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.part import METADATA_KEY
from tallstore.kernels.decoding_backends import decoding
from tallstore.tensors import TORCH, as_bytes, empty

_AT_ONCE = 1 << 30
"""Bytes that are read in one call, at most: the system has a limit."""
_SHORT = 1 << 20
"""Bytes of headers that are remembered."""


def _header(data: bytes, size: int, where: str) -> safetensors.Header:
    if len(data) <= _SHORT:
        with suppress(FormatError):  # said below, of this file
            return _parsed(data, size)
    return safetensors.parse(data, size, where)


@lru_cache(maxsize=4)
def _parsed(data: bytes, size: int) -> safetensors.Header:
    """Tasks of a zoo mostly have one and the same header, and files are opened more than once."""
    return safetensors.parse(data, size, "")


class SafetensorsCheckpoint(Checkpoint):
    """One file or several shards. Tensors come in the order of their names' first appearance in the headers."""

    tensors: dict[str, TensorInfo]

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        self.where = where
        self._paths = [path.absolute() for path in paths]
        self._marks: list[str] = []
        self._handles: list[int] = []
        self._maps: dict[int, mmap.mmap] = {}
        self._places: dict[str, tuple[int, int, Path]] = {}
        self.tensors = {}
        self.metadata: dict[str, str] = {}
        """Of the headers; what several say of one key, the first says."""
        try:
            for path in paths:
                self._add(path)
        except BaseException:
            self.close()
            raise
        if not self.tensors:
            raise CheckpointError(f"{where}: holds no tensor")

    def _add(self, path: Path) -> None:
        try:
            handle = os.open(path, os.O_RDONLY)
            self._handles.append(handle)
            size = os.fstat(handle).st_size
            length = safetensors.header_size(os.pread(handle, safetensors.PREFIX, 0), size, str(path))
            data = os.pread(handle, length, 0)
            header = _header(data, size, str(path))
            self._marks.append(f"{mark_of(os.fstat(handle))} {xxhash.xxh3_128_hexdigest(data)}")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        except FormatError as error:
            raise CheckpointError(f"{error}: not a whole safetensors file") from error
        if METADATA_KEY in header.metadata:
            raise CheckpointError(
                f"{path}: a part of a tallstore archive, not a checkpoint: extract a task of it first"
            )
        self.metadata = {**header.metadata, **self.metadata}
        for name, slot in header.slots.items():
            if name in self.tensors:
                raise CheckpointError(f"{path}: tensor {name!r} is also in {self._places[name][2].name}")
            self.tensors[name] = TensorInfo(slot.dtype, slot.shape)
            self._places[name] = (handle, header.size + slot.start, path)

    def map(self) -> None:
        """Give what is mapped from now on, and copy nothing: for files that are read whole, again and again.

        The maps are private: nothing that is done to the memory reaches a file.
        """
        try:
            for handle in self._handles:
                self._maps[handle] = mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError(f"{self.where}: cannot be mapped ({error.strerror})") from error

    def read(self, name: str, start: int, stop: int) -> Tensor:
        handle, offset, _ = self._places[name]
        dtype = self.tensors[name].dtype
        place = offset + start * ITEM_BYTES[dtype]
        if handle in self._maps and stop > start and place % ITEM_BYTES[dtype] == 0:
            return torch.frombuffer(self._maps[handle], dtype=TORCH[dtype], count=stop - start, offset=place)
        out = empty(dtype, stop - start)
        self.read_into(name, start, out)
        return out

    def read_into(self, name: str, start: int, out: Tensor) -> None:
        self.read_runs(name, [(start, start + len(out))], out)

    def read_runs(self, name: str, runs: Sequence[tuple[int, int]], out: Tensor) -> None:
        # Runs are many and short, so that what is done for each counts.
        handle, offset, path = self._places[name]
        item = ITEM_BYTES[self.tensors[name].dtype]
        if len(runs) > 1 and decoding().gather(as_bytes(out), handle, offset, item, runs):
            return
        memory = as_bytes(out).data
        first = 0
        try:
            for start, stop in runs:
                last, place = first + (stop - start) * item, offset + start * item
                while first < last:
                    got = os.preadv(handle, [memory[first : min(last, first + _AT_ONCE)]], place)
                    if not got:
                        raise CheckpointError(f"{path}: cut off in tensor {name!r}")
                    first, place = first + got, place + got
        except OSError as error:
            raise CheckpointError(f"{path}: tensor {name!r} cannot be read ({error.strerror})") from error

    def place(self, name: str) -> tuple[int, int] | None:
        return self._places[name][:2]

    def fingerprint(self) -> str:
        """Of the files: path, size, time of their last change, and a hash of their headers."""
        return repr(list(zip(map(str, self._paths), self._marks, strict=True)))

    def __reduce__(self) -> tuple[type, tuple[list[Path], str]]:
        """Another process opens the files itself."""
        return SafetensorsCheckpoint, (self._paths, self.where)

    def close(self) -> None:
        self._maps.clear()  # each closes when the last tensor in it is gone
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()
