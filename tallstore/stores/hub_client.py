"""How the Hub's own client is asked, and what its errors are in our words: one line, a remedy, nothing secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tallstore._version import __version__
from tallstore.errors import (
    AccessError,
    ConflictError,
    MissingExtraError,
    NoSuchRepoError,
    NoSuchRevisionError,
    OptionError,
    RemoteError,
    TallstoreError,
    UnreachableError,
)
from tallstore.stores.retries import TransientError

SCHEME = "hf://"
OFFLINE = "not in the local cache, and the network is not to be used; fetch it once with the network"

_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_URL = re.compile(r"(?:hf://)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>.+))?", re.DOTALL)
_AT = r"(?:@(refs/[^/@]+/[^/@]+|[^/@]+))?"
_FILE = re.compile(rf"hf://([^/@]+/[^/@]+){_AT}/([^@]*[^/@]\.tall){_AT}", re.DOTALL)
_XET_ROUTE = re.compile(r"/xet-(?:read|write)-token\b")
_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
_SECRET = re.compile(r"(hf_|api_org_)[A-Za-z0-9]{4,}|(?i:bearer)\s+\S+|(?<=\?)\S+")


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the Hub is asked; what its own client's functions take by these names. Its text shows no token."""

    token: str | bool | None = field(default=None, repr=False)
    endpoint: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False
    timeout: float | None = None


def parse_id(text: str, revision: str | None = None) -> tuple[str, str | None]:
    """Owner/name and revision of `user/zoo`, `user/zoo@revision` or the same with `hf://`; else OptionError."""
    match = _URL.fullmatch(text)
    if match is None or not _ID.fullmatch(match["repo"]):
        raise OptionError(f"{text!r}: not a repository of the Hub; expected user/name or hf://user/name@revision")
    if revision is not None and match["revision"] not in {None, revision}:
        raise OptionError(f"{text}: revision {revision!r} was given too: leave one of them out")
    return match["repo"], revision or match["revision"]


def parse_file(text: str, revision: str | None = None) -> tuple[str, str | None, str] | None:
    """Owner/name, revision and path of a `.tall` file in a repository; None for what names no such file.

    As the Hub's own tools write it, `hf://user/name@revision/path/zoo.tall`; `hf://user/name/zoo.tall@revision` too.
    A slash in a revision is `%2F`, but in `refs/…`.
    """
    match = _FILE.fullmatch(text)
    if match is None:
        return None
    repo, first, path, last = match.groups()
    revisions = [unquote(each) for each in (first, last) if each is not None]
    if len(revisions) > 1:
        raise OptionError(f"{text}: names two revisions: leave one of them out")
    given = f"@{revisions[0]}" if revisions else ""
    return *parse_id(f"{repo}{given}", revision), path


def client(what: str) -> Any:
    """The Hub's own client package."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError(f'{what}: needs huggingface_hub: pip install "huggingface_hub>=2.4"') from error
    return huggingface_hub


def connect(access: Access, what: str) -> Any:
    """The client's `HfApi` that asks as `access` says."""
    return client(what).HfApi(
        endpoint=access.endpoint, token=access.token, library_name="tallstore", library_version=__version__
    )


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn the client's errors into ours: one line that begins with `where`, says what to do, and holds no secret."""
    try:
        yield
    except (TallstoreError, TransientError):
        raise
    except Exception as error:  # the client's transport has errors of its own, which differ between its versions
        raise explain(error, where) from _shown(error)


def _shown(error: Exception) -> Exception | None:
    """The error as a cause, unless its text holds a token."""
    return None if _SECRET.search(str(error)) else error


def explain(error: Exception, where: str) -> TallstoreError:
    """Our error for one of the client's."""
    made, text = _meaning(error)
    return made(f"{where}: {text}")


def reason(error: Exception) -> str:
    """What one of the client's errors means, in our words."""
    return _meaning(error)[1]


def _meaning(error: Exception) -> tuple[type[TallstoreError], str]:
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):  # around what an upload met
        return _meaning(error.__cause__)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    for names, known in _KNOWN.items():
        if kinds & names:
            return known
    status = _status(error)
    if of_xet(error) and status not in {401, 403}:
        why = f"status {status}" if status else first_line(error)
        return UnreachableError, (
            f"could not be moved by way of Xet ({why}); try again later, or do without: HF_HUB_DISABLE_XET=1"
        )
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 400 <= status < 500:
        return RemoteError, f"the Hub refuses ({summary(error)})"
    return UnreachableError, f"the Hub did not answer as it should ({summary(error)}); try again later"


def of_xet(error: BaseException) -> bool:
    """Whether the way was Xet's, by which the client moves large files where the server knows it.

    What does so, hf_xet, has no errors of its own: they are Python's, and texts.
    """
    text = str(error)
    plain = type(error).__module__ in {"builtins", "hf_xet"}
    return _XET_ROUTE.search(text) is not None or (plain and (", domain: " in text or "xet" in text.lower()))


def lacks_xet(error: BaseException) -> bool:
    """Whether a server was asked for leave to move files by Xet, and knows nothing of that."""
    return of_xet(error) and _status(error) == 404


def _status(error: BaseException) -> int:
    """The status that a server answered with; 0 if there is none."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status
    match = _XET_STATUS.search(str(error))
    return int(match[1]) if match else 0


_NO_REPO = (
    "no such repository on the Hub, or a private one: check its name, or give a token that may see it "
    "(token=…, --token, or `hf auth login`)"
)
_KNOWN: Mapping[frozenset[str], tuple[type[TallstoreError], str]] = {
    frozenset({"GatedRepoError"}): (
        AccessError,
        "gated: ask for access on its page on the Hub, and give your token (token=…, --token, or `hf auth login`)",
    ),
    frozenset({"RepositoryNotFoundError"}): (NoSuchRepoError, _NO_REPO),
    frozenset({"RevisionNotFoundError"}): (NoSuchRevisionError, "the repository has no such branch, tag or commit"),
    frozenset({"LocalTokenNotFoundError"}): (AccessError, "a token is asked for and none is stored: `hf auth login`"),
    frozenset({"OfflineModeIsEnabled"}): (UnreachableError, OFFLINE),
    frozenset({"HFValidationError"}): (OptionError, "not a name that the Hub allows; expected user/name"),
}
_BY_STATUS: Mapping[int, tuple[type[TallstoreError], str]] = {
    401: (AccessError, "the Hub does not accept the token, or asks for one (token=…, --token, or `hf auth login`)"),
    403: (AccessError, "the token may not do this: it needs the right to write here, or to see the repository"),
    404: (NoSuchRepoError, _NO_REPO),
    412: (ConflictError, "the repository changed in the meantime; nothing was pushed: push again"),
}


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind; nothing secret."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return _SECRET.sub("…", line.strip())[:160]


def summary(error: BaseException) -> str:
    """What went wrong in a few words, and nothing secret."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    shown = first_line(error)
    return ", ".join(word for word in (type(error).__name__, f"status {status}" if status else "", shown) if word)
