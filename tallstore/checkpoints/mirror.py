"""A model's folder at an address, as one on this machine: its small files fetched, the names of the others kept.

What belongs to a model is told by names and small files, so that a folder far away is read as any other is. Weights
are read by range where they lie; in the mirror, files without bytes stand for them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tallstore.checkpoints.base import Checkpoint
from tallstore.checkpoints.companions import why_skipped
from tallstore.checkpoints.remote import FarCheckpoint
from tallstore.checkpoints.weights_files import SAFE
from tallstore.errors import CheckpointError, DamagedError, FormatError, RemoteError
from tallstore.format import limits
from tallstore.format.names import check_path
from tallstore.stores import open_files
from tallstore.stores.ranged_files import Files
from tallstore.stores.retries import with_retries

__all__ = ["Mirror"]

_HEAD = 16
"""Bytes that tell what wrote a file of weights."""
_INDEX_BYTES = 64 << 20
"""Of an index that are read."""


class Mirror:
    """The folder, and the way to its weights. Whoever made it cleans it up."""

    def __init__(self, url: str, options: Mapping[str, Any] | None) -> None:
        self._reopen = (url, options)
        self.folder = tempfile.TemporaryDirectory(prefix="tallstore-")
        self.root = Path(self.folder.name)
        self.left_out: dict[str, str] = {}
        """Files that no folder can hold."""
        files: Files = open_files(url, options)
        self.where = files.url
        try:
            names = [name for name in with_retries(self.where, files.paths) if not name.endswith("/")]
            if not names:
                raise CheckpointError(
                    f"{self.where}: nothing is listed there (web servers list nothing): name the {SAFE} file, or fetch "
                    "the folder"
                )
            for name in sorted(names):
                self._add(files, name)
        except (DamagedError, FormatError, RemoteError) as error:
            self.folder.cleanup()
            raise CheckpointError(f"{error}: not a checkpoint that can be read there") from error
        except BaseException:
            self.folder.cleanup()
            raise
        finally:
            files.close()

    def _add(self, files: Files, name: str) -> None:
        place = self.root / name
        try:
            check_path(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch(exist_ok=False)
        except (FormatError, OSError):
            self.left_out[name] = "a name that an archive cannot hold"
            return
        index = name.endswith(".json") and ".index" in name
        if name.endswith(SAFE) or (why_skipped(name) is not None and not index):
            return
        size = with_retries(f"{self.where}: {name}", lambda: files.size(name))
        wanted = size if size <= (_INDEX_BYTES if index else limits.FILE_BYTES) else min(size, _HEAD)
        data = bytes(with_retries(f"{self.where}: {name}", lambda: files.read(name, 0, wanted))) if wanted else b""
        if len(data) != wanted:
            raise DamagedError(f"{self.where}: {name}: {len(data)} bytes came, expected {wanted}")
        place.write_bytes(data)
        os.truncate(place, size)

    def open(self, paths: Sequence[Path], where: str, weights: str | None) -> Checkpoint:  # noqa: ARG002 - as of files
        """Weights, by where they stand in the mirror.

        Raises CheckpointError for what torch.save wrote: that can be read as a whole alone.
        """
        names = [path.relative_to(self.root).as_posix() for path in paths]
        if odd := [name for name in names if not name.endswith(SAFE)]:
            raise CheckpointError(
                f"{self.where}: {odd[0]}: pickled weights are not read at an address: fetch the folder, or save it as "
                "safetensors (save_pretrained)"
            )
        return FarCheckpoint(*self._reopen, names)

    def told(self, text: str) -> str:
        """A message, of the address and not of the mirror."""
        return text.replace(str(self.root), self.where)
