"""Files on any file system that fsspec knows: s3://, gs://, az://, sftp://, memory:// and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tallstore.errors import AccessError, DamagedError, MissingExtraError, OptionError
from tallstore.stores.ranged_files import TIMEOUT, Files
from tallstore.stores.retries import TransientError

_T = TypeVar("_T")
_SECRET = re.compile(r"(?<=//)[^/@]*@|\?.*")


class SystemFiles(Files):
    """Files below one address, or the one file at it."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> None:
        self.url = _SECRET.sub("", url)
        self.system, self._root = _find(url, options or {}, self.url)
        self._timeout = timeout or TIMEOUT
        self.totals = {}

    def paths(self) -> list[str]:
        try:
            listing = self._try(lambda: self.system.find(self._root), "the archive")
        except DamagedError:
            return []  # a file system that lists nothing
        below = f"{self._root.rstrip('/')}/"
        return [str(path).removeprefix(below) for path in listing]

    def size(self, path: str) -> int:
        facts = self._try(lambda: self.system.info(self.full(path)), path)
        if facts.get("type") != "file" or not isinstance(facts.get("size"), int):
            raise DamagedError(f"{self.url}: {path} is no file")
        return int(facts["size"])

    def read(self, path: str, start: int, stop: int) -> bytes:
        if path not in self.totals:
            self.totals[path] = self.size(path)

        def work() -> bytes:
            full = self.full(path)
            if self.system.async_impl:
                from fsspec.asyn import sync

                data = sync(self.system.loop, self.system._cat_file, full, start=start, end=stop, timeout=self._timeout)
                return bytes(data)
            # Without this, fsspec reads megabytes around what it is asked for.
            with self.system.open(full, "rb", cache_type="none") as file:
                file.seek(start)
                return bytes(file.read(stop - start))

        return self._try(work, path)

    def full(self, path: str) -> str:
        """A file's path, as the file system knows it."""
        return f"{self._root.rstrip('/')}/{path}" if path else self._root

    def _try(self, work: Callable[[], _T], path: str) -> _T:
        try:
            return work()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise DamagedError(f"{self.url}: {path} is missing; fetch or pack it again") from None
        except PermissionError:
            raise AccessError(f"{self.url}: {path} may not be read: check your rights to it") from None
        except Exception as error:  # each file system has errors of its own
            raise TransientError(type(error).__name__) from None


def _find(url: str, options: Mapping[str, Any], shown: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError(f'{shown}: needs fsspec: pip install "tallstore[remote]"') from error
    try:
        system, root = url_to_fs(url, **options)
    except ImportError as error:
        if url.startswith(("s3:", "s3a:")):
            raise MissingExtraError(f'{shown}: needs s3fs: pip install "tallstore[s3]"') from error
        line = next(iter(str(error).splitlines()), "")
        raise MissingExtraError(f"{shown}: needs the package that fsspec names for it: {line}") from error
    except (ValueError, TypeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise OptionError(f"{shown}: no file system that fsspec knows, or not with these options ({line})") from error
    return system, str(root)
