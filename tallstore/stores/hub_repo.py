"""A repository of the Hub at one pinned commit: what the Hub's client is asked for, and its files by range.

Whatever the client raises is said in one line of ours, with what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tallstore._version import __version__
from tallstore.errors import (
    DamagedError,
    FormatError,
    RemoteError,
    TallstoreError,
    UnreachableError,
)
from tallstore.stores.http_files import Answer, range_header, take
from tallstore.stores.hub_client import OFFLINE, SCHEME, Access, client, connect, explain, explained, summary
from tallstore.stores.ranged_files import TIMEOUT, Files
from tallstore.stores.retries import TransientError

__all__ = ["DERIVED_CACHE", "HubFile", "HubFiles", "Repo"]

DERIVED_CACHE = ".tallstore"
"""In a repository's folder of the cache: what is made of its files. Whoever removes the repository there removes it."""


class Repo:
    """A repository at one commit, which is found out once."""

    def __init__(self, repo_id: str, revision: str | None, access: Access) -> None:
        self.id = repo_id
        self.access = access
        named = f"{SCHEME}{repo_id}" + (f"@{revision}" if revision else "")
        self._api = connect(access, named)
        with explained(named):
            try:
                self.commit = str(
                    self._api.resolve_revision(
                        repo_id,
                        revision=revision,
                        cache_dir=access.cache_dir,
                        local_files_only=access.local_files_only,
                    ).resolved
                )
            except Exception as error:
                if type(error).__name__ == "RevisionResolutionError":
                    raise self._unresolved(error, named) from None
                raise
        self.url = f"{SCHEME}{repo_id}@{self.commit}"

    def paths(self) -> list[str]:
        """Every file of the commit, as the Hub lists them."""
        with explained(self.url):
            return list(self._api.list_repo_files(self.id, revision=self.commit))

    def cached(self, path: str) -> Path | None:
        """A file's place in the cache, if it is there."""
        path_here = client(self.url).try_to_load_from_cache(
            self.id, path, cache_dir=self.access.cache_dir, revision=self.commit
        )
        return Path(path_here) if isinstance(path_here, str) else None

    def derived_cache(self, path: str) -> Path | None:
        """A folder beside the repository's files in the cache, if this one of them is there."""
        cached = self.cached(path)
        # …/models--user--name/snapshots/COMMIT/PATH
        return None if cached is None else cached.parents[len(Path(path).parts) + 1] / DERIVED_CACHE

    def download(self, path: str, cap: int | None = None) -> Path:
        """Fetch a file into the cache unless it is there. DamagedError if the commit has no such file."""
        with self._asking(path):
            how: dict[str, Any] = {
                "revision": self.commit,
                "cache_dir": self.access.cache_dir,
                "local_files_only": self.access.local_files_only,
            }
            if cap is not None:
                size = self._api.hf_hub_download(self.id, path, dry_run=True, **how).file_size
                if size is not None and size > cap:
                    raise FormatError(f"{self.url}: {path} of {size} bytes is over the cap of {cap}")
            return Path(self._api.hf_hub_download(self.id, path, **how))

    def size(self, path: str) -> int:
        """Bytes of a file, as the Hub says."""
        with self._asking(path):
            url = client(self.url).hf_hub_url(self.id, path, revision=self.commit, endpoint=self.access.endpoint)
            size = self._api.get_hf_file_metadata(url=url, timeout=self.access.timeout or TIMEOUT).size
        if not isinstance(size, int):
            raise RemoteError(f"{self.url}: {path}: the Hub does not say how long it is")
        return size

    @contextmanager
    def ask(self, path: str, headers: Mapping[str, str], timeout: float) -> Iterator[Answer]:
        """One GET of a file, as it is answered. The token goes to the Hub and never to where it sends us on."""
        hub = client(self.url)
        url = hub.hf_hub_url(self.id, path, revision=self.commit, endpoint=self.access.endpoint)
        with self._asking(path):
            own = hub.utils.build_hf_headers(
                token=self.access.token, library_name="tallstore", library_version=__version__, headers=dict(headers)
            )
            session = hub.utils.get_session()
            with session.stream("GET", url, headers=own, timeout=timeout, follow_redirects=True) as response:
                if response.status_code in {401, 403, 404}:
                    response.read()
                    hub.utils.hf_raise_for_status(response)
                yield _Streamed(response)

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        where = f"{self.url}: {path}"
        with explained(where):
            try:
                yield
            except Exception as error:
                kinds = {kind.__name__ for kind in type(error).__mro__}
                if "RemoteEntryNotFoundError" in kinds:
                    raise DamagedError(f"{where} is missing: the commit has no such file") from None
                if "LocalEntryNotFoundError" in kinds:
                    raise self._absent(error, where) from None
                if not isinstance(error, (TallstoreError, TransientError)) and _may_pass(error):
                    raise TransientError(summary(error)) from None
                raise

    def _absent(self, error: Exception, where: str) -> TallstoreError:
        """Why a file that is not in the cache did not come."""
        cause = error.__cause__
        if isinstance(cause, Exception) and not self.access.local_files_only:
            return explain(cause, where)
        return UnreachableError(f"{where}: {OFFLINE}")

    def _unresolved(self, error: Exception, named: str) -> TallstoreError:
        cause = error.__cause__
        if self.access.local_files_only or type(cause).__name__ == "OfflineModeIsEnabled":
            return UnreachableError(f"{named}: {OFFLINE}")
        return UnreachableError(
            f"{named}: the Hub cannot be reached ({summary(cause) if cause is not None else 'no answer'}), "
            "and nothing of it is in the local cache"
        )


def _may_pass(error: Exception) -> bool:
    """Whether a download that failed may succeed at once: a connection that broke, a file that came cut off."""
    if getattr(error, "response", None) is not None:
        return False
    module = type(error).__module__.split(".")[0]
    return module in {"httpx", "httpx2", "httpcore"} or (isinstance(error, OSError) and "Consistency" in str(error))


class _Streamed:
    """An answer of the client's own session."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers

    def read(self, amount: int, /) -> bytes:
        received = bytearray()
        for piece in self._response.iter_raw(1 << 16):
            received += piece
            if len(received) >= amount:
                break
        return bytes(received[:amount])


class HubFiles(Files):
    """A repository's files, read by range."""

    def __init__(self, repo: Repo) -> None:
        self.url = repo.url
        self._repo = repo
        self._timeout = repo.access.timeout or TIMEOUT
        self.totals = {}

    def paths(self) -> list[str]:
        return self._repo.paths()

    def size(self, path: str) -> int:
        return self._repo.size(path)

    def read(self, path: str, start: int, stop: int) -> bytes:
        with self._repo.ask(path, range_header(start, stop), self._timeout) as answer:
            data, self.totals[path] = take(answer, start, stop, f"{self._repo.url}: {path}")
            return data


class HubFile(HubFiles):
    """One file of a repository, which the empty path names."""

    def __init__(self, repo: Repo, path: str) -> None:
        super().__init__(repo)
        self.url = f"{repo.url}/{path}"
        self._path = path

    def size(self, path: str) -> int:  # noqa: ARG002 - there is one
        return self._repo.size(self._path)

    def read(self, path: str, start: int, stop: int) -> bytes:
        data = super().read(self._path, start, stop)
        self.totals[path] = self.totals[self._path]
        return data
