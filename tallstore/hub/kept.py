"""Decoded weights that are kept in the Hub's cache: mapped from there, a task loads as its plain checkpoint would.

One safetensors file a task. It lies in its repository's folder of the cache and goes with it, under a name that follows
from the parts it came from: a commit that changes other tasks leaves it valid. Beside it lie checksums, and every byte
is held to them before a model is given out; a file that is damaged is named, removed and made anew.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import xxhash
from torch import Tensor

from tallstore.archive import Zoo
from tallstore.checkpoints.safetensors import SafetensorsCheckpoint
from tallstore.errors import CheckpointError, OptionError
from tallstore.format import safetensors, strict_json
from tallstore.format.version import VERSION
from tallstore.tensors import NAME, as_bytes

_PIECE = 1 << 24
"""Bytes that have a checksum of their own: pieces are checked side by side."""
_MOST = 64 << 20
"""Bytes of a file of checksums that are read."""


class Kept:
    """Where a task's decoded weights are kept, or will be."""

    def __init__(self, zoo: Zoo, task: str, *, exact: bool) -> None:
        """OptionError for an archive that is not in the Hub's cache."""
        shelf = zoo.store.shelf
        if shelf is None:
            raise OptionError(
                f"{zoo.url}: keep_decoded is for archives in the Hub's cache: "
                f"extract task {task!r} once, and load the folder"
            )
        self._where = f"{zoo.url}: task {task!r}"
        self._place = shelf / f"decoded-{_key(zoo, task, exact=exact)}.safetensors"
        self._sums = self._place.with_suffix(".json")
        self._checked: list[Future[bool]] = []

    def load(self) -> dict[str, Tensor] | None:
        """The weights, mapped; None where there are none. They are being checked: ask `right` before they are used."""
        if not self._place.exists() or not self._sums.exists():
            return None
        self._check()
        try:
            checkpoint = SafetensorsCheckpoint([self._place], self._where)
        except CheckpointError:
            self._pool.shutdown()
            self.drop()
            return None
        try:
            checkpoint.map()
            return {
                name: checkpoint.read(name, 0, info.numel).reshape(info.shape)
                for name, info in checkpoint.tensors.items()
            }
        finally:
            checkpoint.close()

    def right(self) -> bool:
        """Whether every byte of what was loaded is as it was written. Waits until that is known."""
        with self._pool:
            return all(piece.result() for piece in self._checked)

    def drop(self) -> None:
        """Remove what is damaged, with a warning."""
        self._remove()
        warnings.warn(f"{self._where}: its decoded weights are damaged in the local cache: removed", stacklevel=4)

    def keep(self, state: Mapping[str, Tensor]) -> None:
        """Keep weights for the next time. Where that cannot be, there is a warning and nothing else."""
        said: list[str] = []
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            with _appearing(self._place) as out:
                head = safetensors.build([(n, NAME[t.dtype], t.shape) for n, t in state.items()], {"format": "pt"})
                size = _write(out, (head, *(as_bytes(tensor).data for tensor in state.values())), said)
            with _appearing(self._sums) as out:
                out.write(json.dumps({"bytes": size, "xxh3": said}).encode())
        except OSError as error:
            self._remove()
            warnings.warn(f"{self._where}: its decoded weights cannot be kept ({error.strerror})", stacklevel=3)

    def _check(self) -> None:
        """Begin to hold the file's pieces to their checksums, on other threads."""
        self._pool = ThreadPoolExecutor(os.cpu_count(), "tallstore-kept")
        self._checked = [self._pool.submit(bool)]  # False
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            if self._sums.stat().st_size > _MOST:
                return
            said = json.loads(self._sums.read_bytes())
            with self._place.open("rb") as file:
                if os.fstat(file.fileno()).st_size != said["bytes"]:
                    return
                memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            runs = [memory[start : start + _PIECE] for start in range(0, len(memory), _PIECE)]
            pieces = list(zip(runs, said["xxh3"], strict=True))
            self._checked = [self._pool.submit(_is, run, due) for run, due in pieces]

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._sums.unlink(missing_ok=True)
            self._place.unlink(missing_ok=True)


def _is(data: memoryview, digest: object) -> bool:
    return xxhash.xxh3_128_hexdigest(data) == digest


def _key(zoo: Zoo, task: str, *, exact: bool) -> str:
    """A name that is another one whenever the decoded weights might be."""
    manifest = zoo.manifest
    found = manifest.tasks[task]
    group = next(group for group in manifest.groups if group.id == found.group)

    def hashes(paths: Sequence[str]) -> list[str]:
        return [manifest.parts[path].sha256 for path in paths]

    own = {kind: hashes(paths) for kind, paths in found.parts.items() if exact or kind != "exact"}
    made_from = [VERSION, manifest.base.identity, hashes(group.parts), sorted(own.items())]
    return sha256(strict_json.dumps(made_from)).hexdigest()[:40]


@contextlib.contextmanager
def _appearing(place: Path) -> Iterator[BinaryIO]:
    """A file that has its name when it is whole; several may make it at a time."""
    beside = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with beside.open("wb") as out:
            yield out
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _write(out: BinaryIO, parts: Sequence[bytes | memoryview], said: list[str]) -> int:
    """Write parts one behind the other, and say the checksum of each piece of the file. Bytes written."""
    digest, left, size = xxhash.xxh3_128(), _PIECE, 0
    for part in parts:
        view = memoryview(part)
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
    return size
