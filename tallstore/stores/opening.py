"""From what a user names to a store: a folder or file here, or an address somewhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from tallstore.errors import OptionError, UnreachableError
from tallstore.stores.base import Sink, Store
from tallstore.stores.fsspec_files import SystemFiles
from tallstore.stores.fsspec_sink import check_far_target, open_far_sink
from tallstore.stores.http_files import WebFiles
from tallstore.stores.hub import HubFileStore, HubStore
from tallstore.stores.hub_client import OFFLINE, Access, parse_file, parse_id
from tallstore.stores.hub_repo import HubFile, HubFiles, Repo
from tallstore.stores.local import check_local_target, open_local_sink, open_store
from tallstore.stores.ranged_files import FarFile, FarFolder, Files
from tallstore.stores.zip_directory import SUFFIX

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(::[^:]+)*://.*", re.DOTALL)


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether it names something by `scheme://`, and not a path on this machine."""
    return isinstance(path, str) and _ADDRESS.fullmatch(path) is not None


def open_any(
    path: str | os.PathLike[str],
    *,
    mapped: bool = True,
    lazy: bool = False,
    revision: str | None = None,
    access: Access | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Store:
    """Open an archive for reading, wherever it is.

    Args:
        path: a folder or a `.tall` file; `hf://user/zoo@revision`, or `hf://user/repo@revision/zoo.tall` for a file in
            a repository; `https://…`; or what fsspec knows.
        mapped: map files of this machine, or of the Hub's cache, into memory.
        lazy: from the Hub, read byte ranges and keep no files. Elsewhere that is always so.
        revision: branch, tag or commit on the Hub.
        access: how the Hub is asked.
        storage_options: for fsspec's file systems.
    """
    access = access or Access()
    text = os.fspath(path)
    scheme = (_ADDRESS.fullmatch(text) or [""] * 2)[1].lower() if is_address(path) else ""
    if scheme != "hf" and (revision is not None or lazy):
        raise OptionError(f"{path}: revision and lazy are for archives on the Hub (hf://user/zoo)")
    if not scheme:
        return open_store(path, mapped=mapped)
    if scheme == "hf":
        if (file := parse_file(text, revision)) is not None:
            return _in_repository(*file, access, mapped=mapped)
        repo = Repo(*parse_id(text, revision), access)
        return FarFolder(HubFiles(repo)) if lazy else HubStore(repo, mapped=mapped)
    files = open_files(text, storage_options, access)
    single = urlsplit(text).path.endswith(SUFFIX)
    try:
        return FarFile(files) if single else FarFolder(files)
    except BaseException:
        files.close()
        raise


def open_files(url: str, storage_options: Mapping[str, Any] | None = None, access: Access | None = None) -> Files:
    """Files at or below an address, to be read by range."""
    return _FILES.get(url.split(":", maxsplit=1)[0].lower(), _system)(url, access or Access(), storage_options)


def open_sink(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Sink:
    """Begin an archive: a single file if the name ends in `.tall`, else a folder.

    Args:
        path: where it will be: on this machine, or an address that fsspec can write to.
        overwrite: replace an archive that is there.
        resume: find in `work` what an earlier run left there, and leave it there if this one fails.
        storage_options: for fsspec's file systems.
    """
    if not is_address(path):
        return open_local_sink(path, overwrite=overwrite, resume=resume)
    return open_far_sink(_writable(path), storage_options, overwrite=overwrite, resume=resume)


def check_target(
    path: str | os.PathLike[str], *, overwrite: bool, storage_options: Mapping[str, Any] | None = None
) -> None:
    """Raise OutputExistsError if an archive cannot be put there: before the work, not after it."""
    if not is_address(path):
        check_local_target(path, overwrite=overwrite)
    else:
        check_far_target(_writable(path), storage_options, overwrite=overwrite)


def _writable(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if text.lower().startswith(("hf:", "http:", "https:")):
        raise OptionError(f"{text}: an archive is not written there; to the Hub, pack it here and `tallstore push` it")
    return text


def _in_repository(repo_id: str, revision: str | None, path: str, access: Access, *, mapped: bool) -> Store:
    """A `.tall` file of a repository: from the Hub's cache where it is there whole, else by range.

    It is not fetched to read a task of it: that would fetch all tasks.
    """
    repo = Repo(repo_id, revision, access)
    place = None if access.force_download else repo.cached(path)
    if place is None and access.local_files_only:
        raise UnreachableError(f"{repo.url}/{path}: {OFFLINE}")
    if place is None:
        return FarFile(HubFile(repo, path))
    return HubFileStore(repo, path, place, mapped=mapped)


def _web(url: str, access: Access, options: Mapping[str, Any] | None) -> Files:
    if options:
        return _system(url, access, options)
    return WebFiles(url, timeout=access.timeout)


def _system(url: str, access: Access, options: Mapping[str, Any] | None) -> Files:
    return SystemFiles(url, options, timeout=access.timeout)


_FILES: Mapping[str, Callable[[str, Access, Mapping[str, Any] | None], Files]] = {"http": _web, "https": _web}
