"""What a user names as a zoo, for pulling and loading: a path here, a repository's id, or an address."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tallstore.archive import Archive
from tallstore.archive.ancestry import step_of
from tallstore.checkpoints import Source
from tallstore.errors import NoSuchTaskError, NotAnArchiveError, OptionError
from tallstore.format.manifest import names_of
from tallstore.stores import Access, is_address, open_any
from tallstore.stores.hub_client import SCHEME, parse_id


def open_named(
    name: str | os.PathLike[str], access: Access, *, revision: str | None = None, base: Source | None = None
) -> Archive:
    """Open a zoo by path, by `user/zoo` or `user/zoo@revision`, or by address. A referenced base is found by itself."""
    url = address_of(name)
    if revision is not None and not (isinstance(url, str) and url.startswith(SCHEME)):
        revision = None  # as elsewhere, a local folder has no revisions
    store = open_any(url, revision=revision, access=access)
    try:
        return Archive(store, base=base, access=access)
    except BaseException:
        store.close()
        raise


def address_of(name: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A path that is there, an address as it is, and `hf://` before what can be a repository's id."""
    if is_address(name) or Path(name).exists():
        return name
    try:
        parse_id(os.fspath(name))
    except OptionError:
        raise NotAnArchiveError(f"{name}: there is nothing there, and it is no repository's id (user/zoo)") from None
    return f"{SCHEME}{os.fspath(name)}"


def chosen_tasks(zoo: Archive, tasks: str | Sequence[str] | None) -> tuple[str, ...]:
    """The tasks that were asked for, each once; all of them for None."""
    if tasks is None:
        return zoo.tasks
    named = [tasks] if isinstance(tasks, str) else list(tasks)
    wanted = tuple(dict.fromkeys(step_of(zoo.manifest, name) or name for name in named))
    if not wanted:
        raise OptionError(f"{zoo.url}: no task was named; there are {names_of(zoo.tasks)}")
    for task in wanted:
        if task not in zoo.tasks:
            raise NoSuchTaskError(f"{zoo.url}: no task {task!r}; there are {names_of(zoo.tasks)}")
    return wanted
