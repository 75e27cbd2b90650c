"""Files behind a plain web server, by `http://` or `https://`."""

from __future__ import annotations

import base64
import http.client
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from typing import Protocol, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from tallstore._version import __version__
from tallstore.errors import AccessError, DamagedError, RemoteError
from tallstore.stores.ranged_files import TIMEOUT, Files
from tallstore.stores.retries import TransientError

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)
_T = TypeVar("_T")
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Answer(Protocol):
    """What a request gave: its status, its headers, and a body of which one takes as much as one wants."""

    status: int
    headers: Mapping[str, str]
    """By name in small letters."""

    def read(self, amount: int, /) -> bytes:
        """At most so many bytes of the body; fewer only at its end."""


class WebFiles(Files):
    """Files below one address, or the one file at it. Query and user of the address are sent and never shown."""

    def __init__(self, url: str, *, timeout: float | None = None) -> None:
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        self.url = urlunsplit((parts.scheme, host, parts.path, "", ""))
        self._parts = parts._replace(netloc=host)
        self._user = base64.b64encode(unquote(user).encode()).decode() if user else None
        self._timeout = timeout or TIMEOUT
        self.totals = {}

    def paths(self) -> list[str]:
        return []  # a web server lists nothing

    def size(self, path: str) -> int:
        with self._ask("HEAD", path, {}) as answer:
            check_status(answer.status, f"{self.url}: {path or 'the archive'}")
            length = answer.headers.get("content-length")
            if length is None or not length.isdigit():
                raise RemoteError(f"{self.url}: {path}: the server does not say how long it is; download it first")
            return int(length)

    def read(self, path: str, start: int, stop: int) -> bytes:
        with self._ask("GET", path, range_header(start, stop)) as answer:
            data, self.totals[path] = take(answer, start, stop, f"{self.url}: {path}" if path else self.url)
            return data

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> AbstractContextManager[Answer]:
        below = f"{self._parts.path.rstrip('/')}/{quote(path)}" if path else self._parts.path
        url = urlunsplit((self._parts.scheme, self._parts.netloc, below, self._parts.query, ""))
        request = Request(url, method=method, headers={"User-Agent": f"tallstore/{__version__}", **headers})  # noqa: S310 - http and https alone get here
        if self._user is not None:
            request.add_unredirected_header("Authorization", f"Basic {self._user}")
        return closing(attempt(lambda: _open(request, self._timeout)))


def _open(request: Request, timeout: float) -> _Plain:
    try:
        return _Plain(urlopen(request, timeout=timeout))  # noqa: S310 - as above
    except HTTPError as error:
        return _Plain(error)


class _Plain:
    """An answer of the standard library."""

    def __init__(self, response: http.client.HTTPResponse | HTTPError) -> None:
        self._response = response
        self.status: int = response.status or 0
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    def read(self, amount: int, /) -> bytes:
        return attempt(lambda: self._response.read(amount))

    def close(self) -> None:
        """Close the connection."""
        self._response.close()


def attempt(work: Callable[[], _T]) -> _T:
    """Turn failures of a connection into `TransientError`, without the address in them."""
    try:
        return work()
    except URLError as error:
        raise TransientError(
            type(error.reason).__name__ if isinstance(error.reason, Exception) else "no connection"
        ) from None
    except (http.client.HTTPException, OSError) as error:
        raise TransientError(type(error).__name__) from None


def range_header(start: int, stop: int) -> dict[str, str]:
    """Headers that ask for bytes [start, stop), as they are and not compressed on the way."""
    return {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}


def check_status(status: int, where: str) -> None:
    """Raise for a status that is no success; `TransientError` for one that may be another time."""
    if status in _PASSING:
        raise TransientError(f"status {status}")
    if status in {404, 410}:
        raise DamagedError(f"{where} is missing; fetch or pack it again")
    if status in {401, 403}:
        raise AccessError(f"{where}: the server refuses (status {status}): check your rights to it")
    if status == 416:
        raise DamagedError(f"{where} is cut off; fetch or pack it again")
    if not 200 <= status < 300:
        raise RemoteError(f"{where}: the server answers with status {status}")


def take(answer: Answer, start: int, stop: int, where: str) -> tuple[bytes, int]:
    """The bytes [start, stop) of an answer to `range_header`, which must be these and no others; the file's size."""
    check_status(answer.status, where)
    total = stop
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None or not match[3].isdigit():
            raise RemoteError(f"{where}: the server does not say which bytes it answers with; download it first")
        total = int(match[3])
        if total < stop:
            raise DamagedError(f"{where} ends at byte {total}, and {stop} are needed: cut off")
        if (int(match[1]), int(match[2]) + 1) != (start, stop):
            raise RemoteError(f"{where}: the server answers with other bytes than were asked for; download it first")
    elif start or answer.headers.get("content-length", "") != str(stop):
        raise RemoteError(f"{where}: the server gives no byte ranges; download the archive, and open it here")
    data = answer.read(stop - start)
    if len(data) != stop - start:
        raise TransientError(f"cut off after {len(data)} of {stop - start} bytes")
    return data, total
