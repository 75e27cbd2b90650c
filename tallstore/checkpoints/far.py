"""Checkpoints on fsspec's file systems and web servers (s3://…, https://…): safetensors alone, read by range."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from tallstore.checkpoints.base import Checkpoint, TensorInfo
from tallstore.errors import CheckpointError, DamagedError, FormatError, RemoteError
from tallstore.format import limits, safetensors
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.names import check_path
from tallstore.format.part import METADATA_KEY
from tallstore.stores import open_files
from tallstore.stores.far import Files, tried
from tallstore.tensors import TORCH

_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_MOST = 64 << 20
"""Bytes of an index that are read."""


class FarCheckpoint(Checkpoint):
    """A folder with `model.safetensors` or shards and an index, or one `.safetensors` file."""

    far = True
    tensors: dict[str, TensorInfo]

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._files: Files = open_files(url, options)
        self._reopen = (url, options)
        self.where = self._files.url
        self._places: dict[str, tuple[str, int]] = {}
        self._marks: list[str] = []
        self.tensors = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            for path in self._weights(url):
                self._add(path)
        except (DamagedError, FormatError, RemoteError) as error:
            self.close()
            raise CheckpointError(f"{error}: not a checkpoint that can be read there") from error
        except BaseException:
            self.close()
            raise
        if not self.tensors:
            raise CheckpointError(f"{self.where}: holds no tensor")

    def _weights(self, url: str) -> list[str]:
        if url.split("?", maxsplit=1)[0].endswith(".safetensors"):
            return [""]
        there = set(tried(self.where, self._files.paths))
        if _SINGLE in there:
            found = [_SINGLE]
        elif _INDEX in there:
            self._companions(there, {_INDEX, *(shards := self._shards())})
            return shards
        else:
            names = sorted(name for name in there if name.endswith(".safetensors") and "/" not in name)
            if len(names) != 1:
                raise CheckpointError(f"{self.where}: holds no {_SINGLE}, no {_INDEX}, and not one .safetensors file")
            found = names
        self._companions(there, set(found))
        return found

    def _shards(self) -> list[str]:
        try:
            table = json.loads(self._all(_INDEX, _MOST))["weight_map"]
            return sorted({check_path(name) for name in table.values()})
        except (ValueError, KeyError, TypeError, AttributeError, FormatError) as error:
            raise CheckpointError(f"{self.where}: {_INDEX} is not an index of shards") from error

    def _add(self, path: str) -> None:
        where = f"{self.where}: {path}" if path else self.where
        size = tried(where, lambda: self._files.size(path))
        length = safetensors.header_size(self._range(path, 0, min(safetensors.PREFIX, size)), size, where)
        data = self._range(path, 0, length)
        header = safetensors.parse(data, size, where)
        if METADATA_KEY in header.metadata:
            raise CheckpointError(
                f"{where}: a part of a tallstore archive, not a checkpoint: extract a task of it first"
            )
        self._marks.append(f"{path} {size} {xxhash.xxh3_128_hexdigest(data)}")
        for name, slot in header.slots.items():
            if name in self.tensors:
                raise CheckpointError(f"{where}: tensor {name!r} is also in {self._places[name][0]}")
            self.tensors[name] = TensorInfo(slot.dtype, slot.shape)
            self._places[name] = (path, header.size + slot.start)

    def _companions(self, there: set[str], used: set[str]) -> None:
        """Fetch the small files that belong to the model."""
        from tallstore.checkpoints.companions import find_companions, why_skipped

        self._folder = tempfile.TemporaryDirectory(prefix="tallstore-")
        for name in sorted(there - used):
            size = tried(self.where, partial(self._files.size, name))
            hidden = any(piece.startswith(".") for piece in name.split("/"))
            if why_skipped(name) is None and not hidden and size <= limits.FILE_BYTES:
                place = Path(self._folder.name) / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(self._range(name, 0, size))
        fetched = [path for path in Path(self._folder.name).rglob("*") if path.is_file()]
        names = [path.relative_to(self._folder.name).as_posix() for path in fetched]
        self.files, left = find_companions(Path(self._folder.name), names)
        rest = there - used - set(names)
        self.left_out = {**{name: why_skipped(name) or "no part of the model" for name in sorted(rest)}, **left}

    def _all(self, path: str, most: int) -> bytes:
        size = tried(self.where, lambda: self._files.size(path))
        if size > most:
            raise CheckpointError(f"{self.where}: {path} of {size} bytes is over the cap of {most}")
        return self._range(path, 0, size)

    def _range(self, path: str, start: int, stop: int) -> bytes:
        if start == stop:
            return b""
        where = f"{self.where}: {path}" if path else self.where
        data = tried(f"{where}: bytes {start} to {stop}", lambda: self._files.read(path, start, stop))
        if len(data) != stop - start:
            raise DamagedError(f"{where}: {len(data)} bytes came where {stop - start} are due")
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

    def __reduce__(self) -> tuple[type, tuple[str, Mapping[str, Any] | None]]:
        """Another process reads it itself."""
        return FarCheckpoint, self._reopen

    def close(self) -> None:
        self._files.close()
        if self._folder is not None:
            self._folder.cleanup()
