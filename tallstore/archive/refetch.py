"""Retry after a refetch: what is done where bytes are damaged and the store can fetch the file again.

Two shapes. What reads and checks in one go tries again by itself (`read_checked`). What has handed out bytes before it
knows their checksum cannot: it raises `RefetchedError` where the file was fetched again, and whoever asked for all
begins anew (`retry_after_refetch`). Nothing is fetched again twice: damage that is met then is `DamagedError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from tallstore.errors import ArchiveError, DamagedError, WrongBaseError
from tallstore.stores import Store

__all__ = ["RefetchedError", "read_checked", "refetch_or_raise", "retry_after_refetch"]

_T = TypeVar("_T")


class RefetchedError(DamagedError):
    """The file was damaged, and the store has fetched it again: retry the read."""


def read_checked(
    store: Store, path: str, read: Callable[[], _T], is_damage: Callable[[ArchiveError], bool] | None = None
) -> _T:
    """What a reading that checks gives; where it meets damage and the store can fetch the file again, a second try.

    Args:
        store: whose file it is.
        path: the file's.
        read: reads and checks.
        is_damage: which errors of the archive are damage; by default DamagedError.
    """
    try:
        return read()
    except ArchiveError as error:
        damaged = isinstance(error, DamagedError) if is_damage is None else is_damage(error)
        if not damaged or not store.refetch(path):
            raise
    return read()


def refetch_or_raise(store: Store, path: str, error: DamagedError) -> NoReturn:
    """Raise what was found of bytes that were handed out already: RefetchedError where they may be right next time."""
    if store.refetch(path):
        raise RefetchedError(*error.args) from error
    raise error


def retry_after_refetch(
    work: Callable[..., _T], *arguments: Any, refetch_base: Callable[[], bool] = lambda: False
) -> _T:
    """Work; once more where a file was fetched again meanwhile.

    Args:
        work: what may raise RefetchedError.
        arguments: of it.
        refetch_base: fetches a referenced base again that turned out to be another one; whether it did.
    """
    try:
        return work(*arguments)
    except RefetchedError:
        pass
    except WrongBaseError:
        if not refetch_base():
            raise
    try:
        return work(*arguments)
    except RefetchedError as error:
        raise DamagedError(*error.args) from error
