"""A base that an archive references and that the Hub has: fetched, at its own commit, when it is first read."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from tallstore.checkpoints.base import Checkpoint, TensorInfo
from tallstore.checkpoints.hash_cache import HashCache
from tallstore.checkpoints.hub import download
from tallstore.checkpoints.opening import open_checkpoint
from tallstore.errors import BaseNeededError, CheckpointError, RemoteError
from tallstore.stores import Access
from tallstore.stores.hub import named_right, remove
from tallstore.stores.hub_repo import DERIVED_CACHE
from tallstore.tensors import as_bytes

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ReferencedBase(Checkpoint):
    """Opened when something of it is first wanted: an archive that is only looked at costs no download."""

    def __init__(self, repo: str, commit: str, access: Access) -> None:
        self.where = f"{repo}@{commit}"
        self.source = {"repo": repo, "commit": commit}
        self._repo, self._commit, self._access = repo, commit, access
        self._found: Checkpoint | None = None
        self._folder: Path | None = None
        self._seals: HashCache | None = None
        self._lock = threading.Lock()

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:  # type: ignore[override]  # an attribute elsewhere
        return self.open().tensors

    @cached_property
    def ties(self) -> Mapping[str, str]:  # type: ignore[override]  # likewise
        return self.open().ties

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self.open().read(name, start, stop)

    def matches(self, data: Tensor, sha256: str) -> bool:
        return self._seals.match(as_bytes(data).data, sha256) if self._seals else super().matches(data, sha256)

    def close(self) -> None:
        if self._seals is not None:
            self._seals.save()
        if self._found is not None:
            self._found.close()

    def open(self) -> Checkpoint:
        """Fetch it, unless that was done; BaseNeededError if it cannot be had."""
        with self._lock:
            if self._found is None:
                try:
                    self._found = self._open(replace(self._access, local_files_only=True))
                except CheckpointError:  # not in the cache, or not whole
                    self._drop_damaged()
                    try:
                        self._found = self._open(self._access)
                    except (RemoteError, CheckpointError) as error:
                        raise BaseNeededError(
                            f"{self.where}: the archive's base cannot be had ({error}); give it with base=… (--base)"
                        ) from error
            return self._found

    def refetch(self) -> bool:
        """Drop weights that are damaged in the cache, so that they are fetched anew. Whether there were any."""
        with self._lock:
            if not self._drop_damaged():
                return False
            if self._found is not None:
                self._found.close()
            self._found = None
            self.__dict__.pop("tensors", None)
            self.__dict__.pop("ties", None)
            return True

    def _drop_damaged(self) -> bool:
        """Remove damaged weights from the cache. Whether there were any.

        Large files lie in the cache under their sha256: whether one is damaged does not depend on what any archive
        says of it.
        """
        if self._folder is None or self._access.local_files_only:
            return False
        bad = [place for place in self._folder.rglob("*") if place.is_file() and named_right(place) is False]
        for place in bad:
            name = place.relative_to(self._folder).as_posix()
            warnings.warn(
                f"{self.where}: {name}: damaged in the local cache: removed, to be fetched again", stacklevel=4
            )
            remove(place)
        return bool(bad)

    def _open(self, access: Access) -> Checkpoint:
        """Its weights alone, from its folder in the Hub's cache."""
        self._folder = download(self._repo, self._commit, access, weights_only=True)[0]
        if self._seals is None:
            self._seals = HashCache(self._folder.parents[1] / DERIVED_CACHE / f"{self._commit}.json")
        checkpoint = open_checkpoint(self._folder)
        checkpoint.map()
        return checkpoint


def referenced(source: Mapping[str, str], access: Access) -> ReferencedBase | None:
    """The base that an archive says it came from, if that is a repository at a commit."""
    repo, commit = source.get("repo", ""), source.get("commit", "")
    if not _REPO.fullmatch(repo) or not _COMMIT.fullmatch(commit):
        return None
    return ReferencedBase(repo, commit, access)
