"""A base that an archive references and that the Hub has: fetched, at its own commit, when it is first read."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from tallstore.checkpoints.base import Checkpoint, TensorInfo
from tallstore.checkpoints.find import open_checkpoint
from tallstore.checkpoints.hub import download
from tallstore.errors import BaseNeededError, CheckpointError, RemoteError
from tallstore.stores import Access

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ReferencedBase(Checkpoint):
    """Opened when something of it is first wanted: an archive that is only looked at costs no download."""

    def __init__(self, repo: str, commit: str, access: Access) -> None:
        self.where = f"{repo}@{commit}"
        self.source = {"repo": repo, "commit": commit}
        self._repo, self._commit, self._access = repo, commit, access
        self._found: Checkpoint | None = None
        self._lock = threading.Lock()

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:  # type: ignore[override]
        return self.open().tensors

    @cached_property
    def ties(self) -> Mapping[str, str]:  # type: ignore[override]
        return self.open().ties

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self.open().read(name, start, stop)

    def close(self) -> None:
        if self._found is not None:
            self._found.close()

    def open(self) -> Checkpoint:
        """Fetch it, unless that was done; BaseNeededError if it cannot be had."""
        with self._lock:
            if self._found is None:
                try:
                    self._found = open_checkpoint(self.fetch())
                except (RemoteError, CheckpointError) as error:
                    raise BaseNeededError(
                        f"{self.where}: the archive's base cannot be had ({error}); give it with base=… (--base)"
                    ) from error
            return self._found

    def fetch(self) -> Path:
        """Its folder in the Hub's cache; the weights alone."""
        return download(self._repo, self._commit, self._access, weights_only=True)[0]


def referenced(source: Mapping[str, str], access: Access) -> ReferencedBase | None:
    """The base that an archive says it came from, if that is a repository at a commit."""
    repo, commit = source.get("repo", ""), source.get("commit", "")
    if not _REPO.fullmatch(repo) or not _COMMIT.fullmatch(commit):
        return None
    return ReferencedBase(repo, commit, access)
