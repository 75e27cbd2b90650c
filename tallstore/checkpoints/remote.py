"""Checkpoints on fsspec's file systems and web servers (s3://…, https://…): safetensors alone, read by range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor

from tallstore.checkpoints.base import Checkpoint, TensorInfo
from tallstore.errors import CheckpointError, DamagedError, FormatError, RemoteError
from tallstore.format import safetensors
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.part import METADATA_KEY
from tallstore.stores import open_files
from tallstore.stores.ranged_files import Files
from tallstore.stores.retries import with_retries
from tallstore.tensors import TORCH


class FarCheckpoint(Checkpoint):
    """One `.safetensors` file, or several below one address."""

    far = True
    tensors: dict[str, TensorInfo]

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, paths: Sequence[str] = ("",)) -> None:
        """`paths`: the files below the address; by default, it is a file's own."""
        self._files: Files = open_files(url, options)
        self._reopen = (url, options, paths)
        self.where = self._files.url
        self._places: dict[str, tuple[str, int]] = {}
        self._marks: list[str] = []
        self.tensors = {}
        self.metadata: dict[str, str] = {}
        """Of the headers; what several say of one key, the first says."""
        try:
            for path in paths:
                self._add(path)
        except (DamagedError, FormatError, RemoteError) as error:
            self.close()
            raise CheckpointError(f"{error}: not a checkpoint that can be read there") from error
        except BaseException:
            self.close()
            raise
        if not self.tensors:
            raise CheckpointError(f"{self.where}: holds no tensor")

    def _add(self, path: str) -> None:
        where = f"{self.where}: {path}" if path else self.where
        size = with_retries(where, lambda: self._files.size(path))
        length = safetensors.header_size(self._range(path, 0, min(safetensors.PREFIX, size)), size, where)
        data = self._range(path, 0, length)
        header = safetensors.parse(data, size, where)
        if METADATA_KEY in header.metadata:
            raise CheckpointError(
                f"{where}: a part of a tallstore archive, not a checkpoint: extract a task of it first"
            )
        self.metadata = {**header.metadata, **self.metadata}
        self._marks.append(f"{path} {size} {xxhash.xxh3_128_hexdigest(data)}")
        for name, slot in header.slots.items():
            if name in self.tensors:
                raise CheckpointError(f"{where}: tensor {name!r} is also in {self._places[name][0]}")
            self.tensors[name] = TensorInfo(slot.dtype, slot.shape)
            self._places[name] = (path, header.size + slot.start)

    def _range(self, path: str, start: int, stop: int) -> bytes:
        if start == stop:
            return b""
        where = f"{self.where}: {path}" if path else self.where
        data = with_retries(f"{where}: bytes {start} to {stop}", lambda: self._files.read(path, start, stop))
        if len(data) != stop - start:
            raise DamagedError(f"{where}: {len(data)} bytes came, expected {stop - start}")
        return bytes(data)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        path, offset = self._places[name]
        dtype = self.tensors[name].dtype
        if start == stop:
            return torch.empty(0, dtype=TORCH[dtype])
        item = ITEM_BYTES[dtype]
        try:
            data = self._range(path, offset + start * item, offset + stop * item)
        except (DamagedError, RemoteError) as error:
            raise CheckpointError(f"{error}: tensor {name!r} cannot be read") from error
        return torch.frombuffer(bytearray(data), dtype=TORCH[dtype])

    def fingerprint(self) -> str:
        """Of the files: address, size, and a hash of their headers."""
        return repr((self.where, self._marks))

    def __reduce__(self) -> tuple[type, tuple[str, Mapping[str, Any] | None, Sequence[str]]]:
        """Another process reads it itself."""
        return FarCheckpoint, self._reopen

    def close(self) -> None:
        self._files.close()
