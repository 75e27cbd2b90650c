"""Decoded weights that are kept in the Hub's cache: mapped from there, a task loads as its plain checkpoint would.

A folder a task, in its repository's folder of the cache, with which it goes. Its name follows from the parts that the
weights came from: a commit that changes other tasks leaves it valid. In it lie a safetensors file and checksums, to
which every byte is held before a model is given out; what is damaged is named, removed and made anew.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from hashlib import sha256
from typing import Any, BinaryIO

import xxhash
from torch import Tensor

from tallstore.archive import Archive
from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.concurrency import Background
from tallstore.errors import CheckpointError, OptionError, OutputError
from tallstore.format import safetensors, strict_json
from tallstore.format.version import VERSION
from tallstore.stores.folder_lock import staging_folder
from tallstore.stores.staging import Staging, translated
from tallstore.tensors import NAME, as_bytes

_PIECE = 1 << 24
"""Bytes that have a checksum of their own: pieces are checked side by side."""
_MOST = 64 << 20
"""Bytes of a file of checksums that are read."""


class DecodedCache:
    """Where a task's decoded weights are kept, or will be."""

    def __init__(self, zoo: Archive, task: str, *, exact: bool) -> None:
        """OptionError for an archive that is not in the Hub's cache."""
        shelf = zoo.store.derived_cache
        if shelf is None:
            raise OptionError(
                f"{zoo.url}: keep_decoded is for archives in the Hub's cache: "
                f"extract task {task!r} once, and load the folder"
            )
        self._where = f"{zoo.url}: task {task!r}"
        self._folder = shelf / f"decoded-{_key(zoo, task, exact=exact)}"
        self._weights, self._sums = self._folder / "model.safetensors", self._folder / "sums.json"
        self._checked: list[Future[bool]] = []

    def load(self) -> dict[str, Tensor] | None:
        """The weights, mapped; None where there are none. They are being checked: ask `right` before they are used."""
        if not self._there():
            return None
        self._check()
        try:
            with closing(SafetensorsCheckpoint([self._weights], self._where)) as checkpoint:
                checkpoint.map()
                return {
                    name: checkpoint.read(name, 0, info.numel).reshape(info.shape)
                    for name, info in checkpoint.tensors.items()
                }
        except CheckpointError:
            self._pool.close(wait=True)
            self.drop()
            return None

    def right(self) -> bool:
        """Whether every byte of what was loaded is as it was written. Waits until that is known."""
        try:
            return all(piece.result() for piece in self._checked)
        finally:
            self._pool.close(wait=True)

    def drop(self) -> None:
        """Remove what is damaged, with a warning."""
        shutil.rmtree(self._folder, ignore_errors=True)
        warnings.warn(f"{self._where}: its decoded weights are damaged in the local cache: removed", stacklevel=4)

    def keep(self, state: Mapping[str, Tensor]) -> None:
        """Keep weights for the next time. Where that cannot be, there is a warning and nothing else."""
        try:
            with Staging(self._folder) as staging:
                folder = staging.path("decoded")
                with translated(self._folder):
                    folder.mkdir()
                    with (folder / self._weights.name).open("xb") as out:
                        sums = _write(out, state)
                    (folder / self._sums.name).write_text(json.dumps(sums))
                staging.publish("decoded", overwrite=True)
        except OutputError as error:
            warnings.warn(f"{self._where}: its decoded weights cannot be kept ({error})", stacklevel=4)

    def _there(self) -> bool:
        """Whether there are any, as far as the disk says."""
        try:
            if self._folder.is_dir() and staging_folder(self._folder).exists():
                with contextlib.suppress(OutputError):  # a process was killed that had them in place already
                    Staging(self._folder).discard()
            return self._folder.is_dir()
        except OSError:
            return False

    def _check(self) -> None:
        """Begin to hold the file's pieces to their checksums, on other threads."""
        self._pool = Background(os.cpu_count(), "tallstore-cache")
        self._checked = [self._pool.submit(bool)]  # False
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            if self._sums.stat().st_size > _MOST:
                return
            said = json.loads(self._sums.read_bytes())
            with self._weights.open("rb") as file:
                if os.fstat(file.fileno()).st_size != said["bytes"]:
                    return
                memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            runs = [memory[start : start + _PIECE] for start in range(0, len(memory), _PIECE)]
            pieces = list(zip(runs, said["xxh3"], strict=True))
            self._checked = [self._pool.submit(_is, run, expected) for run, expected in pieces]


def _is(data: memoryview, digest: object) -> bool:
    return xxhash.xxh3_128_hexdigest(data) == digest


def _key(zoo: Archive, task: str, *, exact: bool) -> str:
    """A name that is another one whenever the decoded weights might be."""
    manifest = zoo.manifest
    record = manifest.tasks[task]
    group = next(group for group in manifest.groups if group.id == record.group)

    def hashes(paths: Sequence[str]) -> list[str]:
        return [manifest.parts[path].sha256 for path in paths]

    own = {kind: hashes(paths) for kind, paths in record.parts.items() if exact or kind != "exact"}
    made_from = [VERSION, manifest.base.identity, hashes(group.parts), sorted(own.items())]
    return sha256(strict_json.dumps(made_from)).hexdigest()[:40]


def _write(out: BinaryIO, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file. What `_check` wants to know of it."""
    head = safetensors.build([(name, NAME[t.dtype], t.shape) for name, t in state.items()], {"format": "pt"})
    digest, left, size = xxhash.xxh3_128(), _PIECE, 0
    said: list[str] = []
    for part in (memoryview(head), *(as_bytes(tensor).data for tensor in state.values())):
        view = part
        while view:
            run = view[:left]
            out.write(run)
            digest.update(run)
            view, left, size = view[len(run) :], left - len(run), size + len(run)
            if not left:
                said.append(digest.hexdigest())
                digest, left = xxhash.xxh3_128(), _PIECE
    if left < _PIECE:
        said.append(digest.hexdigest())
    return {"bytes": size, "xxh3": said}
